//! Fills a partial file from a server, and resumes it where it stopped.

use std::io::{self, Read};

use ureq::http::{HeaderMap, Response, StatusCode, header};

use super::address::shown;
use super::client::{Client, Verb};
use super::partial::Partial;
use super::retry::{Attempt, http_date, retry_after_status};
use super::state::Note;
use super::{DownloadRequest, FetchError, Progress};

/// Why a transfer ended early: a failed read is worth a retry, a failed write is not.
enum Stop {
    Read(io::Error),
    Write(io::Error),
    Cancelled,
}

/// A download in progress.
pub(super) struct Transfer<'a> {
    pub client: &'a Client,
    pub request: &'a DownloadRequest,
    /// Writes the note beside the partial file; must happen before the bytes that it describes.
    pub save: &'a dyn Fn(&Note) -> io::Result<()>,
    pub on_progress: &'a mut dyn FnMut(Progress),
}

impl Transfer<'_> {
    /// Downloads what is missing.
    pub fn run(mut self, partial: &mut Partial, note: &mut Note) -> Result<(), FetchError> {
        let client = self.client;
        client.retry(&self.request.url, || self.attempt(partial, note))
    }

    /// One request for what is missing.
    fn attempt(&mut self, partial: &mut Partial, note: &mut Note) -> Result<Attempt<()>, FetchError> {
        let before = partial.bytes();
        let expected = self.request.expected.bytes;
        if partial.bytes() > 0 && expected == Some(partial.bytes()) {
            return Ok(Attempt::Complete(())); // complete, only the rename was missing
        }
        let has_digest = self.request.expected.has_digest();
        // Without a digest or a version, nobody knows whether two parts belong to one file.
        let is_resumable = has_digest || note.version.is_some();
        if !is_resumable || expected.is_some_and(|bytes| bytes < partial.bytes()) {
            partial.restart()?;
        }
        let url = &self.request.url;
        let mut headers = Vec::new();
        if partial.bytes() > 0 {
            headers.push((header::RANGE, format!("bytes={}-", partial.bytes())));
            // A digest is a better proof than the server's that two parts belong together.
            if let Some(version) = note.version.as_ref().filter(|_| !has_digest) {
                headers.push((header::IF_RANGE, version.clone()));
            }
        }
        let response = match self.client.ask(Verb::Get, url, self.request.token.as_ref(), &headers) {
            Ok(response) => response,
            Err(unanswered) => return unanswered.classify(url),
        };
        let status = response.status();
        if status == StatusCode::RANGE_NOT_SATISFIABLE
            && whole_size(&response) == Some(partial.bytes())
            && is_resumable
        {
            return Ok(Attempt::Complete(()));
        }
        let version = version(response.headers());
        let whole = whole_size(&response);
        let resized = whole.zip(note.total).is_some_and(|(now, before)| now != before);
        let is_same = (has_digest || (version.is_some() && version == note.version)) && !resized;
        let resumes = status == StatusCode::PARTIAL_CONTENT
            && partial.bytes() > 0
            && range_start(&response) == Some(partial.bytes())
            && is_same;
        if status == StatusCode::RANGE_NOT_SATISFIABLE || (status == StatusCode::PARTIAL_CONTENT && !resumes)
        {
            partial.restart()?;
            return Ok(Attempt::retry(format!("the server cannot resume the download ({status})")));
        }
        if let Some(retry) = retry_after_status(&response) {
            return Ok(retry);
        }
        // There is a file only in these answers: 204 has none, others are of something else.
        if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
            return Err(FetchError::Status { url: shown(url), status });
        }
        if !resumes {
            partial.restart()?;
            let total = length(response.headers());
            *note = Note { version, total, ..Note::new(self.request.name.clone()) };
            (self.save)(note)?;
        }
        let total = length(response.headers()).map(|left| partial.bytes() + left).or(expected);
        let ended = self.copy(&mut response.into_body().into_reader(), partial, total);
        // More bytes than ever before: a server that restarts and breaks off each time makes no progress.
        let progress = partial.bytes() > before;
        let retry = |reason| Ok(Attempt::Retry { reason, wait: None, progress });
        match ended {
            Ok(()) => match total.filter(|total| *total != partial.bytes()) {
                Some(total) => retry(format!("{} bytes received, expected {total}", partial.bytes())),
                None => Ok(Attempt::Complete(())),
            },
            Err(Stop::Read(error)) => retry(error.to_string()),
            Err(Stop::Write(error)) => Err(error.into()),
            Err(Stop::Cancelled) => Err(FetchError::Stopped { url: shown(url) }),
        }
    }

    fn copy(&mut self, from: &mut dyn Read, partial: &mut Partial, total: Option<u64>) -> Result<(), Stop> {
        let mut buffer = vec![0; 1 << 17];
        loop {
            (self.on_progress)(Progress { done: partial.bytes(), total });
            if self.client.stopped() {
                return Err(Stop::Cancelled);
            }
            match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => partial.write(&buffer[..n]).map_err(Stop::Write)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Stop::Read(error)),
            }
        }
    }
}

/// The size of an answer's body.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// A value for `If-Range`: a strong ETag, or a date so old that no later version of the file can share it.
fn version(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // A weak tag does not promise equal bytes.
    if let Some(tag) = text(header::ETAG).filter(|tag| !tag.starts_with("W/")) {
        return Some(tag.to_owned());
    }
    let modified = text(header::LAST_MODIFIED)?;
    let age = http_date(text(header::DATE)?)?.duration_since(http_date(modified)?);
    (age.as_secs() >= 60).then(|| modified.to_owned())
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
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_strong_tag_or_an_old_date() {
        let of = |pairs: &[(header::HeaderName, &str)]| {
            version(&pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect())
        };
        let now = (header::DATE, "Sun, 06 Nov 1994 08:50:37 GMT");
        let old = (header::LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:37 GMT");
        let fresh = (header::LAST_MODIFIED, "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(of(&[(header::ETAG, "\"v1\""), now.clone(), old.clone()]).as_deref(), Some("\"v1\""));
        assert_eq!(of(&[(header::ETAG, "W/\"v1\"")]), None);
        assert_eq!(of(&[now.clone(), old.clone()]).as_deref(), Some(old.1));
        assert_eq!(of(&[old]), None, "without the server's clock, the age is unknown");
        assert_eq!(of(&[now, fresh]), None);
    }
}
