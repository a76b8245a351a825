//! The keys of `--sign` and `--verify`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::failure::Failure;
use super::manifests::Named;
use crate::progress::{print, short_path};
use attrflow_engine::provenance::attest::{self, Key, SignError, Signed};
use attrflow_engine::provenance::manifest::Manifest;

/// The environment variable with the password of a secret key, for use without a terminal.
const PASSWORD: &str = "ATTRFLOW_SIGN_PASSWORD";

/// An opened secret key.
pub(super) struct Signer(Key);

impl Signer {
    /// Opens a secret key; asks for its password if it has one.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let password = || match std::env::var(PASSWORD) {
            Ok(password) => Ok(password),
            Err(_) => {
                rpassword::prompt_password(format!("password of {}: ", path.display())).map_err(|error| {
                    std::io::Error::other(format!(
                        "no password (set {PASSWORD} to give it without a terminal): {error}"
                    ))
                })
            }
        };
        Key::open(path, password).map(Self).map_err(|error| Failure::Usage(error.to_string()))
    }

    /// Signs a manifest; the signed comment names the pipeline and the start of the run.
    pub fn sign(&self, path: &Path, bytes: &[u8], manifest: &Manifest) -> Result<PathBuf, Failure> {
        let Manifest { pipeline, started, .. } = manifest;
        let comment = format!("attrflow manifest of {pipeline}, {started}");
        self.0.sign(path, bytes, &comment).map_err(|error| Failure::Refused(error.to_string()))
    }
}

/// Prints the path of a signature.
pub(super) fn print_signature(signature: &Path, as_json: bool) {
    match as_json {
        true => print(&format!("{}\n", json!({ "signature": signature }))),
        false => print(&format!("signed: {}\n", short_path(signature))),
    }
}

/// Verifies the signature of a manifest.
pub(super) fn verify(key: &str, named: &Named) -> Result<Signed, Failure> {
    attest::verify(key, &named.path, &named.bytes).map_err(|error| match error {
        SignError::Invalid { .. } => Failure::InvalidSignature(error.to_string()),
        SignError::Key { .. } => Failure::Usage(error.to_string()),
        error => Failure::Refused(error.to_string()),
    })
}
