//! Leaves out of a manifest what tells of a machine: paths, hosts and users.

use serde_json::Value as Json;

/// The same value without folders in its absolute paths.
pub(super) fn json(value: Json) -> Json {
    match value {
        Json::String(text) => Json::String(self::text(&text)),
        Json::Array(items) => items.into_iter().map(json).collect(),
        Json::Object(map) => map.into_iter().map(|(key, value)| (key, json(value))).collect(),
        other => other,
    }
}

/// A text whose absolute paths are cut to their last part.
pub(super) fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let ends = |c: char| c.is_whitespace() || "\"'`,;:()[]{}<>=".contains(c);
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(ends).unwrap_or(rest.len());
        let (word, more) = rest.split_at(end);
        // `https://host/path` comes as `https`, `:` and `//host/path`.
        let absolute = (word.starts_with('/')
            && word.trim_end_matches('/').rfind('/') > Some(0)
            && !word.starts_with("//"))
            || word.starts_with("~/");
        out +=
            if absolute { word.trim_end_matches('/').rsplit('/').next().unwrap_or_default() } else { word };
        let separator = more.chars().next().map_or(0, char::len_utf8);
        out += &more[..separator];
        rest = &more[separator..];
    }
    out
}

/// A manifest without them.
pub(super) fn manifest(mut value: Json) -> Json {
    if let Some(map) = value.as_object_mut() {
        map.remove("root");
    }
    for stage in value.get_mut("stages").and_then(Json::as_array_mut).into_iter().flatten() {
        for key in ["workers", "nodes"] {
            if let Some(list) = stage.pointer_mut(&format!("/workers/{key}")) {
                *list = Json::Array(Vec::new());
            }
        }
        let sources = stage.get_mut("sources").and_then(Json::as_object_mut);
        for path in sources.into_iter().flat_map(serde_json::Map::values_mut) {
            if let Some(name) = path
                .as_str()
                .map(|path| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned())
            {
                *path = name.into();
            }
        }
    }
    json(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absolute_paths_lose_their_folders() {
        assert_eq!(text("</b> of /tmp"), "</b> of /tmp", "no folder is named");
        assert_eq!(text("cannot read `/home/ann/a b.png`: no"), "cannot read `a b.png`: no");
        assert_eq!(text("/x/y/ and s3://bucket/key, a/b, 1/2"), "y and s3://bucket/key, a/b, 1/2");
        let whole = json!({ "root": "/home/ann", "stages": [{
            "sources": { "files": "/home/ann/my photos/a.zip" },
            "workers": { "workers": ["7@node1"], "nodes": ["node1"], "lost": 0 },
            "params": { "from": "/home/ann/x", "seed": 3 },
        }]});
        let expected = json!({ "stages": [{
            "sources": { "files": "a.zip" },
            "workers": { "workers": [], "nodes": [], "lost": 0 },
            "params": { "from": "x", "seed": 3 },
        }]});
        assert_eq!(manifest(whole), expected);
    }
}
