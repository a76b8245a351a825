//! One HTTP client for all downloads: redirects and tokens.

use std::fmt::{self, Debug, Formatter};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::Response;
use ureq::http::header::{self, HeaderName};
use ureq::{Agent, Body};
use url::{Origin, Url};

use super::FetchError;
use super::address::{join, origin};
use super::retry::{Attempt, RetryPolicy, Unanswered, retry_after_status};

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

    /// Tries by the client's policy, until the client is stopped.
    pub(super) fn retry<T>(
        &self,
        url: &str,
        attempt: impl FnMut() -> Result<Attempt<T>, FetchError>,
    ) -> Result<T, FetchError> {
        self.policy.retry(url, || self.stopped(), attempt)
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
}
