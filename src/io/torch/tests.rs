//! Files written by torch (`tests/golden/make_torch_files.py`), also damaged.

use std::path::PathBuf;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/torch").join(name)
}

#[derive(Deserialize)]
struct Expected {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: String,
}

fn expected() -> HashMap<String, Vec<Expected>> {
    serde_json::from_slice(&fs_err::read(golden("expected.json")).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn error(name: &str) -> String {
    let error = TorchFile::open(golden(name)).unwrap_err().to_string();
    error.replace(&golden("").display().to_string(), "")
}

#[test]
fn the_tensors_are_those_that_python_saved() {
    let expected = expected();
    assert!(expected.len() > 15);
    for (file, tensors) in expected {
        assert!(TorchFile::is_one(golden(&file)).unwrap());
        let found = TorchFile::open(golden(&file)).unwrap();
        assert_eq!(found.tensors().len(), tensors.len(), "{file}");
        for (found_tensor, tensor) in found.tensors().iter().zip(tensors) {
            let name = format!("{file}: {}", tensor.name);
            assert_eq!(found_tensor.name, tensor.name, "{name}");
            assert_eq!(found_tensor.dtype.to_string(), tensor.dtype, "{name}");
            assert_eq!(found_tensor.shape, tensor.shape, "{name}");
            assert_eq!(hex(&found.read(found_tensor).unwrap()), tensor.bytes, "{name}");
        }
    }
}

#[test]
fn views_share_their_storage_and_contiguous_ones_are_not_copied() {
    for file in ["views.pt", "views.legacy.pt"] {
        let file = TorchFile::open(golden(file)).unwrap();
        let tensor = |name| file.tensors().iter().find(|tensor| tensor.name == name).unwrap();
        assert_eq!(tensor("base").bytes, tensor("steps").bytes);
        assert_eq!((tensor("steps").offset, &tensor("steps").stride[..]), (7, &[6, 2][..]));
        let copied = |name| matches!(file.read(tensor(name)).unwrap(), Cow::Owned(_));
        assert!(!copied("base") && !copied("row") && !copied("last") && !copied("ones"));
        assert!(copied("column") && copied("transposed") && copied("expanded"));
    }
}

#[test]
fn a_call_in_the_pickle_is_refused_by_name() {
    for (file, at) in [("malicious.pt", 18), ("malicious.legacy.pt", 18)] {
        let system = error(file);
        let expected = format!(
            "{file}: refused: the pickle names \"posix.system\" at byte {at}, expected only tensors in dicts (no code was run)"
        );
        assert_eq!(system, expected);
    }
}

#[test]
fn a_checkpoint_of_a_training_gives_its_state_dict() {
    assert_eq!(TorchFile::open(golden("nested.pt")).unwrap().tensors().len(), 7);
}

#[test]
fn other_contents_are_described() {
    for (file, expected) in [
        (
            "nested.legacy.pt",
            "nested tensors below the keys `model` (7 tensors), `optimizer` (0 tensors), expected a dict from names to tensors; save only the dict to use",
        ),
        ("tensor.pt", "holds a tensor, expected a dict from names to tensors"),
        ("mixed.pt", "tensor `epoch`: an int, expected a tensor"),
        ("compressed.pt", "entry `fisher/data.pkl` is compressed (Deflated), expected an uncompressed entry"),
        ("big_endian.pt", "big-endian file, expected little-endian"),
        (
            "plain.pkl",
            "not a torch.save file: it begins with 80 02 7d 71 00 58 06 00, expected a zip archive or the legacy format",
        ),
    ] {
        assert_eq!(error(file), format!("{file}: {expected}"));
    }
    assert!(!TorchFile::is_one(golden("plain.pkl")).unwrap());
    assert!(TorchFile::open("/nowhere/x.pt").unwrap_err().to_string().contains("/nowhere/x.pt"));
}

/// The message for a golden file in which one place was changed to other bytes of the same length.
fn with(file: &str, from: &[u8], to: &[u8]) -> String {
    let mut bytes = fs_err::read(golden(file)).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), bytes).unwrap();
    let read = TorchFile::open(file.path())
        .and_then(|file| file.tensors().iter().try_for_each(|tensor| file.read(tensor).map(drop)));
    read.unwrap_err().to_string().replace(&file.path().display().to_string(), "FILE")
}

#[test]
fn a_tensor_beyond_its_storage_is_refused() {
    // The shape (5, 3) in the pickle of `0.weight` [3, 5].
    for file in ["state_dict.pt", "state_dict.legacy.pt"] {
        let found = with(file, b"K\x03K\x05\x86", b"K\x03K\x06\x86");
        assert!(
            found.starts_with("FILE: tensor `0.weight`: [3, 6] with stride [5, 1] from element 0 ends at 16, expected 15 elements of storage `"),
            "{found}"
        );
        let count = with(file, b"K\x0f", b"K\x10");
        assert!(
            count.starts_with("FILE: storage `") && count.ends_with("expected 16 elements of float32"),
            "{count}"
        );
        let kind = with(file, b"FloatStorage", b"QInt8Storage");
        assert!(
            kind.contains("torch.QInt8Storage, expected a float, int64, int32, uint8 or bool type"),
            "{kind}"
        );
    }
}

