//! Retries of requests: how often, after which errors, and how long to wait.

use std::thread;
use std::time::{Duration, Instant};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use ureq::http::{Response, StatusCode, header};

use super::FetchError;
use super::address::{origin, redact_urls, shown};

/// How often and how long to try again.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts in a row without a new byte before giving up.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each one after it.
    pub pause: Duration,
    /// The longest wait that a server may ask for.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_secs(1), longest: Duration::from_secs(600) }
    }
}

impl RetryPolicy {
    /// Tries until an attempt is complete, or too many in a row made no progress.
    pub(super) fn retry<T>(
        &self,
        url: &str,
        stopped: impl Fn() -> bool,
        mut attempt: impl FnMut() -> Result<Attempt<T>, FetchError>,
    ) -> Result<T, FetchError> {
        let mut failures = 0;
        loop {
            let (reason, wait, progress) = match attempt()? {
                Attempt::Complete(done) => return Ok(done),
                Attempt::Retry { reason, wait, progress } => (reason, wait, progress),
            };
            failures = if progress { 1 } else { failures + 1 };
            let wait = wait.unwrap_or_default();
            let give_up = |reason| FetchError::Transfer { url: shown(url), attempts: failures, reason };
            if wait > self.longest {
                return Err(give_up(format!("{reason}, and asks to wait {} seconds", wait.as_secs())));
            }
            if failures >= self.attempts {
                return Err(give_up(reason));
            }
            // One failure is common; after a second one, users must know what they wait for.
            match failures {
                2 => tracing::warn!("{}: {reason}; trying again, {} times in all", shown(url), self.attempts),
                _ => tracing::info!("{}: {reason}; trying again", shown(url)),
            }
            let until = Instant::now() + wait.max(self.pause * 2u32.saturating_pow(failures - 1));
            while !stopped() && Instant::now() < until {
                thread::sleep(Duration::from_millis(50).min(until - Instant::now()));
            }
            if stopped() {
                return Err(FetchError::Stopped { url: shown(url) });
            }
        }
    }
}

/// The result of one attempt, unless it is a final error.
pub(super) enum Attempt<T> {
    Complete(T),
    Retry {
        reason: String,
        /// The least wait that the server asks for.
        wait: Option<Duration>,
        /// Whether any bytes arrived.
        progress: bool,
    },
}

impl<T> Attempt<T> {
    pub fn retry(reason: impl Into<String>) -> Self {
        Attempt::Retry { reason: reason.into(), wait: None, progress: false }
    }
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// The address that was asked, after redirects.
    pub url: String,
    pub error: ureq::Error,
}

impl Unanswered {
    /// Whether the request for `requested` is worth another attempt, or the error is final.
    pub fn classify<T>(self, requested: &str) -> Result<Attempt<T>, FetchError> {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
        let Self { url, error } = self;
        // Some errors of ureq repeat the address.
        let mut reason = redact_urls(&error.to_string().replace(&url, &shown(&url)));
        if url != requested && origin(&url) != origin(requested) {
            reason = format!("{reason}, after a redirect to {}", shown(&url));
        }
        if matches!(error, ConnectionFailed | HostNotFound | Io(_) | Protocol(_) | Timeout(_)) {
            return Ok(Attempt::retry(reason));
        }
        Err(FetchError::Request { url: shown(requested), reason })
    }
}

/// The retry, where the same request may succeed a moment later.
pub(super) fn retry_after_status<B, T>(response: &Response<B>) -> Option<Attempt<T>> {
    let status = response.status();
    let is_temporary = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if !status.is_server_error() && !is_temporary {
        return None;
    }
    let reason = format!("the server answered {status}");
    Some(Attempt::Retry { reason, wait: retry_after(response), progress: false })
}

/// `Retry-After` in seconds or as a date.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    Some(Duration::try_from(http_date(text)?.duration_since(Timestamp::now())).unwrap_or_default())
}

/// A date in one of the three forms of RFC 9110, section 5.6.7.
pub(super) fn http_date(text: &str) -> Option<Timestamp> {
    let forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];
    let date = forms.iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    date.to_zoned(TimeZone::UTC).ok().map(|date| date.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_asks_to_wait_for_seconds_or_to_a_date() {
        let answer = |value: &str| {
            retry_after(&Response::builder().header(header::RETRY_AFTER, value).body(()).unwrap())
        };
        assert_eq!(answer("7"), Some(Duration::from_secs(7)));
        assert_eq!(answer("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        let later = Timestamp::now() + Duration::from_secs(100);
        let later = later.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let seconds = answer(&later).unwrap().as_secs();
        assert!((98..=100).contains(&seconds), "{seconds}");
        assert_eq!(answer("soon"), None);
    }

    #[test]
    fn a_date_has_one_of_three_forms() {
        let seconds = |text: &str| http_date(text).map(|date| date.as_second());
        // The examples of RFC 9110.
        for text in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(seconds(text), Some(784_111_777), "{text}");
        }
        assert_eq!(seconds("Thu, 01 Jan 2026 00:00:00 GMT"), Some(1_767_225_600));
        assert_eq!(seconds("Thursday, 01-Jan-26 00:00:00 GMT"), Some(1_767_225_600));
        assert_eq!(seconds("Thu Jan 15 00:00:00 2026"), Some(1_768_435_200));
        for wrong in
            ["", "1994-11-06T08:49:37Z", "Sun, 32 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 +0200"]
        {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
