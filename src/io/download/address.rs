//! Web addresses: what of them may be shown, whose they are, where a redirect leads.

use sha2::{Digest, Sha256};

use super::hash::hex;

/// The address without what may be secret: a user's name and password, and the query.
pub fn shown(url: &str) -> String {
    let (base, query) = parts(url);
    if query.is_empty() { base } else { format!("{base}?…") }
}

/// A name of the address that keeps its secrets and still tells two addresses apart.
///
/// A user, a password and the signature of an address that holds for a while are left out, so that a renewed one
/// names the same file; of the rest of the query, which may choose the file, a hash stays.
pub fn name(url: &str) -> String {
    let (base, query) = parts(url);
    let query = unsigned(query);
    if query.is_empty() {
        return base;
    }
    format!("{base}?{}", &hex(&Sha256::digest(query))[..16])
}

/// A text with every web address in it as its [`name`].
pub fn redact_urls(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = ["http://", "https://"].iter().filter_map(|scheme| rest.find(scheme)).min() {
        let (before, from) = rest.split_at(at);
        let ends = |c: char| c.is_whitespace() || ['"', '\'', '`'].contains(&c);
        let (address, after) = from.split_at(from.find(ends).unwrap_or(from.len()));
        out.push_str(before);
        out.push_str(&name(address));
        rest = after;
    }
    out + rest
}

/// The signatures of the stores that sign addresses: how their parameters begin or are called, and one that is
/// always among them, for the others are called as anything might be.
const SIGNATURES: [(&str, &[&str]); 4] = [
    // Amazon S3 and those that speak as it does.
    ("x-amz-signature", &["x-amz-*"]),
    // Google Cloud Storage.
    ("x-goog-signature", &["x-goog-*"]),
    // CloudFront, and the older forms of Amazon and Google.
    ("signature", &["signature", "expires", "policy", "key-pair-id", "awsaccesskeyid", "googleaccessid"]),
    // Azure Blob Storage.
    (
        "sig",
        &["sig", "se", "st", "sp", "sv", "sr", "spr", "sip", "skoid", "sktid", "skt", "ske", "sks", "skv"],
    ),
];

/// The query without the parameters of a signature.
fn unsigned(query: &str) -> String {
    let key = |part: &str| part.split('=').next().unwrap_or(part).to_ascii_lowercase();
    let mut parts: Vec<&str> = query.split('&').collect();
    for (sure, names) in SIGNATURES {
        if parts.iter().any(|part| key(part) == sure) {
            parts.retain(|part| {
                let key = key(part);
                !names
                    .iter()
                    .any(|name| name.strip_suffix('*').map_or(key == *name, |start| key.starts_with(start)))
            });
        }
    }
    parts.join("&")
}

/// The address without user and query, and the query.
fn parts(url: &str) -> (String, &str) {
    let whole = url.split('#').next().unwrap_or(url);
    let (base, query) = whole.split_once('?').unwrap_or((whole, ""));
    let (scheme, rest) = base.split_once("://").unwrap_or(("", base));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    (format!("{scheme}{host}{path}"), query)
}

/// Scheme, host and port: who is asked, and so who may see a token.
pub fn origin(url: &str) -> (String, String, u16) {
    let (base, _) = parts(url);
    let (scheme, rest) = base.split_once("://").unwrap_or(("", &base));
    let scheme = scheme.to_ascii_lowercase();
    let authority = rest.split('/').next().unwrap_or(rest).to_ascii_lowercase();
    let usual = if scheme == "http" { 80 } else { 443 };
    // An IPv6 address has colons inside its brackets.
    let port = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    match port.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?))) {
        Some((host, port)) => (scheme, host, port),
        None => (scheme, authority, usual),
    }
}

