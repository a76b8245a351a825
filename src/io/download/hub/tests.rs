//! Answers of the test server that imitates the Hub.

use super::*;
use crate::io::download::RetryPolicy;
use crate::io::server::{Server, sha256};

const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

fn server() -> Server {
    Server::new().hub_dataset(
        "o/r",
        COMMIT,
        &[
            ("README.md", b"read me"),
            ("mscoco/model.7z", b"a model"),
            ("mscoco/deep/er/x.7z.002", b"two"),
            ("mscoco/deep/er/x.7z.001", b"one"),
            ("mscoco/deep/a b.txt", b"text"),
        ],
    )
}

fn client() -> Client {
    Client::new(RetryPolicy { attempts: 1, ..RetryPolicy::default() })
}

fn found(server: &Server, address: &str) -> Result<Vec<String>, String> {
    let hub = Hub::new(&server.url("/"), None);
    let address = HubAddress::parse(address).unwrap();
    let files =
        hub.commit(&client(), &address.repo).and_then(|commit| hub.files(&client(), &address, &commit));
    files.map(|files| files.into_iter().map(|file| file.path).collect()).map_err(|error| error.to_string())
}

#[test]
fn an_address_is_a_file_a_folder_or_a_pattern() {
    for page in [1000, 2] {
        let server = server().page(page);
        let is =
            |address: &str, files: &[&str]| assert_eq!(found(&server, address).unwrap(), files, "{address}");
        is("hf://datasets/o/r/mscoco/model.7z", &["mscoco/model.7z"]);
        is("hf://datasets/o/r/README.md", &["README.md"]);
        let deep = ["mscoco/deep/a b.txt", "mscoco/deep/er/x.7z.001", "mscoco/deep/er/x.7z.002"];
        is("hf://datasets/o/r/mscoco/deep", &deep);
        is(&format!("hf://datasets/o/r@{COMMIT}/mscoco/deep/"), &deep);
        is("hf://datasets/o/r/mscoco/deep/er/x.7z.*", &deep[1..]);
        is("hf://datasets/o/r/mscoco/d*/e*/*", &deep[1..]);
        is("hf://datasets/o/r/*.md", &["README.md"]);
        assert_eq!(found(&server, "hf://datasets/o/r").unwrap().len(), 5);
        let a_b = HubAddress::parse("hf://datasets/o/r/mscoco/deep/a b.txt").unwrap();
        let hub = Hub::new(&server.url(""), None);
        let files = hub.files(&client(), &a_b, COMMIT).unwrap();
        let request = hub.request(&a_b.repo, COMMIT, &files[0]);
        assert_eq!(request.url, server.url(&format!("/datasets/o/r/resolve/{COMMIT}/mscoco/deep/a%20b.txt")));
        assert_eq!(request.name, "hf://datasets/o/r@main/mscoco/deep/a b.txt");
        // `printf text | git hash-object --stdin`
        assert_eq!(request.expected.blob.as_deref(), Some("f3a34851d44d6b97c90fbb99dd3d18c261b9a237"));
        assert_eq!(request.expected.bytes, Some(4));
    }
}

#[test]
fn the_digest_of_a_large_file_is_known_before_its_download() {
    let server = server();
    let hub = Hub::new(&server.url(""), None);
    let model = HubAddress::parse("hf://datasets/o/r/mscoco/model.7z").unwrap();
    let files = hub.files(&client(), &model, COMMIT).unwrap();
    let expected = Expected { sha256: Some(sha256(b"a model")), blob: None, bytes: Some(7) };
    assert_eq!(files[0].expected, expected);
}

#[test]
fn a_missing_path_is_reported_with_similar_ones() {
    let server = server();
    for (address, message) in [
        (
            "hf://datasets/o/r/mscoco/modle.7z",
            "hf://datasets/o/r@main/mscoco/modle.7z: there is no such file or folder; there is `mscoco/model.7z`",
        ),
        ("hf://datasets/o/r/mscocoo/", "hf://datasets/o/r@main/mscocoo: there is no such folder"),
        ("hf://datasets/o/r/mscoco/y.*", "hf://datasets/o/r@main/mscoco/y.*: no file matches"),
        (
            "hf://datasets/o/r@v9/x",
            "hf://datasets/o/r@v9: the Hub answered 404 Not Found: `o/r` has no revision `v9`",
        ),
        (
            "hf://o/r/x",
            "hf://o/r@main: the Hub answered 404 Not Found: there is no `o/r`, or it is private: set HF_TOKEN to",
        ),
    ] {
        let error = found(&server, address).unwrap_err();
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn a_refusal_names_its_likely_cause() {
    let repo = HubAddress::parse("hf://datasets/o/r/x").unwrap().repo;
    let says = |status: u16, code: Option<&str>, token: bool| {
        likely(ureq::http::StatusCode::from_u16(status).unwrap(), code, &repo, token)
    };
    assert!(says(401, None, false).contains("private or gated: set HF_TOKEN"));
    assert!(
        says(401, Some("GatedRepo"), false).contains("is gated: ask for access on its page; set HF_TOKEN")
    );
    assert!(says(403, None, true).contains("the token that was sent has no access to it"));
    let server = server().token("hf_secret");
    let error = found(&server, "hf://datasets/o/r/x").unwrap_err();
    assert!(error.contains("401 Unauthorized: there is no `datasets/o/r`, or it is private"), "{error}");
    let hub = Hub::new(&server.url(""), Some("hf_secret".into()));
    assert_eq!(hub.commit(&client(), &repo).unwrap(), COMMIT);
    assert!(!format!("{hub:?}").contains("hf_secret"));
}

#[test]
fn a_path_that_leads_outside_the_repository_is_refused() {
    let server = Server::new().hub_dataset("o/r", COMMIT, &[("a/../../x.bin", b"evil")]);
    let error = found(&server, "hf://datasets/o/r/a/").unwrap_err();
    assert!(error.contains("leads outside the repository"), "{error}");
}
