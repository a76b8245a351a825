//! The fuzzer's loop: seeds are mutated, and each mutation is read or refused, without a panic or a hang.
//!
//! Two seconds with the suite; `ATTRFLOW_FUZZ_SECONDS=1800` makes it longer, `ATTRFLOW_FUZZ_SEED` changes the seed.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline;
use attrflow_engine::plan::graph::Graph;

use crate::mutation::Mutator;

/// Fragments of pipelines and configs, valid and invalid.
pub const SYNTAX: &[&str] = &[
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

/// A file to mutate, and the check of every mutation.
pub struct Seed {
    pub path: PathBuf,
    pub bytes: Vec<u8>,
}

/// Reads what became of a seed.
pub type Read<'a> = dyn Fn(&Seed, &[u8], &mut Mutator) + 'a;

/// A reader of mutated files.
pub struct Target<'a> {
    pub name: &'static str,
    pub seeds: Vec<Seed>,
    pub snippets: &'static [&'static str],
    pub read: Box<Read<'a>>,
}

/// The input being read, to find out why it hangs.
type Current = Arc<Mutex<Option<(Instant, PathBuf)>>>;

/// A file below `root` as a seed.
pub fn seed(root: &Path, path: PathBuf) -> Seed {
    Seed { bytes: fs_err::read(root.join(&path)).unwrap(), path }
}

/// The pipelines and configs in a folder, read with these kinds.
pub fn pipelines(folder: &Path, registry: Registry) -> Target<'_> {
    let toml = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "toml");
    let seeds = files(folder).into_iter().filter(toml);
    let seeds = seeds.map(|path| seed(folder, path.strip_prefix(folder).unwrap().to_path_buf()));
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
        match pipeline::load(&file, &sets, &registry) {
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

/// All files below a folder.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Copies a folder, with its links.
pub fn copy(from: &Path, to: &Path) {
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

/// Mutates the seeds of all targets in turn; panics if one is neither read nor refused.
#[expect(clippy::print_stdout, reason = "the counts are part of the test's output")]
pub fn fuzz(targets: &[Target<'_>], kept: &Path) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seconds = Duration::from_secs(number("ATTRFLOW_FUZZ_SECONDS").unwrap_or(2));
    let mut mutator = Mutator::new(number("ATTRFLOW_FUZZ_SEED").unwrap_or(20_240_607));
    assert!(targets.iter().all(|target| !target.seeds.is_empty()), "a target has nothing to begin with");
    fs_err::create_dir_all(kept).unwrap();
    let file = kept.join(format!("input-{}", std::process::id()));
    let current = Current::default();
    watch(current.clone());
    std::panic::set_hook(Box::new(|panic| PANIC.set(panic.to_string())));

    let (mut counts, mut spent) = (vec![0_u64; targets.len()], vec![Duration::ZERO; targets.len()]);
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
    for (target, count) in targets.iter().zip(&counts) {
        println!("{}: {count} tries", target.name);
    }
    println!("{} findings", found.len());
    assert!(counts.iter().all(|count| *count > LEAST), "{counts:?}");
    assert!(found.is_empty(), "{found:#?}");
}
