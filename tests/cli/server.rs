//! A web server for tests: files, the Hub's API, and faults of real servers.
//!
//! One request per connection. Files are in memory; requests are recorded for assertions.
#![allow(
    dead_code,
    reason = "the unit tests of fetching use another part of it than the tests of the program"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use serde_json::{Value as Json, json};
use sha2::Digest;

/// A fault or a property of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// The connection ends after `after` bytes of the body, `times` times.
    Drop { after: usize, times: u32 },
    /// Another status, `times` times.
    Status { code: u16, retry_after: Option<u64>, times: u32 },
    /// Chunks of this size, with a pause before each.
    Slow { chunk: usize, pause: Duration },
    /// Ranges are not supported.
    NoRanges,
    /// No ETag.
    NoTag,
    /// A HEAD request names this size.
    Claims(u64),
    /// No Content-Length.
    NoLength,
    /// The last byte is wrong.
    Wrong,
}

/// A recorded request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asked {
    pub verb: String,
    /// With the query.
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub authorization: Option<String>,
}

struct Repo {
    /// By branch.
    commits: BTreeMap<String, String>,
    files: BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct State {
    url: String,
    files: BTreeMap<String, Vec<u8>>,
    faults: BTreeMap<String, Vec<Fault>>,
    /// By `datasets/OWNER/REPO` or `OWNER/REPO`.
    repos: BTreeMap<String, Repo>,
    /// The server of large files of repositories.
    cdn: Option<String>,
    token: Option<String>,
    page: usize,
    asked: Vec<Asked>,
    at_work: usize,
    most_at_work: usize,
}

/// A running server; it stops when dropped.
pub struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    end: Arc<AtomicBool>,
}

impl Server {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            Arc::new(Mutex::new(State { url: format!("http://{address}"), page: 1000, ..State::default() }));
        let end = Arc::new(AtomicBool::new(false));
        let server = Self { address, state: state.clone(), end: end.clone() };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                let state = state.clone();
                // Tests also cover clients that disconnect.
                thread::spawn(move || stream.and_then(|stream| answer(stream, &state)));
            }
        });
        server
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The address of a path that begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Serves bytes at a path.
    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.state().files.insert(path.into(), bytes.into());
    }

    /// The same for a new server.
    pub fn file(self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.put(path, bytes);
        self
    }

    /// Adds a fault to a path.
    pub fn fault(self, path: &str, fault: Fault) -> Self {
        self.state().faults.entry(path.into()).or_default().push(fault);
        self
    }

    /// Removes the faults of a path.
    pub fn mend(&self, path: &str) {
        self.state().faults.remove(path);
    }

    /// Serves a repository, `datasets/OWNER/REPO` or `OWNER/REPO`, whose `main` is the commit. Files that end in
    /// `.txt`, `.md` or `.json` are in git, all others in its large file storage. A second call moves `main`.
    pub fn put_repo(&self, repo: &str, commit: &str, files: &[(&str, &[u8])]) {
        let mut state = self.state();
        let entry = state.repos.entry(repo.into());
        let repo = entry.or_insert_with(|| Repo { commits: BTreeMap::new(), files: BTreeMap::new() });
        repo.commits.insert("main".into(), commit.into());
        for (path, bytes) in files {
            repo.files.insert(format!("{commit}/{path}"), bytes.to_vec());
        }
    }

    /// The same for a new server.
    pub fn hub_dataset(self, repo: &str, commit: &str, files: &[(&str, &[u8])]) -> Self {
        self.put_repo(&format!("datasets/{repo}"), commit, files);
        self
    }

    /// The same for a model.
    pub fn hub_model(self, repo: &str, commit: &str, files: &[(&str, &[u8])]) -> Self {
        self.put_repo(repo, commit, files);
        self
    }

    /// Serves large files from another server, as `/cdn/SHA256`.
    pub fn cdn(self, cdn: &Server) -> Self {
        self.state().cdn = Some(cdn.url(""));
        let state = self.state();
        for repo in state.repos.values() {
            for bytes in repo.files.values() {
                cdn.put(&format!("/cdn/{}", sha256(bytes)), bytes.clone());
            }
        }
        drop(state);
        self
    }

    /// Requires a token for all requests.
    pub fn token(self, token: &str) -> Self {
        self.state().token = Some(token.into());
        self
    }

    /// Sets the number of files per page of a list.
    pub fn page(self, entries: usize) -> Self {
        self.state().page = entries;
        self
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// The ranges of GET requests for a path.
    pub fn ranges(&self, path: &str) -> Vec<Option<String>> {
        let asked = self.asked().into_iter();
        asked.filter(|asked| asked.verb == "GET" && asked.path == path).map(|asked| asked.range).collect()
    }

    pub fn forget(&self) {
        self.state().asked.clear();
    }

    /// The most concurrent downloads.
    pub fn most_at_work(&self) -> usize {
        self.state().most_at_work
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(self.address);
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(stream: &TcpStream) -> std::io::Result<Asked> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let mut asked = Asked {
        verb: words.next().unwrap_or_default(),
        path: words.next().unwrap_or_default(),
        ..Asked::default()
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        let value = Some(value.trim().to_owned());
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = value,
            "if-range" => asked.if_range = value,
            "authorization" => asked.authorization = value,
            _ => {}
        }
    }
    Ok(asked)
}

