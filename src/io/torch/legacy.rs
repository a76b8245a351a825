//! The legacy format before torch 1.6: a sequence of pickles, then the storages.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use super::tensors::{Declared, Reader};
use super::{Storage, TensorInfo, TorchFileError};
use crate::io::torch::pickle::{Object, Pickle, Value};

/// The first pickle: torch's magic number in protocol 2.
pub(super) const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The second pickle: the format's version, unchanged since 2016.
const PROTOCOL: i128 = 1001;

type Found = (Vec<TensorInfo>, HashMap<String, Storage>);

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Found, TorchFileError> {
    let mut at = MAGIC.len();
    let mut pickle = || {
        let read = Pickle::read(bytes.get(at..).unwrap_or_default());
        let (pickle, length) = read.map_err(|source| TorchFileError::Pickle { path: path.into(), source })?;
        at += length;
        Ok::<_, TorchFileError>(pickle)
    };
    let (protocol, system, object, keys) = (pickle()?, pickle()?, pickle()?, pickle()?);

    let archive =
        |found: String, expected: String| TorchFileError::Archive { path: path.into(), found, expected };
    if protocol.root() != Value::Int(PROTOCOL) {
        return Err(archive("another version of the legacy format".into(), format!("version {PROTOCOL}")));
    }
    let system = system.dict(system.root()).unwrap_or_default();
    match system.iter().find(|(key, _)| *key == Value::Str("little_endian")) {
        Some((_, Value::Bool(true))) => {}
        Some((_, Value::Bool(false))) => return Err(TorchFileError::BigEndian { path: path.into() }),
        _ => return Err(archive("no byte order".into(), "`little_endian`".into())),
    }

    let reader = Reader { path, pickle: &object };
    let declared: HashMap<&str, Declared<'_>> =
        reader.declared()?.into_iter().map(|storage| (storage.key, storage)).collect();
    let Some(Object::List(keys)) = keys.get(keys.root()) else {
        return Err(archive("no list of storages".into(), "one after the object".into()));
    };
    let mut storages = HashMap::new();
    for key in keys {
        let Value::Str(key) = key else {
            return Err(archive("a storage key that is not a str".into(), "a str".into()));
        };
        let declared = declared
            .get(key)
            .ok_or_else(|| reader.storage(key, "not used by any tensor".into(), "it to be".into()))?;
        let storage = storage(bytes, &mut at, declared).map_err(|found| {
            reader.storage(key, found, format!("{} elements of {}", declared.elements, declared.dtype))
        })?;
        storages.insert((*key).to_owned(), storage);
    }
    Ok((reader.tensors(&storages)?, storages))
}

/// A storage: the number of elements in 8 bytes, then the elements. An error says what was found.
fn storage(bytes: &[u8], at: &mut usize, declared: &Declared<'_>) -> Result<Storage, String> {
    let rest = bytes.get(*at..).unwrap_or_default();
    let (count, data) = rest.split_first_chunk().ok_or("the end of the file")?;
    let count = u64::from_le_bytes(*count);
    if usize::try_from(count).ok() != Some(declared.elements) {
        return Err(format!("{count} elements"));
    }
    let length = declared.elements.checked_mul(declared.dtype.size());
    let length = length.filter(|length| *length <= data.len());
    let length = length.ok_or_else(|| format!("{} bytes to the end of the file", data.len()))?;
    let start = *at + 8;
    *at = start + length;
    Ok(Storage { bytes: start..*at, crc: None, found: OnceLock::new() })
}
