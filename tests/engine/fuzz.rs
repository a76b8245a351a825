//! Mutated pipelines, store files and inputs: whatever a file holds, it is read or refused, without a panic or a hang.
//!
//! Two seconds with the suite; `ATTRFLOW_FUZZ_SECONDS=1800` makes it longer, `ATTRFLOW_FUZZ_SEED` another.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attrflow::attest;
use attrflow::audit::{Audit, Diff};
use attrflow::graph::Graph;
use attrflow::io::archive::{self, Limits};
use attrflow::io::compare::compare;
use attrflow::io::pickle::Pickle;
use attrflow::io::{Captions, Npy, TensorFile, caption_list, image, pins};
use attrflow::manifest;
use attrflow::manifest::Outcome;
use attrflow::pipeline;
use attrflow::plan::Planner;
use attrflow::replay;
use attrflow::store::{Store, digest_of};

use crate::mutation::Mutator;
use crate::project::{PIPELINE, changed, files, project};
use crate::toys;

/// What pipelines and configs are made of, valid and not.
const SYNTAX: &[&str] = &[
    "${",
    "}",
    "${queries}",
    "${query.caption}",
    "${a.b.c}",
    "${}",
    "$",
    "{ ",
    " }",
    "[",
    "]",
    "[[",
    "]]",
    "\"",
    "'''",
    "\"\"\"",
    "\\u0000",
    "\\",
    "\n",
    "\r\n",
    "\t",
    "#",
    "=",
    ".",
    ",",
    "..",
    "/",
    "../",
    "not ",
    "when = \"not ${compute.fisher}\"",
    "each = { item = \"${items}\" }",
    "each = {}",
    "[stages.x]\nkind = \"say\"\n",
    "inputs = { a = \"x.text\" }",
    "inputs = { a = [\"x.text\", \"\"] }",
    "params = { text = \"${first}\" }",
    "kind",
    "config",
    "config = \"../configs/toy.toml\"\n",
    "0",
    "-1",
    "1e309",
    "nan",
    "inf",
    "99999999999999999999",
    "9223372036854775807",
    "0x7f",
    "1979-05-27T07:32:00Z",
    "true",
    "é",
    "\u{1f34e}",
    "\u{200b}",
    "\u{feff}",
    "name = \"\"",
    "name = \"a/b\"",
    "default",
    "include",
    "matrix",
];

/// The `--set` arguments that mutations start from.
const SETS: &[&str] = &[
    "first.text=b",
    "items.0.text='9'",
    "say={ text = 'z' }",
    "a",
    "=",
    "a=",
    "run.jobs=2",
    "items.two.name=\"x\"",
];

