//! Fetching from servers that behave, and from those that don't.

use std::sync::Barrier;
use std::time::Duration;

use super::*;
use crate::io::server::{Fault, Server};

const CONTENT: &[u8] = b"the quick brown fox jumps over the lazy dog";
/// `printf 'the quick brown fox jumps over the lazy dog' | sha256sum`
const SHA256: &str = "05c6e08f1d9fdafa03147fcb8f82f124c76d2f70e3d989dc8aadb5e7d7450bec";

/// A folder of downloads, and a client that gives up soon.
struct Downloads {
    folder: tempfile::TempDir,
    client: Client,
}

impl Downloads {
    fn new() -> Self {
        let policy =
            RetryPolicy { attempts: 3, pause: Duration::from_millis(1), longest: Duration::from_secs(2) };
        Self { folder: tempfile::tempdir().unwrap(), client: Client::new(policy) }
    }

    fn fetch(&self, request: &DownloadRequest) -> Result<Finished, String> {
        let fetcher = Fetcher::new(&self.client, self.folder.path()).unwrap();
        fetcher.fetch(request, &mut |_| ()).map_err(|error| error.to_string())
    }

    /// Leaves the files of a killed download.
    fn leave(&self, request: &DownloadRequest, bytes: &[u8], version: Option<&str>) {
        let slot = Slot::new(self.folder.path(), &request.key());
        fs_err::write(slot.part(), bytes).unwrap();
        let note = Note { version: version.map(str::to_owned), ..Note::new("somewhere".into()) };
        slot.save(&note).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs_err::read_dir(self.folder.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn some(range: &str) -> Option<String> {
    Some(range.to_owned())
}

fn known(url: &str) -> DownloadRequest {
    DownloadRequest::at(url, Some(SHA256.to_uppercase()))
}

/// The tag that the server gives the content.
fn tag() -> String {
    format!("\"{}\"", &SHA256[..16])
}

#[test]
fn a_download_is_placed_and_removed() {
    let server = Server::new().file("/f", CONTENT);
    let downloads = Downloads::new();
    let request = known(&server.url("/f"));
    let finished = downloads.fetch(&request).unwrap();
    assert_eq!(finished.fetched, Fetched { bytes: 43, sha256: SHA256.into(), blob: None });
    assert_eq!(fs_err::read(finished.path()).unwrap(), CONTENT);
    let elsewhere = tempfile::tempdir().unwrap();
    finished.place(&elsewhere.path().join("a")).unwrap();
    assert!(finished.place(&elsewhere.path().join("a")).is_err(), "the target exists");
    // Fetched again while in use: it is not downloaded again, and stays until both have removed it.
    let again = downloads.fetch(&request).unwrap();
    finished.remove().unwrap();
    assert!(again.path().exists());
    again.remove().unwrap();
    assert_eq!(downloads.names(), [""; 0]);
    assert_eq!(fs_err::read(elsewhere.path().join("a")).unwrap(), CONTENT);
    assert_eq!(server.ranges("/f"), [None]);
}

#[test]
fn a_download_kept_by_a_link_outlives_its_removal_by_another() {
    let server = Server::new().file("/f", CONTENT);
    let downloads = Downloads::new();
    let request = known(&server.url("/f"));
    let elsewhere = tempfile::tempdir().unwrap();
    let kept = downloads.fetch(&request).unwrap().keep_as(elsewhere.path().join("0"));
    downloads.fetch(&request).unwrap().remove().unwrap();
    assert_eq!(downloads.names(), [""; 0]);
    assert_eq!(fs_err::read(kept.path()).unwrap(), CONTENT);
    kept.place(&elsewhere.path().join("a")).unwrap();
    // Another process started the download again, and was killed.
    downloads.leave(&request, &CONTENT[..9], None);
    kept.remove().unwrap();
    assert!(downloads.names().iter().any(|name| name.ends_with(".part")), "{:?}", downloads.names());
    let names = fs_err::read_dir(elsewhere.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_wrong_address_is_final() {
    let downloads = Downloads {
        client: Client::new(RetryPolicy { pause: Duration::from_secs(3600), ..RetryPolicy::default() }),
        ..Downloads::new()
    };
    assert!(downloads.fetch(&DownloadRequest::at("http://", None)).unwrap_err().starts_with("http://: "));
    let secret = downloads.fetch(&DownloadRequest::at("http://me:pass@/x?key=abc", None)).unwrap_err();
    assert!(!secret.contains("abc") && !secret.contains("pass"), "{secret}");
    assert_eq!(downloads.names(), [""; 0]);
}

#[test]
fn a_server_error_is_retried_when_the_server_asks() {
    let status = |code, retry_after, times| Fault::Status { code, retry_after, times };
    let server = Server::new()
        .file("/f", CONTENT)
        .fault("/f", status(500, None, 1))
        .fault("/f", status(503, Some(1), 2))
        .file("/later", CONTENT)
        .fault("/later", status(429, Some(3), 1))
        .file("/never", CONTENT)
        .fault("/never", status(503, None, 9));
    let downloads = Downloads::new();
    let begun = std::time::Instant::now();
    downloads.fetch(&DownloadRequest::at(&server.url("/f"), None)).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let error = downloads.fetch(&DownloadRequest::at(&server.url("/later?key=abc"), None)).unwrap_err();
    assert!(
        error.ends_with(
            "after 1 attempts without progress: the server answered 429 Too Many Requests, and \
                             asks to wait 3 seconds"
        ),
        "{error}"
    );
    assert!(error.contains("/later?…: ") && !error.contains("abc"), "{error}");
    let error = downloads.fetch(&DownloadRequest::at(&server.url("/never"), None)).unwrap_err();
    assert!(error.contains("gave up after 3 attempts without progress: the server answered 503"), "{error}");
    assert_eq!(server.ranges("/never").len(), 3);
    let error = downloads.fetch(&DownloadRequest::at(&server.url("/none"), None)).unwrap_err();
    assert!(error.ends_with("the server answered 404 Not Found"), "{error}");
    assert_eq!(server.ranges("/none").len(), 1);
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let server = Server::new().file("/f", CONTENT);
    let downloads = Downloads::new();
    let url = server.url("/f");
    let error = downloads.fetch(&DownloadRequest::at(&url, Some("00ff".into()))).unwrap_err();
    assert_eq!(error, format!("{url}: sha256 {SHA256}, expected 00ff"));
    let mut short = known(&url);
    short.expected.bytes = Some(40);
    assert_eq!(downloads.fetch(&short).unwrap_err(), format!("{url}: 43 bytes, expected 40"));
    let mut blob = DownloadRequest::at(&url, None);
    blob.expected = Expected { blob: Some("00ff".into()), bytes: Some(43), ..Expected::default() };
    // `printf 'the quick brown fox jumps over the lazy dog' | git hash-object --stdin`
    let found = "51845765534c7f66e83b49fa20dff226e3721bec";
    assert_eq!(downloads.fetch(&blob).unwrap_err(), format!("{url}: git blob {found}, expected 00ff"));
    assert_eq!(downloads.names(), [""; 0]);
}

#[test]
fn an_old_part_is_resumed_only_with_a_digest_or_a_version() {
    let server = Server::new().file("/f", CONTENT);
    let url = server.url("/f");
    let downloads = Downloads::new();
    let fetch = |request: &DownloadRequest, bytes: &[u8], version: Option<&str>| {
        downloads.leave(request, bytes, version);
        server.forget();
        let finished = downloads.fetch(request).unwrap();
        assert_eq!(fs_err::read(finished.path()).unwrap(), CONTENT);
        finished.remove().unwrap();
        server.asked().into_iter().map(|asked| (asked.range, asked.if_range)).collect::<Vec<_>>()
    };
    let unknown = DownloadRequest::at(&url, None);
    assert_eq!(fetch(&unknown, &CONTENT[..9], None), [(None, None)]);
    assert_eq!(fetch(&unknown, &CONTENT[..9], Some(&tag())), [(some("bytes=9-"), Some(tag()))]);
    assert_eq!(fetch(&unknown, b"old", Some("\"old\"")), [(some("bytes=3-"), some("\"old\""))]);
    // Complete, only the rename was missing.
    assert_eq!(fetch(&unknown, CONTENT, Some(&tag())).len(), 1);
    assert_eq!(fetch(&known(&url), &CONTENT[..9], None), [(some("bytes=9-"), None)]);
    // The digest shows only at the end that the part was of another file.
    assert_eq!(fetch(&known(&url), b"other one", None), [(some("bytes=9-"), None), (None, None)]);
    let mut sized = known(&url);
    sized.expected.bytes = Some(43);
    assert_eq!(fetch(&sized, CONTENT, None), []);
    assert_eq!(fetch(&sized, &CONTENT.repeat(2), None), [(None, None)]);
}

#[test]
fn bytes_from_before_a_power_cut_are_not_trusted() {
    let server = Server::new().file("/f", CONTENT);
    let downloads = Downloads::new();
    let request = DownloadRequest::at(&server.url("/f"), None);
    downloads.leave(&request, &CONTENT[..9], Some(&tag()));
    let slot = Slot::new(downloads.folder.path(), &request.key());
    slot.save(&Note { boot: some("another"), ..slot.note().unwrap() }).unwrap();
    downloads.fetch(&request).unwrap();
    assert_eq!(server.ranges("/f"), [None]);
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let server = Server::new().file("/f", CONTENT).fault("/f", Fault::NoRanges);
    let downloads = Downloads::new();
    downloads.leave(&known(&server.url("/f")), &CONTENT[..9], None);
    assert_eq!(downloads.fetch(&known(&server.url("/f"))).unwrap().fetched.bytes, 43);
    // A server that restarts and breaks off each time makes no progress.
    let server = server.fault("/f", Fault::Drop { after: 9, times: 99 });
    let error = downloads.fetch(&DownloadRequest::at(&server.url("/f"), None)).unwrap_err();
    assert!(error.contains("gave up after 3 attempts"), "{error}");
}

#[test]
fn a_dropped_connection_resumes_where_it_stopped() {
    let server = Server::new().file("/f", CONTENT).fault("/f", Fault::Drop { after: 9, times: 4 });
    let downloads = Downloads::new();
    let finished = downloads.fetch(&DownloadRequest::at(&server.url("/f"), None)).unwrap();
    assert_eq!(finished.fetched.sha256, SHA256);
    let ranges = [None, some("bytes=9-"), some("bytes=18-"), some("bytes=27-"), some("bytes=36-")];
    assert_eq!(server.ranges("/f"), ranges);
    assert!(server.asked()[1..].iter().all(|asked| asked.if_range == Some(tag())));
}

#[test]
fn a_file_that_changes_in_between_is_downloaded_again() {
    let server = Server::new().file("/f", b"old old old").fault("/f", Fault::Drop { after: 9, times: 1 });
    let downloads = Downloads { client: Client::new(RetryPolicy::default()), ..Downloads::new() };
    let request = DownloadRequest::at(&server.url("/f"), None);
    let finished = std::thread::scope(|scope| {
        let fetch = scope.spawn(|| downloads.fetch(&request));
        while server.asked().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        server.put("/f", CONTENT);
        fetch.join().unwrap().unwrap()
    });
    assert_eq!(finished.fetched.sha256, SHA256);
}

#[test]
fn two_files_without_version_are_not_joined() {
    let policy = RetryPolicy { pause: Duration::from_millis(300), ..RetryPolicy::default() };
    // The new file is longer than the old one, or as long.
    for (old, new) in [(&CONTENT[..12], CONTENT), (CONTENT, &CONTENT.to_ascii_uppercase())] {
        let server = Server::new().file("/f", old).fault("/f", Fault::NoTag);
        let server = server.fault("/f", Fault::Drop { after: 9, times: 1 });
        let downloads = Downloads { client: Client::new(policy), ..Downloads::new() };
        let request = DownloadRequest::at(&server.url("/f"), None);
        let finished = std::thread::scope(|scope| {
            let fetch = scope.spawn(|| downloads.fetch(&request));
            while server.asked().is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            server.put("/f", new);
            fetch.join().unwrap().unwrap()
        });
        assert_eq!(fs_err::read(finished.path()).unwrap(), new);
        assert_eq!(server.ranges("/f"), [None, None]);
    }
}

#[test]
fn a_part_of_another_size_is_not_resumed() {
    let server = Server::new().file("/f", CONTENT);
    let downloads = Downloads::new();
    let request = known(&server.url("/f"));
    downloads.leave(&request, b"other one", None);
    let slot = Slot::new(downloads.folder.path(), &request.key());
    slot.save(&Note { total: Some(44), ..slot.note().unwrap() }).unwrap();
    downloads.fetch(&request).unwrap();
    // The size shows at once what a digest would show at the end; either way there are two requests.
    assert_eq!(server.ranges("/f"), [some("bytes=9-"), None]);
    assert_eq!(downloads.names().iter().filter(|name| name.ends_with(".file")).count(), 1);
}

#[test]
fn a_second_fetch_uses_the_file_of_the_first() {
    let slow = Fault::Slow { chunk: 9, pause: Duration::from_millis(50) };
    let server = Server::new().file("/f", CONTENT).fault("/f", slow);
    let downloads = Downloads::new();
    let request = DownloadRequest::at(&server.url("/f"), None);
    let barrier = Barrier::new(4);
    let fetch = || {
        let finished = downloads.fetch(&request).unwrap();
        // Nobody removes it before all have it.
        barrier.wait();
        assert_eq!(fs_err::read(finished.path()).unwrap(), CONTENT);
        barrier.wait();
        finished.remove().unwrap();
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(fetch))));
    assert_eq!(server.ranges("/f"), [None]);
    assert!(!downloads.names().iter().any(|name| name.ends_with(".part")));
}

#[test]
fn a_redirect_keeps_the_range_and_drops_the_token() {
    let cdn = Server::new();
    let hash = "1".repeat(40);
    let hub = Server::new().hub_model("o/r", &hash, &[("big.bin", CONTENT)]).cdn(&cdn).token("hf_secret");
    let downloads = Downloads::new();
    let mut request = known(&hub.url(&format!("/o/r/resolve/{hash}/big.bin")));
    assert!(downloads.fetch(&request).unwrap_err().ends_with("the server answered 401 Unauthorized"));
    request.token = Some(Token::new("hf_secret".into(), &hub.url("")));
    downloads.leave(&request, &CONTENT[..9], None);
    downloads.fetch(&request).unwrap();
    let asked = cdn.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].range.as_deref(), asked[0].authorization.as_deref()), (Some("bytes=9-"), None));
    assert_eq!(hub.asked().last().unwrap().authorization.as_deref(), Some("Bearer hf_secret"));
}

