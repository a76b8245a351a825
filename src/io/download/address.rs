//! Web addresses: what of them may be shown, which server they name, where a redirect leads.

use sha2::{Digest, Sha256};
use url::{Origin, Url};

use super::hash::hex;

/// The address without what may be secret: user name, password and query.
pub fn shown(address: &str) -> String {
    let (base, query) = split(address);
    if query.is_empty() { base } else { format!("{base}?…") }
}

/// A name for the address that contains no secret and still distinguishes two addresses.
///
/// User name, password and the parameters of a signature are left out, so that a renewed signature names the same
/// file. The rest of the query may select the file: its hash is part of the name.
pub fn name(address: &str) -> String {
    let (base, query) = split(address);
    let query = unsigned(&query);
    if query.is_empty() {
        return base;
    }
    format!("{base}?{}", &hex(&Sha256::digest(query))[..16])
}

/// The text with every web address in it as its [`name`].
pub fn redact_urls(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut out = String::new();
    let mut done = 0;
    while let Some(at) = ["http://", "https://"].iter().filter_map(|scheme| lower[done..].find(scheme)).min()
    {
        let (before, from) = text[done..].split_at(at);
        let ends = |c: char| c.is_whitespace() || ['"', '\'', '`'].contains(&c);
        let address = from.split(ends).next().unwrap_or(from);
        out = out + before + &name(address);
        done += at + address.len();
    }
    out + &text[done..]
}

