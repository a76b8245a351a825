//! Fetching from servers that behave, and from those that don't.

use std::io::Write;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;
use tiny_http::{Header, Request, Server};

const CONTENT: &[u8] = b"the quick brown fox jumps over the lazy dog";
/// `printf 'the quick brown fox jumps over the lazy dog' | sha256sum`
const SHA256: &str = "05c6e08f1d9fdafa03147fcb8f82f124c76d2f70e3d989dc8aadb5e7d7450bec";

fn options(sha256: Option<&str>) -> Options {
    Options { sha256: sha256.map(str::to_owned), attempts: 3, pause: Duration::from_millis(1) }
}

/// Answers as many requests as `answer` is asked for, until the test ends; keeps the Range headers seen.
fn serve(answer: impl Fn(usize, Request) + Send + 'static) -> (String, Arc<Mutex<Vec<Option<String>>>>) {
    let server = Server::http("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", server.server_addr().to_ip().unwrap());
    let ranges = Arc::new(Mutex::new(Vec::new()));
    let seen = ranges.clone();
    thread::spawn(move || {
        for (index, request) in server.incoming_requests().enumerate() {
            let range = request.headers().iter().find(|header| header.field.equiv("Range"));
            seen.lock().unwrap().push(range.map(|header| header.value.to_string()));
            answer(index, request);
        }
    });
    (url, ranges)
}

fn whole(request: Request) {
    request.respond(tiny_http::Response::from_data(CONTENT)).unwrap();
}

fn status(request: Request, code: u16) {
    request.respond(tiny_http::Response::empty(code)).unwrap();
}

fn rest(request: Request, start: usize) {
    let range = format!("bytes {start}-{}/{}", CONTENT.len() - 1, CONTENT.len());
    let header = Header::from_bytes("Content-Range", range).unwrap();
    let response =
        tiny_http::Response::from_data(&CONTENT[start..]).with_status_code(206).with_header(header);
    request.respond(response).unwrap();
}

fn run(url: &str, target: &Path, options: &Options) -> Result<Fetched, String> {
    fetch(url, target, options, &mut |_| ()).map_err(|error| error.to_string())
}

#[test]
fn a_path_is_copied() {
    let folder = tempfile::tempdir().unwrap();
    let (origin, target) = (folder.path().join("a"), folder.path().join("b"));
    fs_err::write(&origin, CONTENT).unwrap();
    let mut last = None;
    let fetched =
        fetch(origin.to_str().unwrap(), &target, &options(Some(SHA256)), &mut |p| last = Some(p)).unwrap();
    assert_eq!(fetched, Fetched { bytes: 43, sha256: SHA256.into() });
    assert_eq!(fs_err::read(&target).unwrap(), CONTENT);
    assert_eq!(last, Some(Progress { done: 43, total: Some(43) }));
    assert!(run("/nowhere/x", &target, &options(None)).unwrap_err().contains("/nowhere/x"));
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 2, "no part is left");
}

#[test]
fn a_wrong_address_is_final() {
    let folder = tempfile::tempdir().unwrap();
    let patient = Options { pause: Duration::from_secs(3600), ..Options::default() };
    assert!(run("http://", &folder.path().join("a"), &patient).unwrap_err().starts_with("http://: "));
}

#[test]
fn a_download_arrives() {
    let (url, ranges) = serve(|_, request| whole(request));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("a");
    assert_eq!(run(&url, &target, &options(Some(SHA256))).unwrap().bytes, 43);
    assert_eq!(fs_err::read(&target).unwrap(), CONTENT);
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
    assert_eq!(*ranges.lock().unwrap(), [None]);
}

#[test]
fn a_server_error_is_tried_again() {
    let (url, _) = serve(|index, request| if index == 0 { status(request, 500) } else { whole(request) });
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(run(&url, &folder.path().join("a"), &options(None)).unwrap().sha256, SHA256);
}