/// Where a `Location` header leads from an address.
pub fn join(url: &str, location: &str) -> String {
    let scheme_end = url.find("://").map_or(0, |at| at + 3);
    let path_start = url[scheme_end..].find('/').map_or(url.len(), |at| scheme_end + at);
    let is_absolute = location.split(['/', '?', '#']).next().is_some_and(|start| start.ends_with(':'));
    if is_absolute {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{}:{location}", url[..scheme_end].trim_end_matches("://"))
    } else if location.starts_with('/') {
        format!("{}{location}", &url[..path_start])
    } else {
        let path = url.split(['?', '#']).next().unwrap_or(url);
        let folder = path.rfind('/').filter(|at| *at >= path_start).map_or(path, |at| &path[..at]);
        format!("{folder}/{location}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        for (url, expected) in [
            ("https://example.org/a/b.zip", "https://example.org/a/b.zip"),
            ("https://me:pass@example.org:8443/a?token=abc#x", "https://example.org:8443/a?…"),
            ("https://example.org/a@b?", "https://example.org/a@b"),
            ("http://", "http://"),
        ] {
            assert_eq!(shown(url), expected);
        }
        let (one, two) = (name("https://example.org/f?id=1"), name("https://example.org/f?id=2"));
        assert!(one != two && one.starts_with("https://example.org/f?") && !one.contains("id="), "{one}");
    }

    #[test]
    fn a_renewed_signature_names_the_same_file() {
        let plain = name("https://example.org/f?versionId=7&x=a%20b");
        for signed in [
            "https://example.org/f?versionId=7&x=a%20b&X-Amz-Signature=0a&X-Amz-Date=2024&X-Amz-Credential=me",
            "https://me:pass@example.org/f?X-Goog-Signature=0a&versionId=7&X-Goog-Expires=9&x=a%20b",
            "https://example.org/f?versionId=7&Expires=1&x=a%20b&Signature=0a&Key-Pair-Id=k",
            "https://example.org/f?sv=2021&se=2024&versionId=7&x=a%20b&sr=b&sp=r&sig=0a%3D",
        ] {
            assert_eq!(name(signed), plain);
        }
        assert_eq!(name("https://example.org/f?X-Amz-Signature=0a&X-Amz-Date=2024"), "https://example.org/f");
        // Without a signature they may be anything.
        assert_ne!(name("https://example.org/f?se=1"), name("https://example.org/f?se=2"));
        assert_ne!(name("https://example.org/f?token=1"), name("https://example.org/f?token=2"));
    }

    #[test]
    fn addresses_in_a_text_lose_their_secrets() {
        let text =
            "data.from = \"https://me:pass@a.example/f\" or 'http://b.example/g?sig=0a', else https://c/";
        let expected = "data.from = \"https://a.example/f\" or 'http://b.example/g', else https://c/";
        assert_eq!(redact_urls(text), expected);
        assert_eq!(redact_urls("loss.time_samples=4"), "loss.time_samples=4");
    }

    #[test]
    fn an_origin_has_a_port() {
        assert_eq!(origin("https://Hub.example/a"), ("https".into(), "hub.example".into(), 443));
        assert_eq!(origin("http://u:p@127.0.0.1:81?q"), ("http".into(), "127.0.0.1".into(), 81));
        assert_ne!(origin("http://127.0.0.1:81"), origin("http://127.0.0.1:82"));
        assert_ne!(origin("http://hub.example"), origin("https://hub.example"));
        assert_eq!(origin("http://[::1]/x"), ("http".into(), "[::1]".into(), 80));
        assert_eq!(origin("http://[::1]:8080/x"), ("http".into(), "[::1]".into(), 8080));
    }

    #[test]
    fn redirects_are_relative_or_not() {
        for (location, expected) in [
            ("https://cdn.example/x?y=a:b", "https://cdn.example/x?y=a:b"),
            ("//cdn.example/x", "http://cdn.example/x"),
            ("/x?to=http://z", "http://hub.example:80/x?to=http://z"),
            ("x", "http://hub.example:80/a/x"),
        ] {
            assert_eq!(join("http://hub.example:80/a/b?c=/d", location), expected);
        }
        assert_eq!(join("http://hub.example", "x"), "http://hub.example/x");
    }
}
