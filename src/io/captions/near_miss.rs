//! What stands in the place of a captions file or of an image, if it is something near to it.

use std::path::Path;

use serde_json::Value as Json;

use crate::io::names;

/// What stands where a COCO captions file is expected, if a better word than the parser's error can be said.
pub(super) fn instead_of_coco(path: &Path) -> Option<String> {
    if path.is_dir() {
        let entries = fs_err::read_dir(path).ok()?.flatten();
        let texts =
            entries.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "txt")).count();
        return Some(match texts {
            0 => "a folder".into(),
            texts => format!("a folder with {texts} .txt files"),
        });
    }
    let text = fs_err::read_to_string(path).ok()?;
    match serde_json::from_str::<Json>(text.trim_start_matches('\u{feff}')) {
        Ok(Json::Object(map)) if map.contains_key("images") => None,
        Ok(Json::Object(map)) if !map.is_empty() && map.values().all(|value| value.is_string()) => {
            Some("a map of names to captions".into())
        }
        Ok(Json::Object(map)) => {
            let keys: Vec<String> = map.keys().take(3).map(|key| format!("{key:?}")).collect();
            Some(format!("an object without `images`, with the keys {}", keys.join(", ")))
        }
        Ok(Json::Array(_)) => Some("a list".into()),
        Ok(_) => Some("a single value".into()),
        Err(_) => {
            let mut lines = text.lines();
            let is_object =
                |line: &str| serde_json::from_str::<Json>(line).is_ok_and(|value| value.is_object());
            // Two, for one may be a file that is cut off or has something after its end.
            let both = is_object(lines.next()?) && is_object(lines.next()?);
            both.then(|| "JSON lines, an object in each".into())
        }
    }
}

/// A file in the folder or one level below that was probably meant: another case or ending, or a subfolder.
pub(super) fn near_file(folder: &Path, name: &str) -> Option<String> {
    let stem = |path: &Path| path.file_stem().map(|stem| names::folded(&stem.to_string_lossy()));
    let wanted = stem(Path::new(name))?;
    let list =
        |folder: &Path| fs_err::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut near: Vec<_> = list(folder)
        .flat_map(|path| if path.is_dir() { list(&path).collect() } else { vec![path] })
        .filter(|path| path.is_file() && stem(path).is_some_and(|stem| stem == wanted))
        .collect();
    near.sort();
    near.first()?.strip_prefix(folder).ok().map(|path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_misses_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let of = |text: &str| {
            fs_err::write(at("captions.json"), text).unwrap();
            instead_of_coco(&at("captions.json"))
        };
        assert_eq!(of(r#"{"a.png": "an apple"}"#).as_deref(), Some("a map of names to captions"));
        assert_eq!(
            of(r#"{"pictures": [], "texts": {}}"#).as_deref(),
            Some("an object without `images`, with the keys \"pictures\", \"texts\"")
        );
        assert_eq!(of("[1]").as_deref(), Some("a list"));
        assert_eq!(of("7").as_deref(), Some("a single value"));
        assert_eq!(of("{\"a\": 1}\n{\"a\": 2}\n").as_deref(), Some("JSON lines, an object in each"));
        assert_eq!(of("{\"images\": []}\nrest\n"), None);
        assert_eq!(of("a caption\n"), None);
        assert_eq!(of(r#"{"images": 3}"#), None);
        fs_err::create_dir_all(at("texts/deep")).unwrap();
        assert_eq!(instead_of_coco(&at("texts")).as_deref(), Some("a folder"));
        fs_err::write(at("texts/a.txt"), "an apple").unwrap();
        assert_eq!(instead_of_coco(&at("texts")).as_deref(), Some("a folder with 1 .txt files"));

        fs_err::write(at("Pear.PNG"), "").unwrap();
        fs_err::write(at("texts/plum.png"), "").unwrap();
        fs_err::write(at("texts/deep/fig.png"), "").unwrap();
        assert_eq!(near_file(folder.path(), "pear.png").as_deref(), Some("Pear.PNG"));
        assert_eq!(near_file(folder.path(), "pear.jpg").as_deref(), Some("Pear.PNG"));
        assert_eq!(near_file(folder.path(), "plum.png").as_deref(), Some("texts/plum.png"));
        assert_eq!(near_file(folder.path(), "fig.png"), None);
        fs_err::write(at("cr\u{e8}me.png"), "").unwrap();
        assert_eq!(near_file(folder.path(), "cre\u{300}me.png").as_deref(), Some("cr\u{e8}me.png"));
    }
}