/// An answer whose body has no fault.
fn say(mut stream: &TcpStream, status: &str, headers: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    )
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let asked = read(&stream)?;
    let mut state_now = state.lock().unwrap();
    state_now.asked.push(asked.clone());
    let wanted = state_now.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && asked.authorization != wanted {
        return say(&stream, "401", "X-Error-Code: RepoNotFound\r\n", "");
    }
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let path = path.replace("%20", " ").replace("%2F", "/");
    if let Some(rest) = path.strip_prefix("/api/") {
        let (status, headers, body) = api(&state_now, rest, &path, query);
        return say(&stream, status, &headers, &body.to_string());
    }
    let mut file = state_now.files.get(&path).cloned();
    if let Some((repo, rest)) = path.trim_start_matches('/').split_once("/resolve/") {
        file = state_now.repos.get(repo).and_then(|repo| repo.files.get(rest)).cloned();
        if let Some((cdn, bytes)) = state_now.cdn.as_ref().zip(file.as_ref()).filter(|_| is_large(rest)) {
            let location = format!("Location: {cdn}/cdn/{}?signature=secret\r\n", sha256(bytes));
            return say(&stream, "302", &location, "");
        }
    }
    let Some(mut bytes) = file else { return say(&stream, "404", "X-Error-Code: EntryNotFound\r\n", "") };
    // Counts down faults with `times`.
    let mut faults = state_now.faults.get(&path).cloned().unwrap_or_default();
    if asked.verb == "GET" {
        faults
            .retain(|fault| !matches!(fault, Fault::Drop { times: 0, .. } | Fault::Status { times: 0, .. }));
        for fault in state_now.faults.entry(path).or_default() {
            if let Fault::Drop { times, .. } | Fault::Status { times, .. } = fault {
                *times = times.saturating_sub(1);
            }
        }
        state_now.at_work += 1;
        state_now.most_at_work = state_now.most_at_work.max(state_now.at_work);
    }
    drop(state_now);
    if let Some(last) = bytes.last_mut().filter(|_| faults.contains(&Fault::Wrong)) {
        *last ^= 1;
    }
    let sent = send(&stream, &asked, &bytes, &faults);
    if asked.verb == "GET" {
        state.lock().unwrap().at_work -= 1;
    }
    sent
}

fn send(mut stream: &TcpStream, asked: &Asked, bytes: &[u8], faults: &[Fault]) -> std::io::Result<()> {
    let has = |fault: &Fault| faults.contains(fault);
    let tag = format!("\"{}\"", &sha256(bytes)[..16]);
    let mut headers = if has(&Fault::NoTag) { String::new() } else { format!("ETag: {tag}\r\n") };
    if asked.verb == "HEAD" {
        let claim = faults.iter().find_map(|fault| match fault {
            Fault::Claims(size) => Some(*size),
            _ => None,
        });
        if !has(&Fault::NoLength) {
            headers += &format!("Content-Length: {}\r\n", claim.unwrap_or(bytes.len() as u64));
        }
        return write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n{headers}\r\n");
    }
    for fault in faults {
        if let Fault::Status { code, retry_after, .. } = fault {
            let wait = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            return say(stream, &code.to_string(), &wait, "");
        }
    }
    let start =
        asked.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start = start.filter(|_| !has(&Fault::NoRanges));
    let start: Option<usize> = start.filter(|_| asked.if_range.as_ref().is_none_or(|wanted| *wanted == tag));
    let size = bytes.len();
    let (status, body) = match start {
        Some(start) if start >= size => {
            return say(stream, "416", &format!("Content-Range: bytes */{size}\r\n"), "");
        }
        Some(start) => {
            headers += &format!("Content-Range: bytes {start}-{}/{size}\r\n", size - 1);
            ("206", &bytes[start..])
        }
        None => ("200", bytes),
    };
    if !has(&Fault::NoLength) {
        headers += &format!("Content-Length: {}\r\n", body.len());
    }
    write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}\r\n")?;
    let (mut chunk, mut pause, mut end) = (1 << 16, Duration::ZERO, body.len());
    for fault in faults {
        match fault {
            Fault::Slow { chunk: size, pause: time } => (chunk, pause) = (*size, *time),
            Fault::Drop { after, .. } => end = end.min(*after),
            _ => {}
        }
    }
    for piece in body[..end].chunks(chunk) {
        thread::sleep(pause);
        stream.write_all(piece)?;
        stream.flush()?;
    }
    Ok(())
}

