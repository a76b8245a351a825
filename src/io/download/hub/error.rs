//! What can go wrong on the Hub, and what most likely did.

use ureq::http::StatusCode;

use super::Repo;
use crate::io::download::FetchError;

/// Why the Hub did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The transfer failed.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The Hub refused; `likely` says why it usually does.
    #[error("hf://{repo}: the Hub answered {status}: {likely}")]
    Refused {
        /// The repository.
        repo: String,
        /// The answer.
        status: StatusCode,
        /// The Hub's own word for it, if it said one.
        code: Option<String>,
        /// What to look at.
        likely: String,
    },
    /// Nothing stands at the address.
    #[error("{address}: {what}{}", near(names))]
    Missing {
        /// The address.
        address: String,
        /// What is missing.
        what: String,
        /// Paths that are there and have a similar name.
        names: Vec<String>,
    },
    /// The Hub answered with something else than it does by its documentation.
    #[error("hf://{repo}: the Hub's answer is not understood: {reason}")]
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

/// What a refusal most likely means. `code` is the Hub's own word for it, if it said one.
pub(super) fn likely(status: StatusCode, code: Option<&str>, repo: &Repo, has_token: bool) -> String {
    let Repo { name, revision, .. } = repo;
    let page = repo.page();
    let token = if has_token {
        "the token that was sent does not open it"
    } else {
        "set HF_TOKEN to a token that may read it"
    };
    match (status.as_u16(), code) {
        (401 | 403, Some("GatedRepo")) | (403, _) => {
            format!("`{page}` is gated: ask for access on its page; {token}")
        }
        (404, Some("RevisionNotFound")) => format!("`{name}` has no revision `{revision}`"),
        (401, _) => format!("there is no `{page}`, or it is private or gated: {token}"),
        (404, Some("EntryNotFound")) => format!("the file is not there at revision `{revision}`"),
        (404, Some("RepoNotFound")) => format!("there is no `{page}`, or it is private: {token}"),
        (404, _) => {
            format!("there is no `{page}` or it has no revision `{revision}`; or it is private: {token}")
        }
        _ => "it does not say why".to_owned(),
    }
}