/// What JSON of the store is made of.
const JSON: &[&str] = &[
    "null",
    "{}",
    "[]",
    "\"\"",
    "-1",
    "1e400",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[[[[",
    ",",
    ":",
    "\"folder\":true",
];

/// What binary headers are made of.
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

/// A file that mutations begin from, and what is held against every mutation of it.
struct Seed {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Reads what became of a seed.
type Read<'a> = dyn Fn(&Seed, &[u8], &mut Mutator) + 'a;

/// A way to read what is mutated.
struct Target<'a> {
    name: &'static str,
    seeds: Vec<Seed>,
    snippets: &'static [&'static str],
    read: Box<Read<'a>>,
}

/// What is being read at the moment: for whoever has to find out why it hangs.
type Current = Arc<Mutex<Option<(Instant, PathBuf)>>>;

fn seed(root: &Path, path: PathBuf) -> Seed {
    Seed { bytes: fs_err::read(root.join(&path)).unwrap(), path }
}

/// Pipelines and their configs, of the real kinds and of the toys.
fn pipelines(folder: &Path) -> Target<'_> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    copy(&here.join("pipelines"), &folder.join("pipelines"));
    copy(&here.join("configs"), &folder.join("configs"));
    fs_err::write(folder.join("pipelines/toy.toml"), PIPELINE).unwrap();
    fs_err::write(folder.join("configs/toy.toml"), crate::project::CONFIG).unwrap();
    let toml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    let seeds = files(folder).into_iter().filter(toml);
    let seeds = seeds.map(|path| seed(folder, path.strip_prefix(folder).unwrap().to_path_buf()));
    let mut real = attrflow::stages::kinds();
    real.extend(toys::registry());
    let read = move |seed: &Seed, bytes: &[u8], mutator: &mut Mutator| {
        fs_err::write(folder.join(&seed.path), bytes).unwrap();
        let mut sets = Vec::new();
        while mutator.below(3) == 0 {
            let set = mutator.pick(SETS).as_bytes();
            let set = mutator.mutate(set, SYNTAX);
            sets.push(String::from_utf8_lossy(&set).into_owned());
        }
        let file = match seed.path.starts_with("pipelines") {
            true => folder.join(&seed.path),
            false => folder.join("pipelines").join(seed.path.file_name().unwrap()),
        };
        match pipeline::load(&file, &sets, &real) {
            Err((problems, sources)) => assert!(!problems.render(&sources, mutator.below(2) == 0).is_empty()),
            Ok((pipeline, sources)) => match Graph::new(&pipeline) {
                Err(problems) => assert!(!problems.render(&sources, false).is_empty()),
                Ok(graph) => assert_eq!(graph.order().len(), pipeline.stages.len()),
            },
        }
        fs_err::write(folder.join(&seed.path), &seed.bytes).unwrap();
    };
    Target { name: "pipelines", seeds: seeds.collect(), snippets: SYNTAX, read: Box::new(read) }
}

/// Everything that the runner reads back of what it wrote.
fn store(folder: &Path) -> Target<'_> {
    let mut project = project();
    project.run(&[]);
    std::thread::sleep(Duration::from_millis(120));
    project.run(&["first.times=3"]);
    fs_err::write(project.path("own.txt"), "source\naab").unwrap();
    project.adopt_set(&[], "second", &project.path("own.txt"), true).unwrap();
    project.run(&[]);
    let pristine = folder.join("pristine");
    copy(&project.root, &pristine);
    let json = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        [".json", ".list", ".adopted", ".lock"].iter().any(|ending| name.ends_with(ending))
    };
    let seeds = ["cache", "results"].iter().flat_map(|below| files(&pristine.join(below))).filter(json);
    let seeds: Vec<Seed> =
        seeds.map(|path| seed(&pristine, path.strip_prefix(&pristine).unwrap().to_path_buf())).collect();
    assert!(seeds.len() > 20, "{}", seeds.len());
    project.backend.pause = Duration::ZERO;
    let registry = toys::registry();
    let read = move |seed: &Seed, bytes: &[u8], mutator: &mut Mutator| {
        let path = project.path(seed.path.to_str().unwrap());
        replace(&path, bytes);
        if mutator.below(16) == 0 {
            // Whatever it makes of it, it ends, and says which file is damaged where it can't go on.
            if let Err(error) = project.try_run(&[], &[]) {
                assert!(error.to_string().starts_with("cache: "), "{error}");
            }
            fs_err::remove_dir_all(&project.root).unwrap();
            copy(&pristine, &project.root);
            return;
        }
        let file = project.path("pipelines/toy.toml");
        let (pipeline, _) = pipeline::load(&file, &[], &registry).ok().unwrap();
        let graph = Graph::new(&pipeline).ok().unwrap();
        let store = Store::open(&project.cache).unwrap();
        let _ = Planner::new(&pipeline, &store, &project.numerics, &[]).all(&graph);
        let runs = manifest::list(&store.runs("toy"));
        let manifests: Vec<_> = runs.iter().filter_map(|path| manifest::read(path).ok()).collect();
        for manifest in &manifests {
            let _ = Audit { manifest, store: &store, all: true }.execute();
            let _ = Diff::of(manifest, &manifests[0]);
            let names: Vec<String> = manifest.stages.iter().map(|record| record.stage.clone()).collect();
            if let Ok(rebuilt) = replay::replay(manifest, &names, &registry, &store, &project.root) {
                let _ = Graph::new(&rebuilt.pipeline);
                let inside =
                    |folder: PathBuf| folder.components().all(|part| matches!(part, Component::Normal(_)));
                assert!(rebuilt.pipeline.stages.iter().all(|stage| inside(stage.folder())));
            }
            if let Ok(outputs) =
                attest::outputs(manifest, &store, &|record, port| format!("{}.{port}", record.stage))
            {
                let _ = attest::statement(manifest, &outputs, "");
            }
            for artifact in manifest.stages.iter().flat_map(|record| record.outputs.values()) {
                let _ = (
                    store.loss(artifact),
                    store.listing(&artifact.digest),
                    store.sub(&artifact.digest, "sub/title.txt"),
                );
            }
        }
        replace(&path, &seed.bytes);
    };
    Target { name: "store", seeds, snippets: JSON, read: Box::new(read) }
}

/// What comes from elsewhere: arrays, tensors, pickles, captions, pictures, archives.
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
    seeds.push(Seed { path: "zip".into(), bytes: zipped() });
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
        let _ = (Captions::read(&path, 1), Captions::read_all(&path), caption_list::read(&path));
        let _ = (image::load_rgb(&path), pins::Pins::read(&path), digest_of(&path));
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

