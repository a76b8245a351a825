//! Files with known differences.

use safetensors::tensor::TensorView;

use super::*;
use crate::io::npy::writer;

/// A folder with two files.
struct Pair(tempfile::TempDir);

impl Pair {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Both as float32 arrays of this shape.
    fn npy(shape: &[usize], a: &[f32], b: &[f32]) -> Compared {
        let pair = Self::new();
        for (name, values) in [("a", a), ("b", b)] {
            writer::write_f32(pair.path(name), shape, values).unwrap();
        }
        compare(&pair.path("a"), &pair.path("b")).unwrap()
    }

    fn raw(a: &[u8], b: &[u8]) -> Compared {
        let pair = Self::new();
        fs_err::write(pair.path("a"), a).unwrap();
        fs_err::write(pair.path("b"), b).unwrap();
        compare(&pair.path("a"), &pair.path("b")).unwrap()
    }
}

fn values(compared: Compared) -> Values {
    match compared {
        Compared::Values(values) => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_value_and_the_largest_differences_are_found() {
    let next = f32::from_bits(1.0_f32.to_bits() + 3);
    let found =
        values(Pair::npy(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 1.0, 8.0], &[0.0, 1.0, 2.0, 3.0, next, 10.0]));
    assert_eq!((found.index, found.differing, found.values, found.array), (vec![1, 1], 2, 6, None));
    assert_eq!(found.first, ("1".to_owned(), next.to_string()));
    assert_eq!((found.absolute, found.relative), (2.0, 0.2));
    // Between 8 and 16 there are 2^23 floats, a quarter of them up to 10.
    assert_eq!((found.ulps, found.not_finite), (Some(1 << 21), 0));
}

#[test]
fn ulps_are_counted_across_zero() {
    let least = f32::from_bits(1);
    let ulps = |a: f32, b: f32| values(Pair::npy(&[1], &[a], &[b])).ulps;
    assert_eq!(ulps(least, -least), Some(2));
    assert_eq!(ulps(-1.0, f32::from_bits((-1.0_f32).to_bits() + 1)), Some(1));
    let zeros = values(Pair::npy(&[1], &[0.0], &[-0.0]));
    assert_eq!((zeros.absolute, zeros.relative, zeros.ulps, zeros.differing), (0.0, 0.0, Some(0), 1));
}

#[test]
fn values_that_are_not_finite_are_counted_separately() {
    let found = values(Pair::npy(&[3], &[f32::NAN, 1.0, f32::INFINITY], &[0.0, 1.5, 2.0]));
    assert_eq!((found.not_finite, found.absolute, found.index), (2, 0.5, vec![0]));
    assert_eq!(Pair::npy(&[1], &[f32::NAN], &[f32::NAN]), Compared::Same);
}

#[test]
fn a_value_after_the_first_block_has_its_index() {
    let a = vec![1.0_f32; 3 * (BLOCK / 4) + 5];
    let mut b = a.clone();
    let place = 2 * (BLOCK / 4) + 7;
    b[place] = 2.0;
    let found = values(Pair::npy(&[a.len()], &a, &b));
    assert_eq!((found.index, found.differing, found.values), (vec![place], 1, a.len() as u64));
}

#[test]
fn other_shapes_are_reported_as_such() {
    let pair = Pair::new();
    for (name, shape) in [("a", [2, 3]), ("b", [3, 2])] {
        writer::write_f32(pair.path(name), &shape, &[0.0; 6]).unwrap();
    }
    let found = compare(&pair.path("a"), &pair.path("b")).unwrap().to_string();
    assert_eq!(found, "an array, float32 [2, 3] against an array, float32 [3, 2]");
}

#[test]
fn tensors_are_compared_by_name() {
    let pair = Pair::new();
    let write = |name: &str, tensors: &[(&str, [f64; 2])]| {
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(_, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views = tensors.iter().zip(&bytes).map(|((name, _), bytes)| {
            (*name, TensorView::new(safetensors::Dtype::F64, vec![2], bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &pair.path(name)).unwrap();
    };
    write("a", &[("w", [1.0, 2.0]), ("b", [0.0, 0.0])]);
    write("b", &[("w", [1.0, 2.5]), ("b", [0.0, 0.0])]);
    write("c", &[("w", [1.0, 2.0])]);
    let found = values(compare(&pair.path("a"), &pair.path("b")).unwrap());
    assert_eq!((found.array.as_deref(), found.index, found.arrays, found.values), (Some("w"), vec![1], 1, 4));
    assert_eq!((found.absolute, found.relative), (0.5, 0.2));
    let found = compare(&pair.path("a"), &pair.path("c")).unwrap().to_string();
    assert!(found.contains("`b`, float64 [2]"), "{found}");
}

#[test]
fn other_files_are_compared_by_their_bytes() {
    assert_eq!(Pair::raw(b"text", b"text"), Compared::Same);
    assert_eq!(Pair::raw(b"text", b"test"), Compared::Bytes { at: 2, a: 4, b: 4 });
    assert_eq!(Pair::raw(b"text", b"texts"), Compared::Bytes { at: 4, a: 4, b: 5 });
    assert_eq!(Pair::raw(b"", b"x"), Compared::Bytes { at: 0, a: 0, b: 1 });
}

#[test]
fn indices_follow_the_order_of_the_file() {
    assert_eq!(index(5, &[2, 3], false), [1, 2]);
    assert_eq!(index(1, &[2, 3], true), [1, 0]);
    assert_eq!(index(0, &[], false), [0; 0]);
}
