use super::*;
use crate::io::npy::writer::{write_f32, write_i64};

/// A file as NumPy writes it, with any type and order.
fn npy_file(descr: &str, fortran: &str, shape: &str, data: &[u8]) -> tempfile::NamedTempFile {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((dict.len() as u16).to_le_bytes());
    bytes.extend(dict.as_bytes());
    bytes.extend(data);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), bytes).unwrap();
    file
}

#[test]
fn reads_a_range_of_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let values: Vec<f32> = (0..24).map(|i| i as f32 / 8.0).collect();
    write_f32(&path, &[4, 2, 3], &values).unwrap();
    let npy = Npy::open(&path).unwrap();
    assert_eq!((npy.shape(), npy.dtype(), npy.rows(), npy.row_len()), (&[4, 2, 3][..], Dtype::F32, 4, 6));
    let mut out = vec![9.0];
    npy.read_f32(1..3, &mut out).unwrap();
    assert_eq!(out, values[6..18]);
    npy.read_f32(4..4, &mut out).unwrap();
    assert!(out.is_empty());
    let error = npy.read_f32(3..5, &mut out).unwrap_err().to_string();
    assert!(error.ends_with("a.npy: rows 3..5 requested, but it has 4"), "{error}");
}

#[test]
fn rows_are_contiguous_only_in_c_order() {
    let data: Vec<u8> = (0..24).collect();
    let file = npy_file("<i4", "False", "(3, 2)", &data);
    let npy = Npy::open(file.path()).unwrap();
    let place = npy.place(2..6).unwrap();
    let bytes = fs_err::read(file.path()).unwrap();
    assert_eq!(bytes[place.start as usize..place.end as usize], data[8..]);
    let fortran = npy_file("<i4", "True", "(3, 2)", &data);
    assert_eq!(Npy::open(fortran.path()).unwrap().place(2..6), None);
}

#[test]
fn converts_half_double_and_integers() {
    let half: Vec<u8> = [0.5f32, -2.0].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let double: Vec<u8> = [0.1f64, 3.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let int: Vec<u8> = [-7i32, 8].iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut floats = Vec::new();
    Npy::open(npy_file("<f2", "False", "(2,)", &half)).unwrap().read_f32(0..2, &mut floats).unwrap();
    assert_eq!(floats, [0.5, -2.0]);
    Npy::open(npy_file("<f8", "False", "(2,)", &double)).unwrap().read_f32(0..2, &mut floats).unwrap();
    assert_eq!(floats, [0.1, 3.0]);
    let npy = Npy::open(npy_file("<i4", "False", "(2,)", &int)).unwrap();
    let mut integers = Vec::new();
    npy.read_i64(0..2, &mut integers).unwrap();
    assert_eq!(integers, [-7, 8]);
    let error = npy.read_f32(0..2, &mut floats).unwrap_err().to_string();
    assert!(error.ends_with("dtype int32, expected a float type"), "{error}");
}

#[test]
fn fortran_order_reads_like_c_order() {
    // Element (i, j, k) of shape (2, 3, 4) is 100 i + 10 j + k; Fortran lets i run fastest.
    let mut data = Vec::new();
    for k in 0..4 {
        for j in 0..3 {
            for i in 0..2 {
                data.extend(((100 * i + 10 * j + k) as f32).to_le_bytes());
            }
        }
    }
    let npy = Npy::open(npy_file("<f4", "True", "(2, 3, 4)", &data)).unwrap();
    let mut out = Vec::new();
    npy.read_f32(1..2, &mut out).unwrap();
    let expected: Vec<f32> = (0..3).flat_map(|j| (0..4).map(move |k| (100 + 10 * j + k) as f32)).collect();
    assert_eq!(out, expected);
}

#[test]
fn any_range_of_values_is_read_in_either_order() {
    let numbers: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let c: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    // Value (i, j, k) of shape (3, 2, 4) is 8 i + 4 j + k; Fortran lets i run fastest.
    let places = (0..24).map(|at| (at % 3, at / 3 % 2, at / 6));
    let fortran: Vec<u8> = places.flat_map(|(i, j, k)| ((8 * i + 4 * j + k) as f32).to_le_bytes()).collect();
    for (order, data) in [("False", c), ("True", fortran)] {
        let file = npy_file("<f4", order, "(3, 2, 4)", &data);
        let npy = Npy::open(&file).unwrap();
        for (start, end) in [(0, 24), (0, 0), (3, 7), (5, 20), (8, 16), (23, 24)] {
            let mut out = vec![-1.0; end - start];
            npy.read_f32_at(start, &mut out).unwrap();
            assert_eq!(out, numbers[start..end], "{order} {start}..{end}");
        }
        let error = npy.read_f32_at(20, &mut [0.0; 5]).unwrap_err().to_string();
        assert!(error.ends_with("rows 2..4 requested, but it has 3"), "{error}");
    }
}

#[test]
fn blocks_follow_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let values: Vec<f32> = (0..3 * 70_000).map(|i| i as f32).collect();
    write_f32(&path, &[3, 70_000], &values).unwrap();
    let mut out = Vec::new();
    Npy::open(&path).unwrap().read_f32(0..3, &mut out).unwrap();
    assert!(out == values);
}

