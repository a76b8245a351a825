//! Names of files in lists of others: captions, archives.

use icu_normalizer::ComposingNormalizerBorrowed;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_the_form_of_accents_do_not_count() {
        assert_eq!(folded("B\u{e9}.PNG"), folded("be\u{301}.png"));
        assert_eq!(folded("\u{c9}"), folded("e\u{301}"));
        assert_ne!(folded("e.png"), folded("\u{e9}.png"));
    }
}
