//! Where things are that the command line names: on this machine or on the Hub, one or several.

use std::path::{Path, PathBuf};

/// Where a model or a training set is.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// On this machine.
    Path(PathBuf),
    /// On the Hugging Face Hub: `hf://OWNER/NAME@REVISION`.
    Hub(String),
}

impl Origin {
    /// As it is written.
    pub fn written(&self) -> String {
        match self {
            Origin::Path(path) => path.display().to_string(),
            Origin::Hub(address) => address.clone(),
        }
    }
}

/// Where the images are: on the Hub only if that is said.
pub(super) fn images(written: &str) -> Origin {
    if written.starts_with("hf://") {
        Origin::Hub(written.to_owned())
    } else {
        Origin::Path(PathBuf::from(written))
    }
}

/// Where a model is: on this machine if there is such a path, else on the Hub if it is written as a name there is.
pub(super) fn model(model: &str) -> Origin {
    if let Some(address) = model.strip_prefix("hf://") {
        let revision = if address.contains('@') { "" } else { "@main" };
        return Origin::Hub(format!("hf://{address}{revision}"));
    }
    let path = Path::new(model);
    // `./sd15` and `../sd15` are paths, also where nothing is there.
    let is_part = |part: &str| !part.starts_with('.') && is_name(&part.replace('.', "-"));
    let is_id = model.split('/').count() == 2 && model.split('/').all(is_part);
    if !path.exists() && is_id {
        Origin::Hub(format!("hf://{model}@main"))
    } else {
        Origin::Path(path.to_owned())
    }
}

/// The files that a path names, whose last part may be a pattern.
pub(super) fn matching(pattern: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let name = pattern.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if pattern.exists() || !name.contains('*') {
        return Ok(vec![pattern.to_owned()]);
    }
    let folder = pattern.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() && path.file_name().is_some_and(|own| fits(&own.to_string_lossy(), &name)) {
            found.push(path);
        }
    }
    found.sort();
    anyhow::ensure!(!found.is_empty(), "{}: no file fits the pattern", pattern.display());
    Ok(found)
}

/// Whether a name fits a pattern, in which `*` stands for any text.
fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|left| {
            (0..=left.len()).filter(|at| left.is_char_boundary(*at)).any(|at| fits(&left[at..], rest))
        }),
    }
}

/// Whether a text can be the name of a pipeline.
pub(super) fn is_name(name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !name.is_empty() && name.chars().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_any_text() {
        for (name, pattern, expected) in [
            ("a.png", "*.png", true),
            ("a.jpg", "*.png", false),
            ("abc.png", "a*c*", true),
            ("ac", "a*c", true),
            ("ab", "a*c", false),
            ("é.png", "*png", true),
        ] {
            assert_eq!(fits(name, pattern), expected, "{name} {pattern}");
        }
    }

    #[test]
    fn a_name_is_of_the_hub_only_where_there_is_no_such_path() {
        let written = |model| super::model(model).written();
        assert_eq!(written("OWNER/some.model-1"), "hf://OWNER/some.model-1@main");
        assert_eq!(written("hf://OWNER/NAME@abc"), "hf://OWNER/NAME@abc");
        assert_eq!(written("hf://OWNER/NAME"), "hf://OWNER/NAME@main");
        assert_eq!(written("./OWNER/NAME"), "./OWNER/NAME");
        assert_eq!(written("./sd15x"), "./sd15x");
        assert_eq!(written("../sd15x"), "../sd15x");
        assert_eq!(written("src/cli"), "src/cli");
        assert_eq!(written("a b/c"), "a b/c");
    }
}
