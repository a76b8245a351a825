//! Brings a file from a path or an http(s) address to a path, whole and checked, or not at all.
//!
//! Bytes collect in `<destination>.part` and are renamed at the end, so that the destination never holds
//! half a file. A download that breaks off goes on where it stopped.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{Response, StatusCode, header};

use super::partial::Partial;

/// Why a file could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server answered with an error that asking again won't mend.
    #[error("{url}: the server answered {status}")]
    Status {
        /// The address.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// The request itself is wrong, such as an address without a host.
    #[error("{url}: {source}")]
    Request {
        /// The address.
        url: String,
        /// What the client met.
        source: ureq::Error,
    },
    /// The transfer failed, and failed again.
    #[error("{url}: gave up after {attempts} attempts without progress: {reason}")]
    Transfer {
        /// The address.
        url: String,
        /// Attempts since the last byte came.
        attempts: u32,
        /// What happened at the last one.
        reason: String,
    },
    /// The file is not the one that was meant. Nothing is left at the destination.
    #[error("{origin}: sha256 {found}, expected {expected}")]
    Digest {
        /// The address or path it came from.
        origin: String,
        /// Digest of the bytes that came, in hex.
        found: String,
        /// Digest wanted.
        expected: String,
    },
}

/// What is to be checked, and how patiently to ask.
#[derive(Debug, Clone)]
pub struct Options {
    /// Digest of the whole file, in hex.
    pub sha256: Option<String>,
    /// Attempts without a new byte before giving up.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further one.
    pub pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { sha256: None, attempts: 5, pause: Duration::from_secs(1) }
    }
}

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes in the partial file.
    pub done: u64,
    /// Bytes of the whole, if known.
    pub total: Option<u64>,
}

/// What was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// Size of the file.
    pub bytes: u64,
    /// Its digest, in hex.
    pub sha256: String,
}

/// Fetches `origin`, an `http://` or `https://` address or a path, to `destination`.
///
/// # Errors
/// See [`FetchError`]. After [`FetchError::Transfer`] the partial file stays, for the next attempt.
pub fn fetch(
    origin: &str,
    destination: impl AsRef<Path>,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Fetched, FetchError> {
    let destination = destination.as_ref();
    let part = part_of(destination);
    let fetched = if origin.starts_with("http://") || origin.starts_with("https://") {
        // Without a digest nothing tells whether an old part belongs to the file that is there today.
        let mut partial = Partial::open(&part, options.sha256.is_some())?;
        let resumed = partial.bytes() > 0;
        Download { url: origin, options, progress }.run(&mut partial)?;
        let mut fetched = partial.finish()?;
        if resumed && !matches(&fetched, options) {
            // The old part was of another file: once more, from nothing.
            let mut partial = Partial::open(&part, false)?;
            Download { url: origin, options, progress }.run(&mut partial)?;
            fetched = partial.finish()?;
        }
        fetched
    } else {
        copy(Path::new(origin), &part, progress)?
    };
    if !matches(&fetched, options) {
        fs_err::remove_file(&part)?;
        let expected = options.sha256.clone().unwrap_or_default();
        return Err(FetchError::Digest { origin: origin.into(), found: fetched.sha256, expected });
    }
    fs_err::rename(&part, destination)?;
    Ok(fetched)
}

fn matches(fetched: &Fetched, options: &Options) -> bool {
    options.sha256.as_ref().is_none_or(|expected| expected.eq_ignore_ascii_case(&fetched.sha256))
}

fn part_of(destination: &Path) -> PathBuf {
    let mut name = OsString::from(destination);
    name.push(".part");
    name.into()
}

fn copy(origin: &Path, part: &Path, progress: &mut dyn FnMut(Progress)) -> Result<Fetched, FetchError> {
    let mut file = fs_err::File::open(origin)?;
    let mut partial = Partial::open(part, false)?;
    let total = Some(file.metadata()?.len());
    pump(&mut file, &mut partial, total, progress).map_err(|stop| match stop {
        Stop::Read(error) | Stop::Write(error) => error,
    })?;
    Ok(partial.finish()?)
}

/// Which end of a transfer failed: the origin may be asked again, a full disk may not.
enum Stop {
    Read(io::Error),
    Write(io::Error),
}

fn pump(
    from: &mut dyn Read,
    partial: &mut Partial,
    total: Option<u64>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Stop> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        progress(Progress { done: partial.bytes(), total });
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => partial.write(&buffer[..n]).map_err(Stop::Write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Stop::Read(error)),
        }
    }
}