fn is_large(path: &str) -> bool {
    ![".txt", ".md", ".json"].iter().any(|end| path.ends_with(end))
}

/// `datasets/OWNER/REPO/revision/main` or `…/tree/COMMIT/FOLDER`: status, headers, body.
fn api(state: &State, rest: &str, path: &str, query: &str) -> (&'static str, String, Json) {
    let missing = |what: &str| ("404", format!("X-Error-Code: {what}\r\n"), json!({ "error": what }));
    let parts: Vec<&str> = rest.splitn(5, '/').collect();
    let [kind, owner, name, verb, rest] = parts[..] else { return missing("RepoNotFound") };
    let prefix = if kind == "datasets" { "datasets/" } else { "" };
    let Some(repo) = state.repos.get(&format!("{prefix}{owner}/{name}")) else {
        return missing("RepoNotFound");
    };
    if verb == "revision" {
        return match repo.commits.get(rest) {
            Some(commit) => ("200", String::new(), json!({ "sha": commit, "siblings": [] })),
            None => missing("RevisionNotFound"),
        };
    }
    let (commit, folder) = rest.split_once('/').unwrap_or((rest, ""));
    let below = |path: &str| -> Option<String> {
        let path = path.strip_prefix(commit)?.strip_prefix('/')?;
        let path = if folder.is_empty() { path } else { path.strip_prefix(folder)?.strip_prefix('/')? };
        Some(path.to_owned())
    };
    let mut entries = BTreeMap::new();
    let slash = if folder.is_empty() { "" } else { "/" };
    for (path, bytes) in &repo.files {
        let Some(path) = below(path) else { continue };
        for (at, _) in path.match_indices('/').take(if query.contains("recursive=true") { 99 } else { 1 }) {
            let path = format!("{folder}{slash}{}", &path[..at]);
            entries.insert(path.clone(), json!({ "type": "directory", "oid": "0", "size": 0, "path": path }));
        }
        if query.contains("recursive=true") || !path.contains('/') {
            entries.insert(format!("{folder}{slash}{path}"), entry(&format!("{folder}{slash}{path}"), bytes));
        }
    }
    if entries.is_empty() {
        return missing(if repo.commits.values().any(|known| known == commit) {
            "EntryNotFound"
        } else {
            "RevisionNotFound"
        });
    }
    let start = query.split_once("cursor=").map_or(0, |(_, cursor)| cursor.parse().unwrap());
    let end = start + state.page;
    let recursive = query.split('&').next().unwrap_or_default();
    let link = format!("Link: <{}{path}?{recursive}&cursor={end}>; rel=\"next\"\r\n", state.url);
    let link = if entries.len() > end { link } else { String::new() };
    ("200", link, entries.into_values().skip(start).take(state.page).collect())
}

fn entry(path: &str, bytes: &[u8]) -> Json {
    let size = bytes.len();
    let blob = sha1::Sha1::new_with_prefix(format!("blob {size}\0")).chain_update(bytes).finalize();
    let blob: String = blob.iter().map(|byte| format!("{byte:02x}")).collect();
    if is_large(path) {
        let lfs = json!({ "oid": sha256(bytes), "size": size, "pointerSize": 134 });
        return json!({ "type": "file", "oid": "0", "size": size, "path": path, "lfs": lfs });
    }
    json!({ "type": "file", "oid": blob, "size": size, "path": path })
}
