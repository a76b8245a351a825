//! Files that are not what their place calls for: what they are instead, from their first bytes.

/// What a file with these first bytes is, if it is something that is often found in the place of a data file.
pub fn mistaken(start: &[u8]) -> Option<String> {
    if start.is_empty() {
        return Some("an empty file".into());
    }
    let begins = |with: &[u8]| start.starts_with(with);
    let kind = if begins(b"version https://git-lfs.github.com/spec/") {
        "a Git LFS pointer, not the file that it stands for: fetch it with `git lfs pull`"
    } else if begins(b"\x89PNG\r\n\x1a\n") {
        "a PNG image"
    } else if begins(b"\xff\xd8\xff") {
        "a JPEG image"
    } else if begins(b"\x93NUMPY") {
        "a NumPy array"
    } else if begins(b"PK\x03\x04") {
        "a zip archive, or a file of torch.save"
    } else if begins(b"\x1f\x8b") {
        "a file compressed by gzip"
    } else if begins(b"RIFF") && start.get(8..12) == Some(b"WEBP") {
        "a WebP image"
    } else {
        return page(start).map(|begin| format!("a web page that begins with {begin:?}"));
    };
    Some(kind.into())
}

/// Whether a file that begins so is of a format.
pub type IsOne = fn(&[u8]) -> bool;

/// The format of files with this extension, and what tells one from its first bytes.
pub fn form(extension: &str) -> Option<(&'static str, IsOne)> {
    Some(match extension {
        "safetensors" => ("a safetensors file", |start| {
            let length = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
            length.is_some_and(|length| length <= 100_000_000) && start.get(8) == Some(&b'{')
        }),
        "npy" => ("a NumPy array", |start| start.starts_with(b"\x93NUMPY")),
        "zip" | "npz" => ("a zip archive", |start| start.starts_with(b"PK")),
        "gz" | "tgz" => ("a file compressed by gzip", |start| start.starts_with(b"\x1f\x8b")),
        "7z" => ("a 7z archive", |start| start.starts_with(b"7z\xbc\xaf\x27\x1c")),
        "png" => ("a PNG image", |start| start.starts_with(b"\x89PNG")),
        "jpg" | "jpeg" => ("a JPEG image", |start| start.starts_with(b"\xff\xd8")),
        _ => return None,
    })
}

/// The beginning of a web page, or of the error of a storage service.
pub fn page(start: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&start[..start.len().min(512)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let mut rest = text;
    // What may stand before the first tag.
    for (open, close) in [("<?xml", "?>"), ("<!--", "-->"), ("<!--", "-->")] {
        if rest.starts_with(open) {
            rest = rest.split_once(close).map_or("", |(_, rest)| rest).trim_start();
        }
    }
    let lower = rest.to_ascii_lowercase();
    let marks = ["<!doctype html", "<html", "<head", "<body", "<script", "<title", "<meta", "<error"];
    marks.iter().any(|mark| lower.starts_with(mark)).then(|| text.chars().take(60).collect())
}

/// The beginning of a Git LFS pointer.
pub fn pointer(start: &[u8]) -> bool {
    start.starts_with(b"version https://git-lfs.github.com/spec/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_is_instead() {
        let of = |start: &[u8]| mistaken(start).unwrap_or_default();
        assert_eq!(of(b""), "an empty file");
        assert!(
            of(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
                .starts_with("a Git LFS pointer")
        );
        assert_eq!(of(b"\n<!DOCTYPE html><p>x"), "a web page that begins with \"<!DOCTYPE html><p>x\"");
        assert!(of("\u{feff}<HTML lang=en>".as_bytes()).starts_with("a web page"));
        assert_eq!(of(b"\x89PNG\r\n\x1a\nxxxx"), "a PNG image");
        assert!(of(b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code>").starts_with("a web page"));
        assert!(of(b"<!-- a --> <!-- b -->\n<!DOCTYPE html>").starts_with("a web page"));
        assert!(of(b"<title>Too many downloads</title>").starts_with("a web page"));
        let is_one = |extension: &str, start: &[u8]| form(extension).unwrap().1(start);
        assert!(
            is_one("safetensors", b"\x10\0\0\0\0\0\0\0{\"a\"") && !is_one("safetensors", b"{\"error\": 404}")
        );
        assert!(is_one("zip", b"PK\x05\x06") && !is_one("npz", b"zip") && !is_one("png", b"\xff\xd8"));
        for other in [&b"{\"a\": 1}"[..], b"plain text", b"<", b"\x80\x02}"] {
            assert_eq!(of(other), "", "{other:?}");
        }
    }
}
