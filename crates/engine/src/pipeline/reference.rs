//! `${…}`: how a value refers to another.

/// `a.b` for `${a.b}` and nothing around it.
pub(super) fn whole_reference(text: &str) -> Option<&str> {
    text.strip_prefix("${")?.strip_suffix('}').filter(|path| !path.contains(['$', '{', '}']))
}
