//! Fetching from servers that behave, and from those that don't.

use std::sync::Barrier;
use std::time::Duration;

use super::*;
use crate::io::server::{Fault, Server};

const CONTENT: &[u8] = b"the quick brown fox jumps over the lazy dog";
/// `printf 'the quick brown fox jumps over the lazy dog' | sha256sum`
const SHA256: &str = "05c6e08f1d9fdafa03147fcb8f82f124c76d2f70e3d989dc8aadb5e7d7450bec";

/// A folder of downloads, and a client without much patience.
struct MeasureBackend {
    folder: tempfile::TempDir,
    client: Client,
}

impl MeasureBackend {
    fn new() -> Self {
        let patience =
            RetryPolicy { attempts: 3, pause: Duration::from_millis(1), longest: Duration::from_secs(2) };
        Self { folder: tempfile::tempdir().unwrap(), client: Client::new(patience) }
    }

    fn fetch(&self, wanted: &DownloadRequest) -> Result<Finished, String> {
        let fetcher = Fetcher::new(&self.client, self.folder.path()).unwrap();
        fetcher.fetch(wanted, &mut |_| ()).map_err(|error| error.to_string())
    }

    /// Leaves what a killed download leaves.
    fn leave(&self, wanted: &DownloadRequest, bytes: &[u8], version: Option<&str>) {
        let slot = Slot::new(self.folder.path(), &wanted.key());
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
fn a_download_arrives_is_placed_and_goes() {
    let server = Server::new().file("/f", CONTENT);
    let bench = MeasureBackend::new();
    let wanted = known(&server.url("/f"));
    let finished = bench.fetch(&wanted).unwrap();
    assert_eq!(finished.fetched, Fetched { bytes: 43, sha256: SHA256.into(), blob: None });
    assert_eq!(fs_err::read(finished.path()).unwrap(), CONTENT);
    let elsewhere = tempfile::tempdir().unwrap();
    finished.place(&elsewhere.path().join("a")).unwrap();
    assert!(finished.place(&elsewhere.path().join("a")).is_err(), "something stands there");
    // Asked for again while it is held: it need not come again, and stays until both have let go of it.
    let again = bench.fetch(&wanted).unwrap();
    finished.remove().unwrap();
    assert!(again.path().exists());
    again.remove().unwrap();
    assert_eq!(bench.names(), [""; 0]);
    assert_eq!(fs_err::read(elsewhere.path().join("a")).unwrap(), CONTENT);
    assert_eq!(server.ranges("/f"), [None]);
}

#[test]
fn a_download_kept_by_a_name_outlives_its_removal_by_another() {
    let server = Server::new().file("/f", CONTENT);
    let bench = MeasureBackend::new();
    let wanted = known(&server.url("/f"));
    let elsewhere = tempfile::tempdir().unwrap();
    let kept = bench.fetch(&wanted).unwrap().keep_as(elsewhere.path().join("0"));
    bench.fetch(&wanted).unwrap().remove().unwrap();
    assert_eq!(bench.names(), [""; 0]);
    assert_eq!(fs_err::read(kept.path()).unwrap(), CONTENT);
    kept.place(&elsewhere.path().join("a")).unwrap();
    // Another one began to bring it again, and was killed.
    bench.leave(&wanted, &CONTENT[..9], None);
    kept.remove().unwrap();
    assert!(bench.names().iter().any(|name| name.ends_with(".part")), "{:?}", bench.names());
    let names = fs_err::read_dir(elsewhere.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["a"]);
}

#[test]
fn a_wrong_address_is_final() {
    let bench = MeasureBackend {
        client: Client::new(RetryPolicy { pause: Duration::from_secs(3600), ..RetryPolicy::default() }),
        ..MeasureBackend::new()
    };
    assert!(bench.fetch(&DownloadRequest::at("http://", None)).unwrap_err().starts_with("http://: "));
    let secret = bench.fetch(&DownloadRequest::at("http://me:pass@/x?key=abc", None)).unwrap_err();
    assert!(!secret.contains("abc") && !secret.contains("pass"), "{secret}");
    assert_eq!(bench.names(), [""; 0]);
}

#[test]
fn a_server_error_is_asked_again_when_the_server_says() {
    let status = |code, retry_after, times| Fault::Status { code, retry_after, times };
    let server = Server::new()
        .file("/f", CONTENT)
        .fault("/f", status(500, None, 1))
        .fault("/f", status(503, Some(1), 2))
        .file("/later", CONTENT)
        .fault("/later", status(429, Some(3), 1))
        .file("/never", CONTENT)
        .fault("/never", status(503, None, 9));
    let bench = MeasureBackend::new();
    let begun = std::time::Instant::now();
    bench.fetch(&DownloadRequest::at(&server.url("/f"), None)).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let error = bench.fetch(&DownloadRequest::at(&server.url("/later?key=abc"), None)).unwrap_err();
    assert!(
        error.ends_with(
            "after 1 attempts without progress: the server answered 429 Too Many Requests, and \
                             asks to wait 3 seconds"
        ),
        "{error}"
    );
    assert!(error.contains("/later?…: ") && !error.contains("abc"), "{error}");
    let error = bench.fetch(&DownloadRequest::at(&server.url("/never"), None)).unwrap_err();
    assert!(error.contains("gave up after 3 attempts without progress: the server answered 503"), "{error}");
    assert_eq!(server.ranges("/never").len(), 3);
    let error = bench.fetch(&DownloadRequest::at(&server.url("/none"), None)).unwrap_err();
    assert!(error.ends_with("the server answered 404 Not Found"), "{error}");
    assert_eq!(server.ranges("/none").len(), 1);
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let server = Server::new().file("/f", CONTENT);
    let bench = MeasureBackend::new();
    let url = server.url("/f");
    let error = bench.fetch(&DownloadRequest::at(&url, Some("00ff".into()))).unwrap_err();
    assert_eq!(error, format!("{url}: sha256 {SHA256}, expected 00ff"));
    let mut short = known(&url);
    short.expected.bytes = Some(40);
    assert_eq!(bench.fetch(&short).unwrap_err(), format!("{url}: 43 bytes, expected 40"));
    let mut blob = DownloadRequest::at(&url, None);
    blob.expected = Expected { blob: Some("00ff".into()), bytes: Some(43), ..Expected::default() };
    // `printf 'the quick brown fox jumps over the lazy dog' | git hash-object --stdin`
    let found = "51845765534c7f66e83b49fa20dff226e3721bec";
    assert_eq!(bench.fetch(&blob).unwrap_err(), format!("{url}: git blob {found}, expected 00ff"));
    assert_eq!(bench.names(), [""; 0]);
}

#[test]
fn an_old_part_is_continued_where_something_tells_that_it_belongs() {
    let server = Server::new().file("/f", CONTENT);
    let url = server.url("/f");
    let bench = MeasureBackend::new();
    let fetch = |wanted: &DownloadRequest, bytes: &[u8], version: Option<&str>| {
        bench.leave(wanted, bytes, version);
        server.forget();
        let finished = bench.fetch(wanted).unwrap();
        assert_eq!(fs_err::read(finished.path()).unwrap(), CONTENT);
        finished.remove().unwrap();
        server.asked().into_iter().map(|asked| (asked.range, asked.if_range)).collect::<Vec<_>>()
    };
    let unknown = DownloadRequest::at(&url, None);
    assert_eq!(fetch(&unknown, &CONTENT[..9], None), [(None, None)]);
    assert_eq!(fetch(&unknown, &CONTENT[..9], Some(&tag())), [(some("bytes=9-"), Some(tag()))]);
    assert_eq!(fetch(&unknown, b"old", Some("\"old\"")), [(some("bytes=3-"), some("\"old\""))]);
    // All was there, only the renaming was missing.
    assert_eq!(fetch(&unknown, CONTENT, Some(&tag())).len(), 1);
    assert_eq!(fetch(&known(&url), &CONTENT[..9], None), [(some("bytes=9-"), None)]);
    // A digest tells too late that the part was of another file.
    assert_eq!(fetch(&known(&url), b"other one", None), [(some("bytes=9-"), None), (None, None)]);
    let mut sized = known(&url);
    sized.expected.bytes = Some(43);
    assert_eq!(fetch(&sized, CONTENT, None), []);
    assert_eq!(fetch(&sized, &CONTENT.repeat(2), None), [(None, None)]);
}

#[test]
fn bytes_from_before_a_power_cut_are_not_trusted() {
    let server = Server::new().file("/f", CONTENT);
    let bench = MeasureBackend::new();
    let wanted = DownloadRequest::at(&server.url("/f"), None);
    bench.leave(&wanted, &CONTENT[..9], Some(&tag()));
    let slot = Slot::new(bench.folder.path(), &wanted.key());
    slot.save(&Note { boot: some("another"), ..slot.note().unwrap() }).unwrap();
    bench.fetch(&wanted).unwrap();
    assert_eq!(server.ranges("/f"), [None]);
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let server = Server::new().file("/f", CONTENT).fault("/f", Fault::NoRanges);
    let bench = MeasureBackend::new();
    bench.leave(&known(&server.url("/f")), &CONTENT[..9], None);
    assert_eq!(bench.fetch(&known(&server.url("/f"))).unwrap().fetched.bytes, 43);
    // One that always begins anew and always breaks off is given up.
    let server = server.fault("/f", Fault::Drop { after: 9, times: 99 });
    let error = bench.fetch(&DownloadRequest::at(&server.url("/f"), None)).unwrap_err();
    assert!(error.contains("gave up after 3 attempts"), "{error}");
}

#[test]
fn a_dropped_connection_goes_on_where_it_stopped() {
    let server = Server::new().file("/f", CONTENT).fault("/f", Fault::Drop { after: 9, times: 4 });
    let bench = MeasureBackend::new();
    let finished = bench.fetch(&DownloadRequest::at(&server.url("/f"), None)).unwrap();
    assert_eq!(finished.fetched.sha256, SHA256);
    let ranges = [None, some("bytes=9-"), some("bytes=18-"), some("bytes=27-"), some("bytes=36-")];
    assert_eq!(server.ranges("/f"), ranges);
    assert!(server.asked()[1..].iter().all(|asked| asked.if_range == Some(tag())));
}

#[test]
fn a_file_that_changes_in_between_is_read_anew() {
    let server = Server::new().file("/f", b"old old old").fault("/f", Fault::Drop { after: 9, times: 1 });
    let bench = MeasureBackend { client: Client::new(RetryPolicy::default()), ..MeasureBackend::new() };
    let wanted = DownloadRequest::at(&server.url("/f"), None);
    let finished = std::thread::scope(|scope| {
        let fetch = scope.spawn(|| bench.fetch(&wanted));
        while server.asked().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        server.put("/f", CONTENT);
        fetch.join().unwrap().unwrap()
    });
    assert_eq!(finished.fetched.sha256, SHA256);
}

#[test]
fn two_files_are_not_joined_where_nothing_tells_them_apart() {
    let patience = RetryPolicy { pause: Duration::from_millis(300), ..RetryPolicy::default() };
    // The new file is longer than the old one, or as long.
    for (old, new) in [(&CONTENT[..12], CONTENT), (CONTENT, &CONTENT.to_ascii_uppercase())] {
        let server = Server::new().file("/f", old).fault("/f", Fault::NoTag);
        let server = server.fault("/f", Fault::Drop { after: 9, times: 1 });
        let bench = MeasureBackend { client: Client::new(patience), ..MeasureBackend::new() };
        let wanted = DownloadRequest::at(&server.url("/f"), None);
        let finished = std::thread::scope(|scope| {
            let fetch = scope.spawn(|| bench.fetch(&wanted));
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
fn a_file_of_another_size_is_not_gone_on_with() {
    let server = Server::new().file("/f", CONTENT);
    let bench = MeasureBackend::new();
    let wanted = known(&server.url("/f"));
    bench.leave(&wanted, b"other one", None);
    let slot = Slot::new(bench.folder.path(), &wanted.key());
    slot.save(&Note { total: Some(44), ..slot.note().unwrap() }).unwrap();
    bench.fetch(&wanted).unwrap();
    // The size told at once what a digest tells at the end; either way it is asked for twice.
    assert_eq!(server.ranges("/f"), [some("bytes=9-"), None]);
    assert_eq!(bench.names().iter().filter(|name| name.ends_with(".file")).count(), 1);
}

#[test]
fn who_comes_second_takes_what_the_first_one_finished() {
    let slow = Fault::Slow { chunk: 9, pause: Duration::from_millis(50) };
    let server = Server::new().file("/f", CONTENT).fault("/f", slow);
    let bench = MeasureBackend::new();
    let wanted = DownloadRequest::at(&server.url("/f"), None);
    let barrier = Barrier::new(4);
    let fetch = || {
        let finished = bench.fetch(&wanted).unwrap();
        // Nobody lets go of it before all have it.
        barrier.wait();
        assert_eq!(fs_err::read(finished.path()).unwrap(), CONTENT);
        barrier.wait();
        finished.remove().unwrap();
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(fetch))));
    assert_eq!(server.ranges("/f"), [None]);
    assert!(!bench.names().iter().any(|name| name.ends_with(".part")));
}

#[test]
fn a_redirect_takes_the_range_along_and_leaves_the_token() {
    let cdn = Server::new();
    let hash = "1".repeat(40);
    let hub = Server::new().hub_model("o/r", &hash, &[("big.bin", CONTENT)]).cdn(&cdn).token("hf_secret");
    let bench = MeasureBackend::new();
    let mut wanted = known(&hub.url(&format!("/o/r/resolve/{hash}/big.bin")));
    assert!(bench.fetch(&wanted).unwrap_err().ends_with("the server answered 401 Unauthorized"));
    wanted.token = Some(Token::new("hf_secret".into(), hub.url("")));
    bench.leave(&wanted, &CONTENT[..9], None);
    bench.fetch(&wanted).unwrap();
    let asked = cdn.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].range.as_deref(), asked[0].authorization.as_deref()), (Some("bytes=9-"), None));
    assert_eq!(hub.asked().last().unwrap().authorization.as_deref(), Some("Bearer hf_secret"));
}

#[test]
fn a_size_is_asked_for_or_known() {
    let server = Server::new().file("/f", CONTENT).file("/g", CONTENT).fault("/g", Fault::NoLength);
    let bench = MeasureBackend::new();
    let fetcher = Fetcher::new(&bench.client, bench.folder.path()).unwrap();
    let size = |path: &str| fetcher.size(&DownloadRequest::at(&server.url(path), None));
    assert_eq!((size("/f"), size("/g"), size("/none")), (Some(43), None, None));
    let mut sized = DownloadRequest::at("http://nowhere.invalid/f", None);
    sized.expected.bytes = Some(7);
    assert_eq!(fetcher.size(&sized), Some(7));
    assert!(server.ranges("/f").is_empty(), "nothing was fetched for it");
    assert!(bench.fetch(&DownloadRequest::at(&server.url("/g"), None)).is_ok());
}
