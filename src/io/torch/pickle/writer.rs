//! Writes a dict of numpy arrays like `pickle.dumps`, for every Python with numpy.
//!
//! The bytes depend only on the arrays. The names are those of numpy 1, which numpy 2 accepts without a warning.
//! Source: CPython, `Lib/pickletools.py`; numpy, `ndarray.__reduce__` and `dtype.__reduce__`; protocol 4.

/// The values of an array with one axis.
#[derive(Debug, Clone, Copy)]
pub enum Array<'a> {
    /// `numpy.float32`
    F32(&'a [f32]),
    /// `numpy.int64`
    I64(&'a [i64]),
}

/// A dict from names to arrays, in their order.
pub fn dict(items: &[(&str, Array<'_>)]) -> Vec<u8> {
    let mut out = b"\x80\x04}(".to_vec();
    for (key, array) in items {
        text(&mut out, key);
        write(&mut out, *array);
    }
    out.extend(b"u.");
    out
}

/// `_reconstruct(ndarray, (0,), b"b")`, and then its state: version, shape, type, Fortran order, bytes.
fn write(out: &mut Vec<u8>, array: Array<'_>) {
    let (length, kind, bytes): (_, _, Vec<u8>) = match array {
        Array::F32(values) => (values.len(), "f4", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Array::I64(values) => (values.len(), "i8", values.iter().flat_map(|v| v.to_le_bytes()).collect()),
    };
    global(out, "numpy.core.multiarray", "_reconstruct");
    global(out, "numpy", "ndarray");
    out.extend(b"K\0\x85C\x01b\x87R");
    out.extend(b"(K\x01");
    out.extend([0x8a, 9]); // an int of 9 bytes, the last one for the sign
    out.extend((length as u64).to_le_bytes());
    out.extend(b"\0\x85");
    dtype(out, kind);
    out.push(0x89); // C order
    out.push(0x8e); // bytes with a length of 8 bytes
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
    out.extend(b"tb");
}

/// `dtype(kind, False, True)`, and then its state: version, little-endian, and no fields of records.
fn dtype(out: &mut Vec<u8>, kind: &str) {
    const MINUS_ONE: &[u8] = b"J\xff\xff\xff\xff";
    global(out, "numpy", "dtype");
    text(out, kind);
    out.extend(b"\x89\x88\x87R(K\x03");
    text(out, "<");
    out.extend([b"NNN", MINUS_ONE, MINUS_ONE, b"K\0tb"].concat());
}

fn global(out: &mut Vec<u8>, module: &str, name: &str) {
    text(out, module);
    text(out, name);
    out.push(0x93);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::torch::pickle::Pickle;

    const INFLUENCE: [f32; 5] = [0.5, -1.25, 3e-9, 0.0, 7.0];
    const RANK: [i64; 5] = [4, 0, 2, 3, 1];

    /// `tests/golden/check_exports.py` loads the same file in Python; `ATTRFLOW_BLESS=1` rewrites it.
    #[test]
    fn the_bytes_are_those_that_python_was_shown() {
        let written = dict(&[("influence", Array::F32(&INFLUENCE)), ("rank", Array::I64(&RANK))]);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickle/written.pkl");
        if std::env::var_os("ATTRFLOW_BLESS").is_some() {
            fs_err::write(&file, &written).unwrap();
        }
        assert!(written == fs_err::read(&file).unwrap(), "written.pkl: other bytes, see check_exports.py");
    }

    /// Our reader is only for tensors: it must stop at the first name of numpy.
    #[test]
    fn our_own_reader_gets_to_the_first_name_and_refuses_it() {
        let error = Pickle::read(&dict(&[("rank", Array::I64(&RANK))])).unwrap_err().to_string();
        assert!(error.contains("numpy.core.multiarray._reconstruct"), "{error}");
    }

    #[test]
    fn an_empty_dict_is_one() {
        let bytes = dict(&[]);
        let (pickle, end) = Pickle::read(&bytes).unwrap();
        assert_eq!((pickle.dict(pickle.root()), end), (Some(&[][..]), bytes.len()));
    }
}
