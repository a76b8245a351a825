//! Where a file comes from: a path or an address.

use std::path::{Component, Path};

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::{Param, Reader};
use crate::config::text::nearest;
use crate::config::tree::Node;

/// An existing file or folder, or an address on the web or the Hugging Face Hub. Paths are absolute: they start from
/// the folder of the text that names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Location(pub String);

/// The schemes of addresses.
const SCHEMES: [&str; 3] = ["http", "https", "hf"];

impl Location {
    /// The local path, or `None` for an address.
    pub fn local(&self) -> Option<&Path> {
        let is_address = self.0.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme));
        (!is_address).then(|| Path::new(&self.0))
    }

    /// The address, if it is on the Hub.
    pub fn hub(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|address| address.starts_with("hf://"))
    }

    /// The last part of the path or address, without a query.
    pub fn file_name(&self) -> &str {
        let path = self.0.split(['?', '#']).next().unwrap_or(&self.0);
        path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
    }
}

/// What was probably meant by a path that leads to nothing.
pub(super) fn probably_meant(written: &Path, path: &Path) -> Option<String> {
    // The first part of it that is missing, and what is in its place.
    let is_in_a_folder = |path: &&Path| path.parent().is_some_and(Path::is_dir);
    let missing = path.ancestors().find(is_in_a_folder)?;
    let beside = fs_err::read_dir(missing.parent()?).ok()?.flatten();
    let names: Vec<String> = beside.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // Another case, or without the ending.
    let name = missing.file_name()?.to_str()?;
    let stem = |other: &str| Path::new(other).file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
    let mut alike = names.iter().filter(|other| {
        let other = other.as_str();
        other.to_lowercase() == name.to_lowercase() || stem(other).as_deref() == Some(&name.to_lowercase())
    });
    let alike = alike.next().filter(|_| alike.next().is_none()).map(String::as_str);
    if let Some(near) = alike.or_else(|| nearest(name, names.iter().map(String::as_str))) {
        return Some(format!("did you mean `{near}`?"));
    }
    // OWNER/NAME, with `datasets` before it or a path after it, and nothing of it here.
    let parts = written.components().count();
    let plain = parts >= 2 && written.components().all(|part| matches!(part, Component::Normal(_)));
    let nothing = missing.ancestors().count() + parts == path.ancestors().count() + 1;
    // `NAME-v1.5` is a repository, `images/a.png` is none.
    let ending = written.extension().and_then(|ending| ending.to_str()).unwrap_or("0");
    let is_file = parts == 2 && !ending.contains(|c: char| c.is_ascii_digit());
    (plain && nothing && !is_file)
        .then(|| format!("a repository of the Hugging Face Hub is written `hf://{}`", written.display()))
}

impl Param for Location {
    fn expected() -> String {
        "a path, or an http(s) or hf address".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let location = Self(String::read(node, reader)?);
        if let (Some(_), Some((scheme, _))) = (location.local(), location.0.split_once("://"))
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            let message = format!("`{scheme}://` is an unknown scheme, expected {}", Self::expected());
            reader.problems.at(&node.origin, message);
            return None;
        }
        match location.local() {
            Some(path) => {
                let path = reader.existing(path, &node.origin)?;
                Some(Self(path.to_string_lossy().into_owned()))
            }
            None => Some(location),
        }
    }
    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_without_its_scheme_is_recognised() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("images")).unwrap();
        let of = |written: &str| probably_meant(Path::new(written), &folder.path().join(written));
        for name in ["runwayml/sd-v1.5", "openai/clip", "datasets/owner/set", "owner/model/unet/config.json"]
        {
            let hint = of(name).unwrap();
            assert_eq!(hint, format!("a repository of the Hugging Face Hub is written `hf://{name}`"));
        }
        assert_eq!(of("image/a.png").as_deref(), Some("did you mean `images`?"));
        fs_err::write(folder.path().join("captions.json"), "").unwrap();
        for name in ["captions", "Captions.JSON"] {
            assert_eq!(of(name).as_deref(), Some("did you mean `captions.json`?"));
        }
        // Files, a folder that is there, and one name alone.
        for name in ["pictures/a.png", "images/unet", "images/unet/config.json", "model"] {
            assert_eq!(of(name), None, "{name}");
        }
    }
}
