//! Why a file could not be fetched. Addresses stand in it without their secrets.

use std::io;
use std::path::PathBuf;

use ureq::http::StatusCode;

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
    #[error("{url}: {reason}")]
    Request {
        /// The address.
        url: String,
        /// What the client met.
        reason: String,
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
    /// The file is not the one that was meant. Nothing of it is kept.
    #[error("{origin}: {found}, expected {expected}")]
    Digest {
        /// The address or path it came from.
        origin: String,
        /// Digest or size of what came.
        found: String,
        /// Digest or size wanted.
        expected: String,
    },
    /// A file that was finished is no longer there.
    #[error("{}: removed by another process while it was wanted", path.display())]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// Another download failed, so this one was given up.
    #[error("{url}: given up")]
    Stopped {
        /// The address.
        url: String,
    },
}
