//! Captions as a text file, one per line.

use std::io;
use std::path::{Path, PathBuf};

use crate::io::mistaken::mistaken;

/// Why a text file is not a list of captions.
#[derive(Debug, thiserror::Error)]
pub enum CaptionListError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not UTF-8.
    #[error("{}: line {line} is not UTF-8", path.display())]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A blank line between captions: images are numbered by lines, so it cannot be skipped.
    #[error("{}: line {line} is blank, expected a caption on every line", path.display())]
    Blank {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// Another file.
    #[error("{}: it is {found}, expected a caption on every line", path.display())]
    Instead {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// There is no caption.
    #[error("{}: no captions, expected one per line", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Reads the captions of a file in UTF-8, one a line; blank lines at its end are ignored.
///
/// Lines end where they do for Python's `str.splitlines`, which the published code uses.
///
/// # Errors
/// The file cannot be read, or has no captions, or a blank line between captions.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<String>, CaptionListError> {
    let path = path.as_ref();
    let bytes = fs_err::read(path)?;
    let is_json = || serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes).is_ok();
    let instead = mistaken(&bytes).filter(|_| !bytes.is_empty());
    if let Some(found) = instead.or_else(|| is_json().then(|| "a JSON file".into())) {
        return Err(CaptionListError::Instead { path: path.into(), found });
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        CaptionListError::Utf8 { path: path.into(), line: lines(&format!("{valid}x")).count() }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_end();
    if text.is_empty() {
        return Err(CaptionListError::Empty { path: path.into() });
    }
    let caption = |(index, line): (usize, &str)| match line.trim() {
        "" => Err(CaptionListError::Blank { path: path.into(), line: index + 1 }),
        caption => Ok(caption.to_owned()),
    };
    lines(text).enumerate().map(caption).collect()
}

/// The lines of a text as `str.splitlines` of Python has them.
fn lines(mut text: &str) -> impl Iterator<Item = &str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'];
    std::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let (line, rest) = match text.find(ENDS) {
            Some(end) => {
                let (line, rest) = text.split_at(end);
                let length = rest.chars().next().map_or(0, char::len_utf8);
                (line, rest.strip_prefix("\r\n").unwrap_or(&rest[length..]))
            }
            None => (text, ""),
        };
        text = rest;
        Some(line)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bytes: &[u8]) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), bytes).unwrap();
        let path = format!("{}: ", file.path().display());
        read(file.path()).map_err(|error| error.to_string().replace(&path, ""))
    }

    #[test]
    fn one_caption_per_line() {
        let expected = Ok(vec!["a cat".to_owned(), "two dogs, ünder a tree".to_owned()]);
        for text in [
            "a cat\ntwo dogs, ünder a tree",
            "a cat\ntwo dogs, ünder a tree\n",
            "a cat\r\ntwo dogs, ünder a tree\r\n",
            "\u{feff}a cat \n two dogs, ünder a tree\n\n \r\n",
            "a cat\rtwo dogs, ünder a tree\r",
            "a cat\u{2029}two dogs, ünder a tree\x0c\x0c",
            "a cat\x1dtwo dogs, ünder a tree\u{85}",
        ] {
            assert_eq!(of(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn an_invalid_list_is_an_error() {
        for text in ["", "\n", " \r\n\n"] {
            assert_eq!(of(text.as_bytes()), Err("no captions, expected one per line".to_owned()), "{text:?}");
        }
        for (text, found) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
            ("<!DOCTYPE html>\n<p>a cat\n", "a web page"),
            ("{\"images\": [], \"annotations\": []}\n", "a JSON file"),
        ] {
            let error = of(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(&format!("it is {found}")), "{error}");
            assert!(error.ends_with(", expected a caption on every line"), "{error}");
        }
        let blank = "line 2 is blank, expected a caption on every line".to_owned();
        assert_eq!(of(b"a\n\nb\n"), Err(blank.clone()));
        assert_eq!(of("a\u{2028}\x0bb".as_bytes()), Err(blank));
        assert_eq!(of(b"a\x0bb\r\n\xff"), Err("line 3 is not UTF-8".to_owned()));
        assert_eq!(of(b"a\nb\nc \xff\n"), Err("line 3 is not UTF-8".to_owned()));
        assert!(read("/nowhere/captions.txt").unwrap_err().to_string().contains("/nowhere/captions.txt"));
    }
}