#[test]
fn a_file_truncated_while_open_is_an_error() {
    let file = npy_file("<f4", "False", "(4,)", &[0; 16]);
    let npy = Npy::open(&file).unwrap();
    let length = file.as_file().metadata().unwrap().len();
    file.as_file().set_len(length - 3).unwrap();
    let error = npy.read_f32(2..4, &mut Vec::new()).unwrap_err().to_string();
    let expected = format!("truncated file: {} bytes, expected {length} for float32 [4]", length - 3);
    assert!(error.ends_with(&expected), "{error}");
    npy.read_f32(0..3, &mut Vec::new()).unwrap();
}

#[test]
fn scalars_and_empty_arrays_have_rows_too() {
    let scalar = Npy::open(npy_file("<f4", "False", "()", &1.5f32.to_le_bytes())).unwrap();
    let mut out = Vec::new();
    scalar.read_f32(0..1, &mut out).unwrap();
    assert_eq!(out, [1.5]);
    let empty = Npy::open(npy_file("<f4", "False", "(0, 3)", &[])).unwrap();
    assert_eq!((empty.rows(), empty.row_len()), (0, 3));
    empty.read_f32(0..0, &mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn a_damaged_file_is_named_with_its_sizes() {
    let short = npy_file("<f4", "False", "(2,)", &[0; 7]);
    let error = Npy::open(short.path()).unwrap_err().to_string();
    let header = fs_err::read(short.path()).unwrap().len() - 7;
    let expected = format!("truncated file: {} bytes, expected {} for float32 [2]", header + 7, header + 8);
    assert_eq!(error, format!("{}: {expected}", short.path().display()));
    let long = npy_file("<f4", "False", "(2,)", &[0; 9]);
    assert!(Npy::header(long.path()).unwrap_err().to_string().contains("overlong file"));
    let huge = npy_file("<f4", "False", "(9223372036854775807, 9)", &[]);
    assert!(Npy::open(huge.path()).unwrap_err().to_string().contains("too large"));
    let other = npy_file("|u1", "False", "(2,)", &[0; 2]);
    assert!(Npy::open(other.path()).unwrap_err().to_string().contains("unsupported dtype '|u1'"));
    for bytes in [&b""[..], b"\x93NUM", b"PK\x03\x04 something else"] {
        fs_err::write(other.path(), bytes).unwrap();
        assert!(Npy::open(other.path()).unwrap_err().to_string().contains("not a npy file"));
    }
    assert!(Npy::open("/nowhere/x.npy").unwrap_err().to_string().contains("/nowhere/x.npy"));
}

#[test]
fn shapes_can_be_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    write_i64(&path, &[2, 3], &[0; 6]).unwrap();
    let npy = Npy::open(&path).unwrap();
    npy.expect_shape(&[None, Some(3)]).unwrap();
    let error = npy.expect_shape(&[None, Some(4), Some(16)]).unwrap_err().to_string();
    assert!(error.ends_with("a.npy: shape [2, 3], expected [_, 4, 16]"), "{error}");
}
