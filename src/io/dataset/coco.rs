//! Images with a captions file in COCO's layout.

use std::path::Path;

use anyhow::{Context as _, ensure};

use super::folders::{has_extension, walk};
use super::{Item, Picture, Source, Visit};
use crate::io::captions::coco::Captions;

/// Whether a file is one of captions: it has images and annotations, as its first bytes may not show.
pub(super) fn is_one(file: &Path) -> bool {
    has_extension(file, &["json"]) && Captions::read_all(file).is_ok()
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
    // Names are relative to the folder of the file, where it lies among the images.
    let folder = if source.captions.is_some() { source.path } else { file.parent().unwrap_or(source.path) };
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
