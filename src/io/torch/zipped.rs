//! The format since torch 1.6: a zip archive with uncompressed entries.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use zip::{CompressionMethod, ZipArchive};

use super::tensors::Reader;
use super::{Storage, TensorInfo, TorchFileError};
use crate::io::torch::pickle::Pickle;

/// How a zip archive with an entry begins.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

type Found = (Vec<TensorInfo>, HashMap<String, Storage>);

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Found, TorchFileError> {
    let entries = entries(path, bytes)?;
    let archive = |found: String, expected: &str| TorchFileError::Archive {
        path: path.into(),
        found,
        expected: expected.into(),
    };
    // The entries are in one folder, named after the file when it was saved.
    let mut folders = entries.keys().filter_map(|name| name.strip_suffix("/data.pkl"));
    let folder = match (folders.next(), folders.next()) {
        (Some(folder), None) => folder,
        (None, _) => {
            return Err(archive("a zip archive without data.pkl".into(), "a torch.save file"));
        }
        (Some(one), Some(other)) => {
            return Err(archive(format!("data.pkl in `{one}` and in `{other}`"), "one of them"));
        }
    };
    let entry = |name: &str| entries.get(format!("{folder}/{name}").as_str());
    if let Some(order) = entry("byteorder") {
        match &bytes[order.bytes.clone()] {
            b"little" => {}
            b"big" => return Err(TorchFileError::BigEndian { path: path.into() }),
            _ => return Err(archive("an unknown byteorder".into(), "`little`")),
        }
    }
    let pickled = entry("data.pkl").map(|entry| entry.bytes.clone()).unwrap_or_default();
    let (pickle, _) = Pickle::read(&bytes[pickled])
        .map_err(|source| TorchFileError::Pickle { path: path.into(), source })?;

    let reader = Reader { path, pickle: &pickle };
    let mut storages = HashMap::new();
    for declared in reader.declared()? {
        let found = entry(&format!("data/{}", declared.key));
        let length = declared.elements.checked_mul(declared.dtype.size());
        match found {
            Some(entry) if Some(entry.bytes.len()) == length => {
                // Zero: written without checksums.
                let crc = Some(entry.crc).filter(|crc| *crc != 0);
                let storage = Storage { bytes: entry.bytes.clone(), crc, found: OnceLock::new() };
                storages.insert(declared.key.to_owned(), storage);
            }
            _ => {
                let found = found.map_or("missing".into(), |entry| format!("{} bytes", entry.bytes.len()));
                let expected = format!("{} elements of {}", declared.elements, declared.dtype);
                return Err(reader.storage(declared.key, found, expected));
            }
        }
    }
    Ok((reader.tensors(&storages)?, storages))
}

struct Entry {
    bytes: Range<usize>,
    crc: u32,
}

/// The bytes of each entry. All must be uncompressed: the archive is mapped, not unpacked.
fn entries(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Entry>, TorchFileError> {
    let unreadable = |source| TorchFileError::Zip { path: path.into(), source };
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(unreadable)?;
    let mut entries = HashMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(unreadable)?;
        let fault = |found: &str, expected: &str| TorchFileError::Archive {
            path: path.into(),
            found: format!("entry `{}` {found}", entry.name()),
            expected: expected.into(),
        };
        if entry.encrypted() {
            return Err(fault("is encrypted", "an unencrypted entry"));
        }
        if entry.compression() != CompressionMethod::Stored {
            return Err(fault(&format!("is compressed ({})", entry.compression()), "an uncompressed entry"));
        }
        let range = entry.data_start().and_then(|start| {
            let end = start.checked_add(entry.size())?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        match range {
            Some(range) if range.end <= bytes.len() && entry.compressed_size() == entry.size() => {
                entries.insert(entry.name().to_owned(), Entry { bytes: range, crc: entry.crc32() });
            }
            _ => return Err(fault("reaches beyond the file", "all of its bytes")),
        }
    }
    Ok(entries)
}