/// What became of one attempt that did not end the download in an error.
enum Attempt {
    Complete,
    Again(String),
}

/// A download in the making.
struct Download<'a> {
    url: &'a str,
    options: &'a Options,
    progress: &'a mut dyn FnMut(Progress),
}

impl Download<'_> {
    fn run(&mut self, partial: &mut Partial) -> Result<(), FetchError> {
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .into();
        let mut version = None;
        let mut failures = 0;
        loop {
            let before = partial.bytes();
            match self.attempt(&agent, partial, &mut version)? {
                Attempt::Complete => return Ok(()),
                Attempt::Again(reason) => {
                    failures = if partial.bytes() > before { 1 } else { failures + 1 };
                    if failures >= self.options.attempts {
                        return Err(FetchError::Transfer {
                            url: self.url.into(),
                            attempts: failures,
                            reason,
                        });
                    }
                }
            }
            thread::sleep(self.options.pause * 2u32.saturating_pow(failures - 1));
        }
    }

    /// Asks once, for what is missing. `version` is the ETag that the bytes so far belong to.
    fn attempt(
        &mut self,
        agent: &Agent,
        partial: &mut Partial,
        version: &mut Option<String>,
    ) -> Result<Attempt, FetchError> {
        // Compressed in transfer, a range would count other bytes than those of the file.
        let mut request = agent.get(self.url).header(header::ACCEPT_ENCODING, "identity");
        if partial.bytes() > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", partial.bytes()));
            if let Some(version) = version {
                request = request.header(header::IF_RANGE, version.as_str());
            }
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) if is_transient(&error) => return Ok(Attempt::Again(error.to_string())),
            Err(error) => return Err(FetchError::Request { url: self.url.into(), source: error }),
        };
        let status = response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE && whole_size(&response) == Some(partial.bytes()) {
            return Ok(Attempt::Complete); // all was there, only the renaming was missing
        }
        let resumes =
            status == StatusCode::PARTIAL_CONTENT && range_start(&response) == Some(partial.bytes());
        if status == StatusCode::RANGE_NOT_SATISFIABLE || (status == StatusCode::PARTIAL_CONTENT && !resumes)
        {
            partial.restart()?;
            return Ok(Attempt::Again(format!("the server can't go on in the middle ({status})")));
        }
        if status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        {
            return Ok(Attempt::Again(format!("the server answered {status}")));
        }
        if !status.is_success() {
            return Err(FetchError::Status { url: self.url.into(), status });
        }
        if !resumes {
            partial.restart()?;
        }
        let etag = response.headers().get(header::ETAG).and_then(|value| value.to_str().ok());
        // A weak tag promises no equal bytes, so it can't join two halves.
        *version = etag.filter(|tag| !tag.starts_with("W/")).map(str::to_owned);
        let total = response.body().content_length().map(|left| partial.bytes() + left);
        match pump(&mut response.into_body().into_reader(), partial, total, self.progress) {
            Ok(()) if total.is_none_or(|total| total == partial.bytes()) => Ok(Attempt::Complete),
            Ok(()) => Ok(Attempt::Again(format!("{} bytes came, expected {total:?}", partial.bytes()))),
            Err(Stop::Read(error)) => Ok(Attempt::Again(error.to_string())),
            Err(Stop::Write(error)) => Err(error.into()),
        }
    }
}

/// Whether the same request may succeed a moment later.
fn is_transient(error: &ureq::Error) -> bool {
    use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
    matches!(error, ConnectionFailed | HostNotFound | Io(_) | Protocol(_) | Timeout(_))
}

/// The first byte of a `Content-Range: bytes 100-199/200`.
fn range_start<T>(response: &Response<T>) -> Option<u64> {
    content_range(response)?.split('-').next()?.parse().ok()
}

/// The size in a `Content-Range: bytes */200`.
fn whole_size<T>(response: &Response<T>) -> Option<u64> {
    content_range(response)?.split('/').nth(1)?.parse().ok()
}

fn content_range<T>(response: &Response<T>) -> Option<&str> {
    response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