#[test]
fn a_repeated_element_cannot_exhaust_memory() {
    // One byte, repeated 2 billion times by a stride of 0.
    let huge = b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(\
        (X\x07\0\0\0storagectorch\nByteStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQK\0J\0\0\0\x7f\x85K\0\x85\x89NtRs.";
    let pickle = |bytes: &[u8]| [&b"\x80\x02"[..], bytes, b"."].concat();
    let bytes = [
        legacy::MAGIC,
        &pickle(b"M\xe9\x03"),
        &pickle(b"}X\x0d\0\0\0little_endian\x88s"),
        huge,
        &pickle(b"]X\x01\0\0\x000a"),
        b"\x01\0\0\0\0\0\0\0x",
    ]
    .concat();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(file.path(), bytes).unwrap();
    let error = TorchFile::open(file.path()).unwrap_err().to_string();
    assert!(error.ends_with("tensor `a`: [2130706432], expected 268435456 elements at most"), "{error}");
}

#[test]
fn damaged_values_are_detected_by_their_checksum() {
    let one_half = [0, 0, 0, 0, 0, 0, 0xf0, 0x3f]; // the weights of the norm are ones
    let found = with("fisher.pt", &one_half, &[1]);
    assert!(found.starts_with("FILE: damaged at tensor `1.weight`: checksum "), "{found}");
}

#[test]
fn written_files_equal_the_one_checked_with_python() {
    let expected = expected().remove("written.pt").unwrap();
    let bytes: Vec<Vec<u8>> = expected
        .iter()
        .map(|tensor| {
            let digits = tensor.bytes.as_bytes().chunks(2);
            digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
        })
        .collect();
    let entries: Vec<Entry<'_>> = expected
        .iter()
        .zip(&bytes)
        .map(|(tensor, bytes)| Entry {
            name: &tensor.name,
            dtype: if tensor.dtype == "float64" { Dtype::F64 } else { Dtype::F32 },
            shape: &tensor.shape,
            bytes,
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any name.pt");
    write(&path, &entries).unwrap();
    let written = fs_err::read(&path).unwrap();
    if std::env::var_os("ATTRFLOW_BLESS").is_some() {
        fs_err::write(golden("written.pt"), &written).unwrap();
    }
    assert!(
        written == fs_err::read(golden("written.pt")).unwrap(),
        "written.pt: other bytes, see make_torch_files.py"
    );

    for tensor in TorchFile::open(&path).unwrap().tensors().iter().filter(|tensor| !tensor.bytes.is_empty()) {
        assert_eq!(tensor.bytes.start % 64, 0, "{tensor:?}");
    }
    let wrong = Entry { shape: &[7], ..entries[0] };
    let error = write(&path, &[wrong]).unwrap_err().to_string();
    assert!(
        error.ends_with("tensor `down_blocks.0.attn2.to_k.weight`: 48 bytes, expected those of float64 [7]"),
        "{error}"
    );
}

#[derive(Debug, Clone)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Truncate(prop::sample::Index),
    Copy(prop::sample::Index, prop::sample::Index, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        8 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        1 => any::<prop::sample::Index>().prop_map(Damage::Truncate),
        2 => (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 1usize..40)
            .prop_map(|(from, to, length)| Damage::Copy(from, to, length)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn damage_never_panics(
        name in prop::sample::select(vec![
            "state_dict.pt", "views.pt", "kinds.pt", "parameters.pt", "protocol4.pt", "no_crc.pt", "nested.pt",
            "state_dict.legacy.pt", "views.legacy.pt", "parameters.legacy.pt", "malicious.pt",
        ]),
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        let mut bytes = fs_err::read(golden(name)).unwrap();
        for damage in damages {
            let length = bytes.len().max(1);
            match damage {
                Damage::Byte(at, byte) => if let Some(old) = bytes.get_mut(at.index(length)) { *old = byte },
                Damage::Truncate(at) => bytes.truncate(at.index(length)),
                Damage::Copy(from, to, count) => {
                    let (from, to) = (from.index(length), to.index(length));
                    let count = count.min(bytes.len().saturating_sub(from.max(to)));
                    bytes.copy_within(from..from + count, to);
                }
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), &bytes).unwrap();
        if let Ok(file) = TorchFile::open(file.path()) {
            for tensor in file.tensors() {
                let _ = file.read(tensor);
            }
        }
    }
}
