//! Minisign signatures: a small file beside the signed one, compatible with minisign and other implementations.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use minisign::{PublicKey, PublicKeyBox, SecretKey, SecretKeyBox, SignatureBox};

use crate::identity::regular_file;
use crate::provenance::manifest::signature_path;

/// Why signing failed, or why a signature is invalid.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A file system error; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file without a valid key.
    #[error("{}: not a minisign {what}: {reason}", path.display())]
    Key {
        /// The file, or the text given as a key.
        path: PathBuf,
        /// `secret key` or `public key`.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The signature is missing.
    #[error("{} is not signed: {} does not exist", file.display(), signature_path(file).display())]
    Unsigned {
        /// The file that should be signed.
        file: PathBuf,
    },
    /// The file is already signed with another key.
    #[error("{} is already signed by {by}: remove {} to sign it with another key", file.display(), signature_path(file).display())]
    Signed {
        /// The file.
        file: PathBuf,
        /// The other key's number.
        by: String,
    },
    /// The file changed between reading and signing.
    #[error("{} changed since it was read", file.display())]
    Changed {
        /// The file.
        file: PathBuf,
    },
    /// The signature is of other bytes, by another key, or malformed.
    #[error("{} is not a valid signature: {reason}", signature.display())]
    Invalid {
        /// The signature's file.
        signature: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// An opened secret key.
pub struct Key {
    secret: SecretKey,
    public: PublicKey,
}

/// The content of a valid signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The comment that is signed with the file.
    pub comment: String,
    /// The key's number, as minisign shows it.
    pub key: String,
}

impl Key {
    /// Opens a secret key file; `password` is called only if it is encrypted.
    ///
    /// # Errors
    /// A file that cannot be read or is not a secret key, and a wrong password.
    pub fn open(path: &Path, password: impl FnOnce() -> std::io::Result<String>) -> Result<Self, SignError> {
        let text = regular_file::read_to_string(path)?;
        let none = |reason: String| SignError::Key { path: path.into(), what: "secret key", reason };
        let fault = |error: minisign::PError| none(error.to_string());
        let encoded =
            text.lines().nth(1).ok_or_else(|| none("expected a comment line, then the key".into()))?;
        let bytes = BASE64.decode(encoded.trim()).map_err(|error| none(error.to_string()))?;
        // A key without a password has no checksum if minisign itself wrote it, so it is used unchecked: a signature
        // that does not match the public half is refused when it is made.
        let mut secret = SecretKey::from_bytes(&bytes).map_err(fault)?;
        if secret.is_encrypted() {
            let form = SecretKeyBox::from_string(&text).map_err(fault)?;
            secret = form.into_secret_key(Some(password()?)).map_err(fault)?;
        }
        let public = PublicKey::from_secret_key(&secret).map_err(fault)?;
        Ok(Self { secret, public })
    }

    /// Signs the bytes of a file, and returns the path of the signature. An existing one of the same key is replaced.
    ///
    /// # Errors
    /// A file that cannot be read or has changed since, and a signature that cannot be written.
    pub fn sign(&self, file: &Path, bytes: &[u8], comment: &str) -> Result<PathBuf, SignError> {
        let path = signature_path(file);
        if regular_file::read(file)? != bytes {
            return Err(SignError::Changed { file: file.into() });
        }
        // Never replace somebody else's signature: it cannot be restored.
        let there =
            regular_file::read_to_string(&path).ok().and_then(|text| SignatureBox::from_string(&text).ok());
        if let Some(there) = there.filter(|there| number(there) != number_of(&self.public)) {
            return Err(SignError::Signed { file: file.into(), by: number(&there) });
        }
        let fault = |error: minisign::PError| SignError::Invalid {
            signature: path.clone(),
            reason: error.to_string(),
        };
        // Line breaks would end the comment in the signature's file.
        let comment: String = comment.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let signed =
            minisign::sign(Some(&self.public), &self.secret, Cursor::new(bytes), Some(&comment), None);
        let text = signed.map_err(fault)?.into_string();
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let mut temporary =
            tempfile::Builder::new().permissions(readable).tempfile_in(folder.unwrap_or(Path::new(".")))?;
        temporary.write_all(text.as_bytes())?;
        temporary.persist(&path).map_err(|error| error.error)?;
        Ok(path)
    }
}

/// Verifies the signature beside a file against its bytes. `key` is a public key, or a file that contains one.
///
/// # Errors
/// An invalid key, a file without a signature, and an invalid signature.
pub fn verify(key: &str, file: &Path, bytes: &[u8]) -> Result<Signed, SignError> {
    let public = public_key(key)?;
    let signature = signature_path(file);
    let text = match regular_file::read_to_string(&signature) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(SignError::Unsigned { file: file.into() });
        }
        text => text?,
    };
    let invalid = |error: minisign::PError| SignError::Invalid {
        signature: signature.clone(),
        reason: error.to_string(),
    };
    let signed = SignatureBox::from_string(&text).map_err(invalid)?;
    minisign::verify(&public, &signed, Cursor::new(bytes), true, false, false).map_err(invalid)?;
    Ok(Signed { comment: signed.trusted_comment().map_err(invalid)?, key: number(&signed) })
}

