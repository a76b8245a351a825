//! Images with a captions file in COCO's layout.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::folders::{has_extension, walk};
use super::{Item, Picture, Source, Visit};
use crate::io::captions::coco::Captions;

/// Whether a file is one of captions: it has images and annotations, as its first bytes may not show.
pub(super) fn is_one(file: &Path) -> bool {
    has_extension(file, &["json"]) && Captions::read_all(file).is_ok()
}

/// The folder below `root` that the names of a captions file are relative to: the only one with the first image.
fn images(root: &Path, captions: &Captions, file: &Path) -> anyhow::Result<PathBuf> {
    let first = Path::new(&captions.items[0].file_name);
    let found = walk(root)?;
    let with_first = found.iter().filter(|found| found.ends_with(first));
    let folders: Vec<&Path> =
        with_first.filter_map(|found| found.ancestors().nth(first.iter().count())).collect();
    match folders.as_slice() {
        [one] => Ok(root.join(one)),
        [] => bail!("{}: no image {}, which {} names first", root.display(), first.display(), file.display()),
        several => bail!(
            "{}: {} lies in {} folders: give the one that is meant as `source`, and {} as `captions`",
            root.display(),
            first.display(),
            several.len(),
            file.display()
        ),
    }
}

pub(super) fn read(source: &Source<'_>, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    let found = match source.captions {
        Some(_) => None,
        None => walk(source.path)?.into_iter().map(|file| source.path.join(file)).find(|file| is_one(file)),
    };
    let file = source.captions.or(found.as_deref());
    let file =
        file.with_context(|| format!("{}: no captions file in COCO's layout", source.path.display()))?;
    let captions = Captions::read_all(file)?;
    let folder = match source.captions {
        Some(_) => source.path.to_owned(),
        None => images(source.path, &captions, file)?,
    };
    for item in captions.items {
        let image = folder.join(&item.file_name);
        ensure!(image.is_file(), "{}: no such image, which {} names", image.display(), file.display());
        visit(Item {
            name: item.file_name,
            picture: Picture::File(image),
            captions: item.captions,
            id: Some(item.id),
        })?;
    }
    Ok(())
}
