//! Names of files in lists of others: captions, archives.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use icu_normalizer::ComposingNormalizerBorrowed;

/// A few of them, and how many there are besides.
pub fn few<T: Display>(all: &[T]) -> String {
    const SHOWN: usize = 4;
    let mut text = all.iter().take(SHOWN).map(T::to_string).collect::<Vec<_>>().join(", ");
    if all.len() > SHOWN {
        text += &format!(" and {} more", all.len() - SHOWN);
    }
    text
}

/// A relative path in its shortest form, `/` between its parts.
///
/// # Errors
/// Why the name is refused: it could lead outside the folder that it is relative to, or names no file.
pub fn inside(name: &str) -> Result<String, &'static str> {
    if name.contains('\0') {
        return Err("it contains a zero byte");
    }
    if name.starts_with('/') {
        return Err("its path is absolute");
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err("its path contains `..`");
    }
    if parts.is_empty() {
        return Err("it is empty");
    }
    Ok(parts.join("/"))
}

/// The name as file systems compare it that ignore case and Unicode's forms: two names with one such form may be one file.
pub fn folded(name: &str) -> String {
    let composed = ComposingNormalizerBorrowed::new_nfc();
    composed.normalize(&composed.normalize(name).to_lowercase()).into_owned()
}

/// The names of a list of files, of which no two may be one file, and none the folder of another.
#[derive(Default)]
pub struct Unique {
    /// In the [`folded`] form, with the name as it is.
    files: HashMap<String, String>,
    folders: HashSet<String>,
}

impl Unique {
    /// Adds a file or a folder; returns why it cannot be beside the earlier ones.
    pub fn add(&mut self, name: &str, is_folder: bool) -> Option<&'static str> {
        let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
        let whole = parts.join("/");
        for (end, _) in whole.match_indices('/') {
            let folder = folded(&whole[..end]);
            if self.files.contains_key(&folder) {
                return Some("an earlier entry is a file with the name of its folder");
            }
            self.folders.insert(folder);
        }
        let key = folded(&whole);
        if self.folders.contains(&key) && !is_folder {
            return Some("an earlier entry is a folder with its name");
        }
        match self.files.get(&key) {
            Some(first) if *first == whole => return Some("an earlier entry has the same name"),
            Some(_) => {
                return Some(
                    "an earlier entry has a name that differs only in case or in the form of accents",
                );
            }
            None => {}
        }
        match is_folder {
            true => drop(self.folders.insert(key)),
            false => drop(self.files.insert(key, whole)),
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names = Unique::default();
        for (name, is_folder) in [("a", false), ("x/", true), ("x/b", false), ("x", true), ("y/z/c", false)] {
            assert_eq!(names.add(name, is_folder), None, "{name}");
        }
        for (name, is_folder, reason) in [
            ("./a", false, "an earlier entry has the same name"),
            ("A", false, "an earlier entry has a name that differs only in case or in the form of accents"),
            ("a/b", false, "an earlier entry is a file with the name of its folder"),
            ("a/", true, "an earlier entry has the same name"),
            ("y/z", false, "an earlier entry is a folder with its name"),
        ] {
            assert_eq!(names.add(name, is_folder), Some(reason), "{name}");
        }
    }

    #[test]
    fn case_and_the_form_of_accents_do_not_count() {
        assert_eq!(folded("B\u{e9}.PNG"), folded("be\u{301}.png"));
        assert_eq!(folded("\u{c9}"), folded("e\u{301}"));
        assert_ne!(folded("e.png"), folded("\u{e9}.png"));
    }
}
