//! One HTTP client for all downloads: redirects, tokens and retries.

use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use ureq::http::header::{self, HeaderName};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};
use url::{Origin, Url};

use super::FetchError;
use super::address::{join, origin, redact_urls, shown};

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

/// A secret, and the only server that may see it, whatever a redirect says.
#[derive(Clone)]
pub struct Token {
    secret: String,
    of: Origin,
}

impl Token {
    /// The secret for the server at `of`.
    pub fn new(secret: String, of: &str) -> Self {
        Self { secret, of: origin(of) }
    }

    fn header(&self, url: &Url) -> Option<String> {
        (url.origin() == self.of).then(|| format!("Bearer {}", self.secret))
    }
}

impl Debug for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// The request's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
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

/// The client.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    policy: RetryPolicy,
    stop: AtomicBool,
}

impl Client {
    /// A client with this policy.
    pub fn new(policy: RetryPolicy) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // By itself it would send a token to another port of the same host after a redirect.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .into();
        Self { agent, policy, stop: AtomicBool::new(false) }
    }

    /// Ends all requests in progress with [`FetchError::Stopped`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Sends one request and follows redirects. An error holds the last address that was asked.
    pub(super) fn ask(
        &self,
        verb: Verb,
        url: &str,
        token: Option<&Token>,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Body>, Unanswered> {
        let bad =
            |url: &str, error: String| Unanswered { url: url.into(), error: ureq::Error::BadUri(error) };
        let mut url = Url::parse(url).map_err(|error| bad(url, error.to_string()))?;
        for _ in 0..10 {
            let mut request = match verb {
                Verb::Get => self.agent.get(url.as_str()),
                Verb::Head => self.agent.head(url.as_str()),
            };
            // Of a compressed answer, a range would count other bytes than those of the file.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some(secret) = token.and_then(|token| token.header(&url)) {
                request = request.header(header::AUTHORIZATION, secret);
            }
            let response = request.call().map_err(|error| Unanswered { url: url.to_string(), error })?;
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            match location.filter(|_| matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)) {
                Some(location) => url = join(&url, location).map_err(|error| bad(url.as_str(), error))?,
                None => return Ok(response),
            }
        }
        Err(Unanswered { url: url.into(), error: ureq::Error::TooManyRedirects })
    }

    /// The answer's body as text, whatever its status is.
    ///
    /// # Errors
    /// The server cannot be reached, or fails at each attempt.
    pub fn text(&self, url: &str, token: Option<&Token>) -> Result<Response<String>, FetchError> {
        self.retry(url, || {
            let response = match self.ask(Verb::Get, url, token, &[]) {
                Ok(response) => response,
                Err(unanswered) => return unanswered.classify(url),
            };
            if let Some(retry) = retry_after_status(&response) {
                return Ok(retry);
            }
            let (head, mut body) = response.into_parts();
            match body.read_to_string() {
                Ok(text) => Ok(Attempt::Complete(Response::from_parts(head, text))),
                Err(error) => Unanswered { url: url.into(), error }.classify(url),
            }
        })
    }

    /// Tries until an attempt is complete, or too many in a row made no progress.
    pub(super) fn retry<T>(
        &self,
        url: &str,
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
            if wait > self.policy.longest {
                return Err(give_up(format!("{reason}, and asks to wait {} seconds", wait.as_secs())));
            }
            if failures >= self.policy.attempts {
                return Err(give_up(reason));
            }
            // One failure is common; after a second one, users must know what they wait for.
            match failures {
                2 => tracing::warn!(
                    "{}: {reason}; trying again, {} times in all",
                    shown(url),
                    self.policy.attempts
                ),
                _ => tracing::info!("{}: {reason}; trying again", shown(url)),
            }
            let until = Instant::now() + wait.max(self.policy.pause * 2u32.saturating_pow(failures - 1));
            while !self.stopped() && Instant::now() < until {
                thread::sleep(Duration::from_millis(50).min(until - Instant::now()));
            }
            if self.stopped() {
                return Err(FetchError::Stopped { url: shown(url) });
            }
        }
    }
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// The address that was asked, after redirects.
    url: String,
    error: ureq::Error,
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
    fn a_token_is_for_one_server_and_not_shown() {
        let token = Token::new("hf_secret".into(), "https://Hub.example");
        let header = |url: &str| token.header(&Url::parse(url).unwrap());
        for same in ["https://hub.example/api", "HTTPS://HUB.example:443", "https://me:pass@hub.example/"] {
            assert_eq!(header(same).as_deref(), Some("Bearer hf_secret"), "{same}");
        }
        for other in [
            "http://hub.example/api",
            "https://hub.example:444/",
            "https://cdn.example/",
            "https://hub.example@cdn.example/",
            "https://hub.example.cdn.example/",
        ] {
            assert_eq!(header(other), None, "{other}");
        }
        for wrong in ["hub.example", "https://", "data:,x"] {
            let token = Token::new("hf_secret".into(), wrong);
            assert_eq!(token.header(&Url::parse("https://hub.example").unwrap()), None, "{wrong}");
        }
        assert!(!format!("{token:?}").contains("secret"));
    }

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