/// The signatures of object stores: a parameter that each signature contains, and the names of all its parameters. The
/// other names are too common to identify a signature by themselves.
const SIGNATURES: [(&str, &[&str]); 4] = [
    // Amazon S3 and compatible stores.
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
fn split(address: &str) -> (String, String) {
    if !address.contains(['@', '?', '#']) {
        return (address.to_owned(), String::new());
    }
    let Some(mut url) = Url::parse(address).ok().filter(Url::has_host) else {
        // Any part of what cannot be parsed may be a password.
        let scheme = address.find("://").map_or("", |at| &address[..at + 3]);
        return (format!("{scheme}…"), String::new());
    };
    let query = url.query().unwrap_or_default().to_owned();
    // These fail only without a host.
    let _ = (url.set_username(""), url.set_password(None));
    url.set_query(None);
    url.set_fragment(None);
    (url.into(), query)
}

/// Scheme, host and port: the server that is asked, and so the one that may see a token. An address that cannot be
/// parsed has an origin that equals no other.
pub fn origin(address: &str) -> Origin {
    Url::parse(address).map_or_else(|_| Origin::new_opaque(), |url| url.origin())
}

/// Where a `Location` or `Link` header leads from an address: only ever to a web address.
pub fn join(url: &Url, location: &str) -> Result<Url, String> {
    let url = url.join(location).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!("a redirect to `{other}:`, expected http or https")),
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
            ("https://me@example.org/a", "https://example.org/a"),
            ("https://:pass@example.org/a", "https://example.org/a"),
            ("https://me:p%40ss:w@rd@example.org/a#key=abc", "https://example.org/a"),
            ("HTTPS://me:pass@Example.ORG:443", "https://example.org/"),
            ("HTTPS://example.org:443", "HTTPS://example.org:443"),
            ("https://me:pass@[2001:DB8::1]:8443/a?token=abc", "https://[2001:db8::1]:8443/a?…"),
            ("https:\\\\me:pass@example.org\\a", "https://example.org/a"),
            ("https://example.org/a@b?", "https://example.org/a@b"),
            ("https://me@example.org/a b/%41/ü/../c", "https://example.org/a%20b/%41/c"),
            ("https://me@bücher.example/f", "https://xn--bcher-kva.example/f"),
            ("http://", "http://"),
        ] {
            assert_eq!(shown(url), expected);
        }
        let (one, two) = (name("https://example.org/f?id=1"), name("https://example.org/f?id=2"));
        assert!(one != two && one.starts_with("https://example.org/f?") && !one.contains("id="), "{one}");
    }

    #[test]
    fn an_address_that_cannot_be_parsed_shows_nothing_that_may_be_secret() {
        for (url, expected) in [
            ("http://me:pass@/x?key=abc", "http://…"),
            ("https://me:pa/ss@example.org/", "https://…"),
            ("https://me:pass@example.org:port/", "https://…"),
            ("https://[::1?key=abc", "https://…"),
            ("me:pass@example.org/x", "…"),
            ("https://example.org:port/", "https://example.org:port/"),
        ] {
            assert_eq!((shown(url).as_str(), name(url).as_str()), (expected, expected));
        }
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
        // Without a signature, the same names may select the file.
        assert_ne!(name("https://example.org/f?se=1"), name("https://example.org/f?se=2"));
        assert_ne!(name("https://example.org/f?token=1"), name("https://example.org/f?token=2"));
    }

    #[test]
    fn addresses_in_a_text_lose_their_secrets() {
        let text =
            "data.from = \"https://me:pass@a.example/f\" or 'http://b.example/g?sig=0a', else https://c/";
        let expected = "data.from = \"https://a.example/f\" or 'http://b.example/g', else https://c/";
        assert_eq!(redact_urls(text), expected);
        assert_eq!(redact_urls("é HTTPS://me:pass@A.example/f é"), "é https://a.example/f é");
        assert_eq!(
            redact_urls("see https://a.example, or http://[::1]:81/x."),
            "see https://a.example, or http://[::1]:81/x."
        );
        assert_eq!(redact_urls("https://me:pass@ https://me:pass@[::1]/x"), "https://… https://[::1]/x");
        assert_eq!(redact_urls("loss.time_samples=4"), "loss.time_samples=4");
    }

    #[test]
    fn an_origin_has_a_port() {
        for (one, two) in [
            ("https://Hub.example/a", "HTTPS://hub.example:443/b?c"),
            ("http://u:p@127.0.0.1:81?q", "http://127.0.0.1:81/"),
            ("http://127.0.0.1", "http://127.1:80"),
            ("http://[::1]/x", "http://u@[0:0:0:0:0:0:0:1]:80/y"),
            ("https://hub.example\\@evil.example/", "https://hub.example"),
        ] {
            assert_eq!(origin(one), origin(two));
        }
        for (one, two) in [
            ("http://127.0.0.1:81", "http://127.0.0.1:82"),
            ("http://hub.example", "https://hub.example"),
            ("http://hub.example:443", "https://hub.example:443"),
            ("http://[::1]/x", "http://[::1]:8080/x"),
            ("https://hub.example", "https://hub.example.evil.example"),
            ("https://hub.example@evil.example/", "https://hub.example"),
            ("https://hub.example:pass@evil.example/", "https://hub.example"),
            ("https://evil.example/https://hub.example", "https://hub.example"),
            ("https://evil.example#@hub.example", "https://hub.example"),
            ("https://hub.example.", "https://hub.example"),
            ("http://", "http://"),
        ] {
            assert_ne!(origin(one), origin(two));
        }
    }

    #[test]
    fn redirects_are_relative_or_not() {
        let join = |url: &str, location: &str| join(&Url::parse(url).unwrap(), location).map(String::from);
        for (location, expected) in [
            ("https://cdn.example/x?y=a:b", "https://cdn.example/x?y=a:b"),
            ("HTTPS://CDN.example:443/X", "https://cdn.example/X"),
            ("//cdn.example/x", "http://cdn.example/x"),
            ("/x?to=http://z", "http://hub.example:8080/x?to=http://z"),
            ("x", "http://hub.example:8080/a/x"),
            ("../x y", "http://hub.example:8080/x%20y"),
            ("?d", "http://hub.example:8080/a/b?d"),
            ("http:x", "http://hub.example:8080/a/x"),
            ("http:/x", "http://hub.example:8080/x"),
            ("https:x", "https://x/"),
            ("\\\\cdn.example\\x", "http://cdn.example/x"),
            ("//[::1]:81/x", "http://[::1]:81/x"),
            ("/a%2Fb%3f", "http://hub.example:8080/a%2Fb%3f"),
        ] {
            assert_eq!(join("http://hub.example:8080/a/b?c=/d", location).as_deref(), Ok(expected));
        }
        assert_eq!(join("http://hub.example", "x").as_deref(), Ok("http://hub.example/x"));
        // The user of an address is for its own server.
        assert_eq!(join("http://u:p@hub.example/a", "/x").as_deref(), Ok("http://u:p@hub.example/x"));
        assert_eq!(
            join("http://u:p@hub.example/a", "//cdn.example/x").as_deref(),
            Ok("http://cdn.example/x")
        );
        for location in ["file:///etc/passwd", "ftp://hub.example/x", "data:,x", "http://[::1", "//"] {
            assert!(join("http://hub.example/", location).is_err(), "{location}");
        }
    }
}