#[test]
fn a_size_is_requested_or_known() {
    let server = Server::new().file("/f", CONTENT).file("/g", CONTENT).fault("/g", Fault::NoLength);
    let downloads = Downloads::new();
    let fetcher = Fetcher::new(&downloads.client, downloads.folder.path()).unwrap();
    let size = |path: &str| fetcher.size(&DownloadRequest::at(&server.url(path), None));
    assert_eq!((size("/f"), size("/g"), size("/none")), (Some(43), None, None));
    let mut sized = DownloadRequest::at("http://nowhere.invalid/f", None);
    sized.expected.bytes = Some(7);
    assert_eq!(fetcher.size(&sized), Some(7));
    assert!(server.ranges("/f").is_empty(), "nothing was downloaded for it");
    assert!(downloads.fetch(&DownloadRequest::at(&server.url("/g"), None)).is_ok());
}

#[test]
fn what_a_server_sends_in_place_of_a_file_is_not_kept() {
    let page = b"\n<!doctype html><title>Sign in</title>".as_slice();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".as_slice();
    let server = Server::new()
        .file("/model.safetensors", page)
        .file("/data.zip", pointer)
        .file("/empty.npy", b"")
        .file("/page.html", page)
        .file("/download", page)
        .file("/error.safetensors", b"{\"error\": \"no access\"}")
        .file("/nothing", b"")
        .file("/.gitkeep", b"")
        .file("/empty.txt", b"");
    let downloads = Downloads::new();
    for (path, found) in [
        ("/model.safetensors?token=1", "the server sent a web page that begins with \"<!doctype html>"),
        ("/data.zip", "the server sent a Git LFS pointer"),
        ("/empty.npy", "the server sent an empty file, expected the file `empty.npy`"),
        ("/download", "the server sent a web page"),
        ("/nothing", "the server sent an empty file"),
        (
            "/error.safetensors",
            "the server sent \"{\\\"error\\\": \\\"no access\\\"}\", which is not how a safetensors file begins",
        ),
    ] {
        let error = downloads.fetch(&DownloadRequest::at(&server.url(path), None)).unwrap_err();
        assert!(error.contains(found), "{error}");
        assert_eq!(downloads.names(), [""; 0], "{path}");
    }
    for path in ["/page.html", "/empty.txt", "/.gitkeep"] {
        downloads.fetch(&DownloadRequest::at(&server.url(path), None)).unwrap().remove().unwrap();
    }
    // A digest says that it is the file.
    let sha256 = crate::io::server::sha256(page);
    downloads.fetch(&DownloadRequest::at(&server.url("/model.safetensors"), Some(sha256))).unwrap();
}

#[test]
fn an_answer_without_a_file_is_an_error() {
    let fault = Fault::Status { code: 204, retry_after: None, times: 9 };
    let server = Server::new().file("/f", CONTENT).fault("/f", fault);
    let downloads = Downloads::new();
    let error = downloads.fetch(&DownloadRequest::at(&server.url("/f"), None)).unwrap_err();
    assert!(error.ends_with("the server answered 204 No Content"), "{error}");
}
