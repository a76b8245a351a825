//! Why a file could not be downloaded. Addresses appear without their secrets.

use std::io;
use std::path::PathBuf;

use ureq::http::StatusCode;

/// Why a file could not be downloaded.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The operating system refused; fs-err puts the path into the message.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server answered with an error that a retry would not change.
    #[error("{url}: the server answered {status}")]
    Status {
        /// The address.
        url: String,
        /// The status of the answer.
        status: StatusCode,
    },
    /// The request itself is invalid, such as an address without a host.
    #[error("{url}: {reason}")]
    Request {
        /// The address.
        url: String,
        /// What the client reported.
        reason: String,
    },
    /// The transfer failed at each attempt.
    #[error("{url}: gave up after {attempts} attempts without progress: {reason}")]
    Transfer {
        /// The address.
        url: String,
        /// Attempts since the last byte arrived.
        attempts: u32,
        /// What happened at the last one.
        reason: String,
    },
    /// It is another file than expected. Nothing of it is kept.
    #[error("{origin}: {found}, expected {expected}")]
    Digest {
        /// The address or path it came from.
        origin: String,
        /// Digest or size of the downloaded file.
        found: String,
        /// Digest or size expected.
        expected: String,
    },
    /// The server sent something else than the file, and no digest says that it is right. Nothing of it is kept.
    #[error("{url}: the server sent {found}, expected the file `{name}`")]
    Mistaken {
        /// The address.
        url: String,
        /// What it sent.
        found: String,
        /// The last part of the address.
        name: String,
    },
    /// A downloaded file is gone.
    #[error("{}: removed by another process while in use", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// Another download failed, so this one was cancelled.
    #[error("{url}: cancelled")]
    Stopped {
        /// The address.
        url: String,
    },
}
