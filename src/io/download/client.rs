//! One HTTP client for all downloads: redirects, tokens, and patience.

use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use ureq::http::header::{self, HeaderName};
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use super::FetchError;
use super::address::{join, origin, redact_urls, shown};

/// How patiently to ask.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Attempts without a new byte before giving up.
    pub attempts: u32,
    /// Pause before the second attempt; doubled for each further one.
    pub pause: Duration,
    /// The longest that a server may ask to wait.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_secs(1), longest: Duration::from_secs(600) }
    }
}

/// A secret, and the address whose server may see it. No other server does, whatever a redirect says.
#[derive(Clone)]
pub struct Token {
    secret: String,
    of: String,
}

impl Token {
    /// The secret for the server at `of`.
    pub fn new(secret: String, of: String) -> Self {
        Self { secret, of }
    }

    fn header(&self, url: &str) -> Option<String> {
        (origin(url) == origin(&self.of)).then(|| format!("Bearer {}", self.secret))
    }
}

impl Debug for Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
}

/// What became of one attempt that did not end in an error.
pub(super) enum Attempt<T> {
    Complete(T),
    CachedRun {
        reason: String,
        /// What the server asks to wait at least.
        wait: Option<Duration>,
        /// Whether anything came.
        progress: bool,
    },
}

impl<T> Attempt<T> {
    pub fn again(reason: impl Into<String>) -> Self {
        Attempt::CachedRun { reason: reason.into(), wait: None, progress: false }
    }
}

/// The client.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    patience: RetryPolicy,
    stop: AtomicBool,
}

impl Client {
    /// A client of this patience.
    pub fn new(patience: RetryPolicy) -> Self {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // The client would send a token to another port of the host that a redirect names.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build()
            .into();
        Self { agent, patience, stop: AtomicBool::new(false) }
    }

    /// Makes every request under way end with [`FetchError::Stopped`].
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Asks once, and follows redirects. The address of an error is the one that was asked last.
    pub(super) fn ask(
        &self,
        verb: Verb,
        url: &str,
        token: Option<&Token>,
        headers: &[(HeaderName, String)],
    ) -> Result<Response<Body>, Unanswered> {
        let mut url = url.to_owned();
        for _ in 0..10 {
            let mut request = match verb {
                Verb::Get => self.agent.get(&url),
                Verb::Head => self.agent.head(&url),
            };
            // Compressed in transfer, a range would count other bytes than those of the file.
            request = request.header(header::ACCEPT_ENCODING, "identity");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some(secret) = token.and_then(|token| token.header(&url)) {
                request = request.header(header::AUTHORIZATION, secret);
            }
            let response = request.call().map_err(|error| Unanswered { url: url.clone(), error })?;
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            match location.filter(|_| matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)) {
                Some(location) => url = join(&url, location),
                None => return Ok(response),
            }
        }
        Err(Unanswered { url, error: ureq::Error::TooManyRedirects })
    }

    /// A text, whatever the answer's status is.
    ///
    /// # Errors
    /// A server that can't be reached, or goes on to fail.
    pub fn text(&self, url: &str, token: Option<&Token>) -> Result<Response<String>, FetchError> {
        self.retry(url, || {
            let response = match self.ask(Verb::Get, url, token, &[]) {
                Ok(response) => response,
                Err(unanswered) => return unanswered.classify(url),
            };
            if let Some(again) = retry_after_status(&response) {
                return Ok(again);
            }
            let (head, mut body) = response.into_parts();
            match body.read_to_string() {
                Ok(text) => Ok(Attempt::Complete(Response::from_parts(head, text))),
                Err(error) => Unanswered { url: url.into(), error }.classify(url),
            }
        })
    }

    /// Attempts until one is complete, or too many in a row brought nothing.
    pub(super) fn retry<T>(
        &self,
        url: &str,
        mut attempt: impl FnMut() -> Result<Attempt<T>, FetchError>,
    ) -> Result<T, FetchError> {
        let mut failures = 0;
        loop {
            let (reason, wait, progress) = match attempt()? {
                Attempt::Complete(done) => return Ok(done),
                Attempt::CachedRun { reason, wait, progress } => (reason, wait, progress),
            };
            failures = if progress { 1 } else { failures + 1 };
            let wait = wait.unwrap_or_default();
            let give_up = |reason| FetchError::Transfer { url: shown(url), attempts: failures, reason };
            if wait > self.patience.longest {
                return Err(give_up(format!("{reason}, and asks to wait {} seconds", wait.as_secs())));
            }
            if failures >= self.patience.attempts {
                return Err(give_up(reason));
            }
            // One failure passes; who waits for more must know what for.
            match failures {
                2 => tracing::warn!(
                    "{}: {reason}; still asking, {} times in all",
                    shown(url),
                    self.patience.attempts
                ),
                _ => tracing::info!("{}: {reason}; asking again", shown(url)),
            }
            let until = Instant::now() + wait.max(self.patience.pause * 2u32.saturating_pow(failures - 1));
            while !self.stopped() && Instant::now() < until {
                thread::sleep(Duration::from_millis(50).min(until - Instant::now()));
            }
            if self.stopped() {
                return Err(FetchError::Stopped { url: shown(url) });
            }
        }
    }
}

/// A request that no answer came to.
pub(super) struct Unanswered {
    /// Who was asked, which after a redirect is another one than was meant.
    url: String,
    error: ureq::Error,
}

impl Unanswered {
    /// Worth another attempt at the address that was meant, or final.
    pub fn classify<T>(self, meant: &str) -> Result<Attempt<T>, FetchError> {
        use ureq::Error::{ConnectionFailed, HostNotFound, Io, Protocol, Timeout};
        let Self { url, error } = self;
        // Some of the client's errors repeat the address, which may be none that `hushed` would know.
        let mut reason = redact_urls(&error.to_string().replace(&url, &shown(&url)));
        if origin(&url) != origin(meant) {
            reason = format!("{reason}, after a redirect to {}", shown(&url));
        }
        if matches!(error, ConnectionFailed | HostNotFound | Io(_) | Protocol(_) | Timeout(_)) {
            return Ok(Attempt::again(reason));
        }
        Err(FetchError::Request { url: shown(meant), reason })
    }
}

/// Whether the server may give another answer to the same request a moment later, and when.
pub(super) fn retry_after_status<B, T>(response: &Response<B>) -> Option<Attempt<T>> {
    let status = response.status();
    let passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    if !status.is_server_error() && !passing {
        return None;
    }
    let reason = format!("the server answered {status}");
    Some(Attempt::CachedRun { reason, wait: retry_after(response), progress: false })
}

/// `Retry-After` in seconds or as a date.
fn retry_after<B>(response: &Response<B>) -> Option<Duration> {
    let text = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_server_and_not_shown() {
        let token = Token::new("hf_secret".into(), "https://hub.example".into());
        assert_eq!(token.header("https://hub.example/api").as_deref(), Some("Bearer hf_secret"));
        for other in ["http://hub.example/api", "https://hub.example:444/", "https://cdn.example/"] {
            assert_eq!(token.header(other), None, "{other}");
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
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let seconds = answer(&later).unwrap().as_secs();
        assert!((98..=100).contains(&seconds), "{seconds}");
        assert_eq!(answer("soon"), None);
    }
}