/// The number of the key of a signature, as minisign shows it.
fn number(signature: &SignatureBox) -> String {
    signature.keynum().iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

/// The number of a public key: it follows two bytes that name the algorithm.
fn number_of(key: &PublicKey) -> String {
    key.to_bytes().iter().skip(2).take(8).rev().map(|byte| format!("{byte:02X}")).collect()
}

fn public_key(key: &str) -> Result<PublicKey, SignError> {
    let path = Path::new(key);
    let fault = |error: minisign::PError| SignError::Key {
        path: path.into(),
        what: "public key",
        reason: error.to_string(),
    };
    // Try the text as a key first: the author of a folder could put a file of that name into it.
    match PublicKey::from_base64(key.trim()) {
        Err(error) if !path.exists() => return Err(fault(error)),
        Err(_) => {}
        Ok(key) => return Ok(key),
    }
    PublicKeyBox::from_string(&regular_file::read_to_string(path)?)
        .and_then(PublicKeyBox::into_public_key)
        .map_err(fault)
}

#[cfg(test)]
mod tests {
    use minisign::KeyPair;

    use super::*;

    /// A folder with a key pair in it, and a file to sign.
    fn folder(password: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let pair = match password {
            Some(password) => KeyPair::generate_encrypted_keypair(Some(password.to_owned())),
            None => KeyPair::generate_unencrypted_keypair(),
        };
        let pair = pair.unwrap();
        let write = |name: &str, text: String| fs_err::write(folder.path().join(name), text).unwrap();
        write("key", pair.sk.to_box(None).unwrap().into_string());
        write("key.pub", pair.pk.to_box().unwrap().into_string());
        write("file", "what is signed".to_owned());
        folder
    }

    fn no_password() -> std::io::Result<String> {
        panic!("asked for a password")
    }

    #[test]
    fn another_library_reads_the_signature() {
        let folder = folder(None);
        let path = |name: &str| folder.path().join(name);
        let signature = Key::open(&path("key"), no_password)
            .unwrap()
            .sign(&path("file"), b"what is signed", "a\nb")
            .unwrap();
        let signature = minisign_verify::Signature::from_file(signature).unwrap();
        assert_eq!(signature.trusted_comment(), "a b");
        let key = minisign_verify::PublicKey::from_file(path("key.pub")).unwrap();
        key.verify(b"what is signed", &signature, false).unwrap();
        assert!(key.verify(b"what is not signed", &signature, false).is_err());
        let text = fs_err::read_to_string(path("key.pub")).unwrap();
        for key in [path("key.pub").to_str().unwrap(), text.lines().nth(1).unwrap()] {
            let signed = verify(key, &path("file"), b"what is signed").unwrap();
            assert!(signed.comment == "a b" && text.contains(&signed.key), "{signed:?}");
        }
    }

    #[test]
    fn invalid_signatures_are_reported() {
        let (signer, other) = (folder(None), folder(None));
        let path = |name: &str| signer.path().join(name);
        let key = |folder: &tempfile::TempDir| folder.path().join("key.pub").to_str().unwrap().to_owned();
        let unsigned = verify(&key(&signer), &path("file"), b"what is signed").unwrap_err().to_string();
        assert!(unsigned.contains("file is not signed: "), "{unsigned}");
        Key::open(&path("key"), no_password)
            .unwrap()
            .sign(&path("file"), b"what is signed", "comment")
            .unwrap();
        let foreign = verify(&key(&other), &path("file"), b"what is signed").unwrap_err().to_string();
        assert!(foreign.contains("file.minisig is not a valid signature: "), "{foreign}");
        let changed = verify(&key(&signer), &path("file"), b"something else").unwrap_err().to_string();
        assert!(changed.contains("file.minisig is not a valid signature: "), "{changed}");
        let no_key = verify("not a key", &path("file"), b"what is signed").unwrap_err().to_string();
        assert!(no_key.starts_with("not a key: not a minisign public key: "), "{no_key}");
        // The comment is signed too.
        let text = fs_err::read_to_string(path("file.minisig")).unwrap();
        fs_err::write(path("file.minisig"), text.replace("comment: comment", "comment: another")).unwrap();
        assert!(verify(&key(&signer), &path("file"), b"what is signed").is_err());
    }

    #[test]
    fn a_key_wins_over_a_file_of_that_name() {
        let (signer, other) = (folder(None), folder(None));
        let path = |name: &str| other.path().join(name);
        Key::open(&path("key"), no_password).unwrap().sign(&path("file"), b"what is signed", "x").unwrap();
        let text = fs_err::read_to_string(signer.path().join("key.pub")).unwrap();
        let key = text.lines().nth(1).unwrap();
        // Relative to the working folder, as a user would give it.
        if !key.contains('/') {
            let named = path(key);
            fs_err::copy(path("key.pub"), &named).unwrap();
        }
        assert!(verify(key, &path("file"), b"what is signed").is_err());
        let changed = Key::open(&path("key"), no_password).unwrap().sign(&path("file"), b"other", "x");
        assert!(changed.unwrap_err().to_string().ends_with("file changed since it was read"));
    }

    #[test]
    fn an_encrypted_key_needs_its_password() {
        let folder = folder(Some("secret"));
        let path = folder.path().join("key");
        Key::open(&path, || Ok("secret".to_owned())).unwrap();
        let wrong = Key::open(&path, || Ok("wrong".to_owned())).err().unwrap().to_string();
        assert!(wrong.contains("Wrong password"), "{wrong}");
        fs_err::write(&path, "untrusted comment: x\nAAAA\n").unwrap();
        let none = Key::open(&path, no_password).err().unwrap().to_string();
        assert!(none.contains("not a minisign secret key"), "{none}");
    }
}
