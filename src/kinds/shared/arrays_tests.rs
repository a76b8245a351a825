//! Reading text embeddings that are far larger than memory.
//!
//! The whole file is read on demand:
//!
//! ```text
//! cargo nextest run --run-ignored only -E 'test(every_text_of_sixty_gigabytes)'
//! ```

use std::os::unix::fs::FileExt as _;

use half::f16;

use super::*;
use crate::io::NpyWriter;
use crate::method::data::to_device;

const IMAGES: usize = 76_000;
const CAPTIONS: usize = 5;
const TEXT: [usize; 2] = [77, 1024];
/// Texts that hold numbers; those of the rest of the file are zeros, which take no room on the disk.
const WRITTEN: [usize; 4] = [0, 12_345, CAPTIONS * IMAGES / 2 + 3, CAPTIONS * IMAGES - 1];

/// The array in the file: [images, captions, 77, 1024] in float16, 60 GB.
fn texts() -> (tempfile::NamedTempFile, NpyRows) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let shape = [IMAGES, CAPTIONS, TEXT[0], TEXT[1]];
    drop(NpyWriter::create(file.path(), Dtype::F16, &shape).unwrap());
    let header = file.as_file().metadata().unwrap().len();
    let length = (TEXT[0] * TEXT[1]) as u64;
    file.as_file().set_len(header + (IMAGES * CAPTIONS) as u64 * length * 2).unwrap();
    for row in WRITTEN {
        let bytes: Vec<u8> = (0..length).flat_map(|i| number(row, i).to_le_bytes()).collect();
        file.as_file().write_all_at(&bytes, header + row as u64 * length * 2).unwrap();
    }
    let rows = NpyRows::new(Npy::open(file.path()).unwrap(), 2);
    assert_eq!(Rows::len(&rows), IMAGES * CAPTIONS);
    (file, rows)
}

fn number(row: usize, place: u64) -> f16 {
    f16::from_f32((place % 500) as f32 / 8.0 + (row % 100) as f32)
}

/// Reads rows and checks them.
fn read(texts: &NpyRows, rows: &[usize]) {
    let found = to_device(&texts.read(rows).unwrap(), Device::Cpu);
    assert_eq!(found.size(), [rows.len() as i64, 77, 1024]);
    let sums = found.sum_dim_intlist([1i64, 2].as_slice(), false, Kind::Double);
    for (i, &row) in rows.iter().enumerate() {
        let written = WRITTEN.contains(&row);
        let value = |place| if written { f64::from(number(row, place)) } else { 0.0 };
        let expected = if written { (0..77 * 1024).map(value).sum() } else { 0.0 };
        assert_eq!(sums.double_value(&[i as i64]), expected, "row {row}");
        assert_eq!(found.double_value(&[i as i64, 1, 3]), value(1024 + 3));
    }
}

/// The most memory that the process ever held, in bytes.
fn peak() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[track_caller]
fn assert_memory_is_small() {
    assert!(peak() < 1_000_000_000, "{} bytes of memory", peak());
}

#[test]
#[ignore = "two minutes: batches from a file of 60 GB with holes"]
fn batches_all_over_sixty_gigabytes_fit_into_memory() {
    tch::set_num_threads(1); // so short are the tensors' lives that threads would only wait for each other
    let (_file, texts) = texts();
    // 2000 batches of texts, far from each other.
    for batch in 0..2000 {
        let first = batch * (IMAGES * CAPTIONS / 2000);
        read(&texts, &[first + 70, first]);
    }
    for row in WRITTEN {
        read(&texts, &[row]);
    }
    // And more than a gigabyte in a stretch: a map of the file would hold all of it.
    let first = WRITTEN[2] - 4_000;
    for batch in 0..80 {
        read(&texts, &(first + 100 * batch..first + 100 * (batch + 1)).collect::<Vec<_>>());
    }
    assert_memory_is_small();
}

#[test]
#[ignore = "reads 60 GB: see the head of this file"]
fn every_text_of_sixty_gigabytes() {
    tch::set_num_threads(1); // so short are the tensors' lives that threads would only wait for each other
    let (_file, texts) = texts();
    let all: Vec<usize> = (0..IMAGES * CAPTIONS).collect();
    all.chunks(100).for_each(|batch| read(&texts, batch));
    assert_memory_is_small();
}
