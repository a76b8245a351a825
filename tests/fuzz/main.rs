//! Fuzzes pipelines of the real kinds and input files: each is read or refused, without a panic or a hang.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../../crates/engine/tests/engine/fuzz_loop.rs"]
mod fuzz_loop;
#[path = "../../crates/engine/tests/engine/mutation.rs"]
mod mutation;

use std::path::{Path, PathBuf};

use attrflow::io::archive::{self, Limits};
use attrflow::io::captions::list;
use attrflow::io::compare::compare;
use attrflow::io::download::lock_file;
use attrflow::io::torch::pickle::Pickle;
use attrflow::io::{Captions, Npy, TensorFile, image};
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::models::clip::text::ClipConfig;
use attrflow::models::tokenizer::Tokenizer;
use attrflow::models::unet::config::UNetConfig;
use attrflow::models::vae::VaeConfig;
use attrflow_engine::store::digest_of;

use fuzz_loop::{Seed, Target, copy, files, seed};
use mutation::Mutator;

/// Pieces of binary headers.
const BINARY: &[&str] = &[
    "\0\0\0\0",
    "\u{7f}\u{7f}\u{7f}\u{7f}",
    "(4294967296,)",
    "(-1,)",
    "()",
    "'<f4'",
    "18446744073709551615",
    "PK\u{3}\u{4}",
    "]",
    "(",
    ".",
];

/// Input files: arrays, tensors, pickles, captions, pictures, archives.
fn inputs(folder: &Path) -> Target<'_> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let small = |path: &PathBuf| fs_err::metadata(path).unwrap().len() < 40_000;
    let mut seeds: Vec<Seed> =
        files(&golden).into_iter().filter(small).map(|path| seed(&golden, path)).collect();
    let mut header =
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }".to_vec();
    header.resize(127, b' ');
    header.push(b'\n');
    header.resize(128 + 24, 1);
    seeds.push(Seed { path: "a.npy".into(), bytes: header });
    let captions =
        br#"{"images":[{"id":1,"file_name":"a.png"}],"annotations":[{"image_id":1,"caption":"a","id":2}]}"#;
    seeds.push(Seed { path: "captions.json".into(), bytes: captions.to_vec() });
    let tokens = br#"{"model":{"type":"BPE","end_of_word_suffix":"</w>","vocab":{"a":0,"b</w>":1,"ab</w>":2},"merges":["a b</w>"]}}"#;
    seeds.push(Seed { path: "tokenizer.json".into(), bytes: tokens.to_vec() });
    seeds.push(Seed { path: "zip".into(), bytes: zipped() });
    // Of a network's folders, what is not weights.
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo/model");
    seeds.extend(files(&model).into_iter().filter(small).map(|path| seed(&model, path)));
    let tokenizer = folder.join("tokenizer");
    fs_err::create_dir_all(&tokenizer).unwrap();
    fs_err::copy(model.join("tokenizer/tokenizer_config.json"), tokenizer.join("tokenizer_config.json"))
        .unwrap();
    assert!(seeds.len() > 30, "{}", seeds.len());
    let read = move |seed: &Seed, bytes: &[u8], _: &mut Mutator| {
        let path = folder.join("input");
        fs_err::write(&path, bytes).unwrap();
        fs_err::write(folder.join("whole"), &seed.bytes).unwrap();
        let _ = compare(&path, &folder.join("whole"));
        if let Ok(npy) = Npy::open(&path) {
            let _ = npy.read_f32(0..npy.rows().min(9), &mut Vec::new());
            let _ = npy.read_i64(0..npy.rows().min(9), &mut Vec::new());
        }
        if let Ok(file) = TensorFile::open(&path) {
            file.headers().iter().for_each(|header| drop(file.bytes(header)));
        }
        if let Ok((pickle, end)) = Pickle::read(bytes) {
            assert!(end <= bytes.len());
            pickle.dict(pickle.root());
        }
        let _ = (Captions::read(&path, 1), Captions::read_all(&path), list::read(&path));
        let _ = (image::load_rgb(&path), lock_file::Pins::read(&path), digest_of(&path));
        let _ = (UNetConfig::read(&path), VaeConfig::read(&path), ClipConfig::read(&path));
        for name in ["tokenizer/tokenizer.json", "scheduler_config.json"] {
            fs_err::write(folder.join(name), bytes).unwrap();
        }
        let _ = (ScheduleConfig::load(folder), NoiseSchedule::load(folder));
        if let Ok(tokenizer) = Tokenizer::load(folder.join("tokenizer")) {
            let _ = tokenizer.encode("ab a photo");
        }
        let _ = archive::unpack(&path, folder.join("unpacked"), Limits { bytes: 1 << 20, ratio: 200 });
        let _ = fs_err::remove_dir_all(folder.join("unpacked"));
    };
    Target { name: "inputs", seeds, snippets: BINARY, read: Box::new(read) }
}

fn zipped() -> Vec<u8> {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    zip.start_file("folder/a.txt", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(b"text").unwrap();
    zip.finish().unwrap().into_inner()
}

#[test]
fn every_file_is_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let below = ["pipelines", "inputs"].map(|name| folder.path().join(name));
    below.iter().for_each(|folder| fs_err::create_dir_all(folder).unwrap());
    for name in ["pipelines", "configs"] {
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join(name), &below[0].join(name));
    }
    let targets = [fuzz_loop::pipelines(&below[0], attrflow::kinds::kinds()), inputs(&below[1])];
    fuzz_loop::fuzz(&targets, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz"));
}
