//! Errors of the Hub, with their most likely causes.

use ureq::http::StatusCode;

use super::Repo;
use crate::io::download::FetchError;

/// Why a request to the Hub failed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The transfer failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The Hub refused; `likely` is the usual cause.
    #[error("hf://{repo}: the Hub answered {status}: {likely}")]
    Refused {
        /// The repository.
        repo: String,
        /// The status of the answer.
        status: StatusCode,
        /// The Hub's error code, if it sent one.
        code: Option<String>,
        /// The most likely cause.
        likely: String,
    },
    /// There is nothing at the address.
    #[error("{address}: {what}{}", near(names))]
    Missing {
        /// The address.
        address: String,
        /// What is missing.
        what: String,
        /// Existing paths with similar names.
        names: Vec<String>,
    },
    /// The answer differs from the Hub's documentation.
    #[error("hf://{repo}: unexpected answer of the Hub: {reason}")]
    Answer {
        /// The repository.
        repo: String,
        /// What was found, and what was expected.
        reason: String,
    },
}

fn near(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!("; there is `{}`", names.join("`, `")),
    }
}

/// The most likely cause of a refusal. `code` is the Hub's error code, if it sent one.
pub(super) fn likely(status: StatusCode, code: Option<&str>, repo: &Repo, has_token: bool) -> String {
    let Repo { name, revision, .. } = repo;
    let page = repo.page();
    let token = if has_token {
        "the token that was sent has no access to it"
    } else {
        "set HF_TOKEN to a token that has access to it"
    };
    match (status.as_u16(), code) {
        (401 | 403, Some("GatedRepo")) | (403, _) => {
            format!("`{page}` is gated: ask for access on its page; {token}")
        }
        (404, Some("RevisionNotFound")) => format!("`{name}` has no revision `{revision}`"),
        (401, _) => format!("there is no `{page}`, or it is private or gated: {token}"),
        (404, Some("EntryNotFound")) => format!("there is no such file at revision `{revision}`"),
        (404, Some("RepoNotFound")) => format!("there is no `{page}`, or it is private: {token}"),
        (404, _) => {
            format!("there is no `{page}` or it has no revision `{revision}`; or it is private: {token}")
        }
        _ => "no reason given".to_owned(),
    }
}
