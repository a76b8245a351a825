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

/// The beginning of a web page.
pub fn page(start: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(&start[..start.len().min(512)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    let marks = ["<!doctype html", "<html", "<head", "<body", "<script"];
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
        for other in [&b"{\"a\": 1}"[..], b"plain text", b"<", b"\x80\x02}"] {
            assert_eq!(of(other), "", "{other:?}");
        }
    }
}