#[test]
fn patience_ends() {
    let (url, ranges) = serve(|_, request| status(request, 503));
    let folder = tempfile::tempdir().unwrap();
    let error = run(&url, &folder.path().join("a"), &options(None)).unwrap_err();
    assert!(error.contains("gave up after 3 attempts without progress: the server answered 503"), "{error}");
    assert_eq!(ranges.lock().unwrap().len(), 3);
}

#[test]
fn a_missing_page_is_final() {
    let (url, ranges) = serve(|_, request| status(request, 404));
    let folder = tempfile::tempdir().unwrap();
    let error = run(&url, &folder.path().join("a"), &options(None)).unwrap_err();
    assert!(error.ends_with("the server answered 404 Not Found"), "{error}");
    assert_eq!(ranges.lock().unwrap().len(), 1);
}

#[test]
fn a_wrong_digest_leaves_nothing() {
    let (url, _) = serve(|_, request| whole(request));
    let folder = tempfile::tempdir().unwrap();
    let error = run(&url, &folder.path().join("a"), &options(Some("00ff"))).unwrap_err();
    assert_eq!(error, format!("{url}: sha256 {SHA256}, expected 00ff"));
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_old_part_is_continued_if_a_digest_can_tell() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("a.part");
    let (url, ranges) = serve(|_, request| {
        let resumes = request.headers().iter().any(|header| header.field.equiv("Range"));
        if resumes { rest(request, 9) } else { whole(request) }
    });
    fs_err::write(&part, &CONTENT[..9]).unwrap();
    run(&url, &folder.path().join("a"), &options(Some(SHA256))).unwrap();
    fs_err::write(&part, b"other one").unwrap();
    run(&url, &folder.path().join("b"), &options(None)).unwrap();
    run(&url, &folder.path().join("a"), &options(Some(SHA256))).unwrap();
    assert_eq!(fs_err::read(folder.path().join("a")).unwrap(), CONTENT);
    let resumed = Some("bytes=9-".to_owned());
    assert_eq!(*ranges.lock().unwrap(), [resumed.clone(), None, resumed, None]);
}

#[test]
fn a_complete_part_needs_no_second_download() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("a.part"), CONTENT).unwrap();
    let (url, ranges) = serve(|_, request| {
        let header = Header::from_bytes("Content-Range", format!("bytes */{}", CONTENT.len())).unwrap();
        request.respond(tiny_http::Response::empty(416).with_header(header)).unwrap();
    });
    assert_eq!(run(&url, &folder.path().join("a"), &options(Some(SHA256))).unwrap().bytes, 43);
    assert_eq!(ranges.lock().unwrap().len(), 1);
}

#[test]
fn a_server_without_ranges_is_read_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("a.part"), &CONTENT[..9]).unwrap();
    let (url, _) = serve(|_, request| whole(request));
    assert_eq!(run(&url, &folder.path().join("a"), &options(Some(SHA256))).unwrap().bytes, 43);
}

#[test]
fn a_dropped_connection_goes_on_where_it_stopped() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let mut requests = Vec::new();
        for head in [
            "HTTP/1.1 200 OK\r\nETag: \"v1\"\r\nContent-Length: 43\r\n\r\nthe quick",
            "HTTP/1.1 206 Partial Content\r\nETag: \"v1\"\r\nContent-Range: bytes 9-42/43\r\nContent-Length: 34\r\n\r\n \
             brown fox jumps over the lazy dog",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).unwrap();
            requests.push(String::from_utf8_lossy(&request[..n]).to_lowercase());
            stream.write_all(head.as_bytes()).unwrap();
        }
        requests
    });
    let folder = tempfile::tempdir().unwrap();
    let fetched = run(&url, &folder.path().join("a"), &options(None)).unwrap();
    assert_eq!(fetched, Fetched { bytes: 43, sha256: SHA256.into() });
    let requests = server.join().unwrap();
    assert!(requests[1].contains("range: bytes=9-\r\n") && requests[1].contains("if-range: \"v1\"\r\n"));
}
