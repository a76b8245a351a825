//! What is said of a data set that is computed in another way than it may seem.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Latents, Orient, Transparent};
use crate::io::captions::coco::Captions;
use crate::io::dataset::is_picture;
use crate::kinds::shared::counted::{CUT, Counted};
use attrflow_engine::kind::Inputs;
use attrflow_engine::store::names;

/// The file of a unit's notes.
pub(super) const NOTES: &str = "notes.json";

/// What of the data set is computed in another way than it may seem.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Notes {
    pub transparent: Counted,
    pub turned: Counted,
    pub cut: Counted,
    #[serde(skip)]
    pub unlisted: Counted,
}

impl Notes {
    pub fn add(&mut self, other: Notes) {
        self.transparent.add(other.transparent);
        self.turned.add(other.turned);
        self.cut.add(other.cut);
    }

    /// The notes for people.
    pub fn lines(&self, params: &Latents) -> Vec<String> {
        let Latents { transparency, orientation, .. } = params;
        let kinds = [
            (
                &self.transparent,
                "images with transparent pixels",
                match transparency {
                    Transparent::Drop => "alpha is dropped (`transparency`)",
                    Transparent::White => "blended with white (`transparency`)",
                },
            ),
            (
                &self.turned,
                "images with an EXIF orientation",
                match orientation {
                    Orient::Ignore => "it is ignored (`orientation`)",
                    Orient::Apply => "they are turned (`orientation`)",
                },
            ),
            (&self.cut, CUT.0, CUT.1),
            (&self.unlisted, "images that the captions file does not name", "they are left out"),
        ];
        let present = kinds.into_iter().filter_map(|(counted, what, how)| counted.line(what, how));
        present.collect()
    }
}

/// Images of the folder that the captions file does not name.
pub(super) fn unlisted(inputs: &Inputs) -> anyhow::Result<Counted> {
    let captions = Captions::read_all(inputs.path("captions"))?;
    let listed: HashSet<&str> = captions.items.iter().map(|item| item.file_name.as_str()).collect();
    let mut names = names(inputs.path("images"))?;
    names.retain(|name| is_picture(Path::new(name)) && !listed.contains(name.as_str()));
    let mut unlisted = Counted::default();
    names.iter().for_each(|name| unlisted.count(true, name));
    Ok(unlisted)
}
