//! Web addresses: what of them may be shown, whose they are, where a redirect leads.

use sha2::{Digest, Sha256};

use super::hash::hex;

/// The address without what may be secret: a user's name and password, and the query.
pub fn shown(url: &str) -> String {
    let (base, query) = parts(url);
    if query.is_empty() { base } else { format!("{base}?…") }
}

/// A name of the address that keeps its secrets and still tells two addresses apart.
pub fn name(url: &str) -> String {
    let (base, query) = parts(url);
    if query.is_empty() {
        return base;
    }
    format!("{base}?{}", &hex(&Sha256::digest(query))[..16])
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
