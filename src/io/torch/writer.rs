//! Writes a dict of tensors like `torch.save`, so that `torch.load` reads it with `weights_only=True`.
//!
//! The bytes depend only on the entries: no date, no file name, no random identifier.

use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::{Dtype, TorchFileError};

/// The alignment of storages, as in torch, so that Python can map them too.
const ALIGNMENT: u16 = 64;
/// The folder within the archive; torch accepts any.
const FOLDER: &str = "archive";
/// Version of the archive's layout since torch 1.6.
const VERSION: &[u8] = b"3\n";
/// Larger entries need zip64.
const LARGE: usize = u32::MAX as usize;

/// A tensor to be written.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Its key in the dict.
    pub name: &'a str,
    /// The element type.
    pub dtype: Dtype,
    /// Lengths of the axes.
    pub shape: &'a [usize],
    /// The elements in C order, little-endian.
    pub bytes: &'a [u8],
}

/// Writes the entries, in their order, as an OrderedDict from names to tensors.
///
/// # Errors
/// The file cannot be written, or an entry's bytes do not match its shape.
pub fn write(path: impl AsRef<Path>, entries: &[Entry<'_>]) -> Result<(), TorchFileError> {
    let path = path.as_ref();
    for entry in entries {
        let length = entry.shape.iter().try_fold(entry.dtype.size(), |size, &n| size.checked_mul(n));
        if length != Some(entry.bytes.len()) {
            return Err(TorchFileError::Tensor {
                path: path.into(),
                tensor: entry.name.into(),
                found: format!("{} bytes", entry.bytes.len()),
                expected: format!("those of {} {:?}", entry.dtype, entry.shape),
            });
        }
    }
    let mut archive = ZipWriter::new(BufWriter::new(fs_err::File::create(path)?));
    fill(&mut archive, entries)?;
    Ok(archive.finish().map_err(io::Error::from)?.flush()?)
}

fn fill(archive: &mut ZipWriter<impl Write + Seek>, entries: &[Entry<'_>]) -> io::Result<()> {
    let stored = SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored)
        .with_alignment(ALIGNMENT);
    let mut add = |name: &str, bytes: &[u8]| {
        archive.start_file(format!("{FOLDER}/{name}"), stored.large_file(bytes.len() >= LARGE))?;
        archive.write_all(bytes)
    };
    add("data.pkl", &pickle(entries))?;
    add("byteorder", b"little")?;
    for (index, entry) in entries.iter().enumerate() {
        add(&format!("data/{index}"), entry.bytes)?;
    }
    add("version", VERSION)
}

/// The bytes of `pickle.dumps(OrderedDict(…), 2)`, without the memo.
fn pickle(entries: &[Entry<'_>]) -> Vec<u8> {
    const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    let mut out = b"\x80\x02".to_vec();
    out.extend(ORDERED_DICT);
    out.push(b'(');
    for (index, entry) in entries.iter().enumerate() {
        text(&mut out, entry.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", entry.dtype.storage()).into_bytes());
        text(&mut out, &index.to_string());
        text(&mut out, "cpu");
        let elements = entry.shape.iter().product();
        int(&mut out, elements);
        out.extend(b"tQ"); // the storage
        int(&mut out, 0); // the offset
        ints(&mut out, entry.shape);
        ints(&mut out, &contiguous(entry.shape));
        out.push(0x89); // needs no gradient
        out.extend(ORDERED_DICT); // no hooks
        out.extend(b"tR");
    }
    out.extend(b"u.");
    out
}

/// Strides as in torch: an empty axis counts as one of length 1.
fn contiguous(shape: &[usize]) -> Vec<usize> {
    let mut stride = 1usize;
    let mut strides: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&size| {
            let own = stride;
            stride = stride.saturating_mul(size.max(1));
            own
        })
        .collect();
    strides.reverse();
    strides
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn ints(out: &mut Vec<u8>, values: &[usize]) {
    out.push(b'(');
    values.iter().for_each(|&value| int(out, value));
    out.push(b't');
}

fn int(out: &mut Vec<u8>, value: usize) {
    if let Ok(small) = i32::try_from(value) {
        out.push(b'J');
        out.extend(small.to_le_bytes());
    } else {
        out.extend([0x8a, 9]); // 9 bytes, the last one for the sign
        out.extend((value as u64).to_le_bytes());
        out.push(0);
    }
}
