//! `${…}`: a reference to another value.

/// `a.b` if the text is exactly `${a.b}`.
pub(super) fn whole_reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|path| !path.contains(['$', '{', '}']))
}
