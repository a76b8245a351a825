//! Images with a captions file in COCO's layout.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

use super::folders::{has_extension, walk};
use super::{Item, Picture, Source, Visit};
use crate::io::captions::coco::Captions;

/// The captions in a file, if it is one of captions: its first bytes may not show it.
pub(super) fn of_file(file: &Path) -> Option<Captions> {
    has_extension(file, &["json"]).then(|| Captions::read_all(file).ok()).flatten()
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
    let (file, captions, folder) = match source.captions {
        Some(file) => (file.to_owned(), Captions::read_all(file)?, source.path.to_owned()),
        None => {
            let files = walk(source.path)?.into_iter().map(|file| source.path.join(file));
            let mut found = files.filter_map(|file| of_file(&file).map(|captions| (file, captions)));
            let none = || format!("{}: no captions file in COCO's layout", source.path.display());
            let (file, captions) = found.next().with_context(none)?;
            let folder = images(source.path, &captions, &file)?;
            (file, captions, folder)
        }
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