fn replace(path: &Path, bytes: &[u8]) {
    let _ = fs_err::remove_file(path);
    fs_err::write(path, bytes).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let to = to.to_path_buf();
    fs_err::create_dir_all(&to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match fs_err::symlink_metadata(&path).unwrap() {
            link if link.is_symlink() => {
                std::os::unix::fs::symlink(fs_err::read_link(&path).unwrap(), target).unwrap()
            }
            folder if folder.is_dir() => copy(&path, &target),
            _ => drop(fs_err::copy(&path, &target).unwrap()),
        }
    }
}

#[expect(clippy::print_stderr, reason = "the process is about to end")]
/// Ends the process if one input takes half a minute; the input stays in its file.
fn watch(current: Current) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Some((begun, file)) = &*current.lock().unwrap()
                && begun.elapsed() > Duration::from_secs(30)
            {
                eprintln!("hangs: {}", file.display());
                std::process::abort();
            }
        }
    });
}

thread_local! {
    /// Where the last panic was.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Each kind of file is tried more often than this, however long it takes.
const LEAST: u64 = 20;

#[test]
fn whatever_a_file_holds_is_read_or_refused() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = Duration::from_secs(number("ATTRFLOW_FUZZ_SECONDS").unwrap_or(2));
    let mut mutator = Mutator::new(number("ATTRFLOW_FUZZ_SEED").unwrap_or(20_240_607));
    let folder = tempfile::tempdir().unwrap();
    let below = ["pipelines", "store", "inputs"].map(|name| folder.path().join(name));
    below.iter().for_each(|folder| fs_err::create_dir_all(folder).unwrap());
    let targets = [pipelines(&below[0]), store(&below[1]), inputs(&below[2])];
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    fs_err::create_dir_all(&kept).unwrap();
    let file = kept.join(format!("input-{}", std::process::id()));
    let current = Current::default();
    watch(current.clone());
    std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string())));

    let (mut counts, mut spent) = ([0_u64; 3], [Duration::ZERO; 3]);
    let mut found = Vec::<(String, PathBuf)>::new();
    let begun = Instant::now();
    // A machine that is busy with other tests takes longer, and tries no less.
    while begun.elapsed() < seconds || counts.iter().any(|count| *count <= LEAST) {
        // Each gets the same time, not the same number: some are much slower than others.
        let turn = (0..targets.len()).min_by_key(|&turn| spent[turn]).unwrap_or(0);
        let target = &targets[turn];
        let seed = &target.seeds[mutator.below(target.seeds.len())];
        let bytes = mutator.mutate(&seed.bytes, target.snippets);
        // Where an abort or a hang leaves it.
        fs_err::write(&file, &bytes).unwrap();
        let now = Instant::now();
        *current.lock().unwrap() = Some((now, file.clone()));
        let result = catch_unwind(AssertUnwindSafe(|| (target.read)(seed, &bytes, &mut mutator)));
        *current.lock().unwrap() = None;
        spent[turn] += now.elapsed();
        counts[turn] += 1;
        if result.is_err() {
            let panic = PANIC.take();
            let place = panic.lines().next().map(str::to_owned);
            if !found.iter().any(|(other, _)| other.lines().next().map(str::to_owned) == place) {
                let name = kept.join(format!("found-{}-{}", std::process::id(), found.len()));
                fs_err::write(&name, &bytes).unwrap();
                found.push((format!("{panic}\n{}: {}", target.name, seed.path.display()), name));
            }
        }
    }
    let _ = std::panic::take_hook();
    fs_err::remove_file(&file).unwrap();
    let [pipelines, store, inputs] = counts;
    println!("{pipelines} pipelines, {store} store files, {inputs} inputs; {} findings", found.len());
    assert!(counts.iter().all(|count| *count > LEAST), "{counts:?}");
    assert!(found.is_empty(), "{found:#?}");
}

/// What the fuzzer found.
#[test]
fn what_once_broke_the_runner_is_told() {
    let project = project();
    for set in ["jin\u{fffd}=", "\u{1f34e}=", "jin\u{fffd}"] {
        assert!(project.problems(&[set]).contains("error"), "{set}");
    }
    let ran = project.run(&[]);
    for (stage, port) in [("first", "text"), ("lines", "lines")] {
        let name = ran.stage(stage).fingerprint.unwrap().to_string();
        let file = format!("cache/recipes-v1/{}/{name}.json", &name[..2]);
        let text = project.read(&file);
        project.write(&file, &changed(&text, &format!("\"{port}\":{{"), "\"other\":{"));
        let again = project.run(&[]);
        assert_eq!(again.stage(stage).outcome, Outcome::Ran, "{stage}");
        let told = format!(
            "is damaged: its outputs do not have its checksum; remove it to have it rebuilt; `{stage}` is computed"
        );
        assert!(again.warnings().iter().any(|warning| warning.contains(&told)), "{:?}", again.warnings());
        assert_eq!(project.run(&[]).ran(), [""; 0]);
    }
}
