//! The engine's own time: figures to read, on demand; no time is asserted.
//!
//! `cargo nextest run --test engine --run-ignored only --no-capture speed`, with an optimised build.

use std::fmt::Write;
use std::io::Write as _;
use std::time::{Duration, Instant};

use attrflow_engine::identity::digest::Digest;
use attrflow_engine::pipeline;
use attrflow_engine::plan::Planner;
use attrflow_engine::plan::graph::Graph;
use attrflow_engine::provenance::manifest;
use attrflow_engine::store::Store;

use crate::project::Project;
use crate::toys::registry;

const STAGES: usize = 1000;
const CHAIN: usize = 10;

/// Chains of ten stages that write a few bytes.
fn chains(stages: usize) -> String {
    let mut text = String::new();
    for index in 0..stages {
        let input = match index % CHAIN {
            0 => "../source.txt".to_owned(),
            _ => format!("s{}.text", index - 1),
        };
        // Each chain writes a text of its own.
        let (letter, times) = (char::from(b'a' + (index / CHAIN % 26) as u8), index / CHAIN / 26 % 9 + 1);
        let params = format!("{{ text = \"{letter}{index}\", times = {times} }}");
        writeln!(text, "[stages.s{index}]\nkind = \"say\"\nparams = {params}").unwrap();
        writeln!(text, "inputs = {{ a = \"{input}\" }}").unwrap();
    }
    text
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = work();
    print(what, begun.elapsed());
    result
}

fn print(what: &str, time: Duration) {
    let _ = writeln!(std::io::stderr(), "{what:<44} {:>9.2} ms", time.as_secs_f64() * 1e3);
}

#[test]
#[ignore = "times, for reading"]
fn a_thousand_stages() {
    let project = Project::new(&chains(STAGES), "");
    project.write("source.txt", "source\n");
    let cold = timed("cold run, 1,000 stages", || project.run(&[]));
    assert_eq!(cold.ran().len(), STAGES);
    std::thread::sleep(Duration::from_millis(300));
    for round in 0..4 {
        let again = timed(&format!("no-op {round}, 1,000 stages"), || project.run(&[]));
        assert_eq!(again.ran(), [""; 0]);
    }
    let file = project.path("pipelines/toy.toml");
    let (pipeline, _) =
        timed("  reading the pipeline", || pipeline::load(&file, &[], &registry()).ok().unwrap());
    let graph = timed("  the graph", || Graph::new(&pipeline).ok().unwrap());
    let store = Store::open(&project.cache).unwrap();
    let planner = Planner::new(&pipeline, &store, &project.numerics, &[]);
    timed("  deciding on all stages", || planner.all(&graph).unwrap());
    timed("  deciding on them once more", || planner.all(&graph).unwrap());
    timed("  writing a manifest", || manifest::write(&store.runs("copy"), &cold.manifest).unwrap());
    fs_err::remove_dir_all(project.path("results")).unwrap();
    timed("results made anew", || project.run(&[]));
}

#[test]
#[ignore = "times, for reading"]
fn planning_ten_thousand_stages() {
    let project = Project::new(&chains(10 * STAGES), "");
    project.write("source.txt", "source\n");
    let file = project.path("pipelines/toy.toml");
    let (pipeline, _) =
        timed("reading 10,000 stages", || pipeline::load(&file, &[], &registry()).ok().unwrap());
    let graph = timed("their graph", || Graph::new(&pipeline).ok().unwrap());
    let store = Store::open(&project.cache).unwrap();
    let planner = Planner::new(&pipeline, &store, &project.numerics, &[]);
    timed("deciding on them, nothing there", || planner.all(&graph).unwrap());
    project.run(&[]);
    std::thread::sleep(Duration::from_millis(300));
    project.run(&[]);
    let store = Store::open(&project.cache).unwrap();
    let planner = Planner::new(&pipeline, &store, &project.numerics, &[]);
    timed("deciding on them, all there", || planner.all(&graph).unwrap());
}

#[test]
#[ignore = "times, for reading"]
fn a_large_source() {
    const GIB: usize = 4;
    let project = Project::new("[stages.first]\nkind = \"say\"\n", "");
    let path = project.path("large");
    {
        let mut file = fs_err::File::create(&path).unwrap();
        let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        (0..GIB << 10).for_each(|_| file.write_all(&block).unwrap());
    }
    timed("hash of 4 GiB, warm up", || Digest::of_file(&path).unwrap());
    let store = Store::open(&project.cache).unwrap();
    timed("first hash of 4 GiB", || store.source(&path).unwrap());
    store.try_flush().unwrap();
    let store = Store::open(&project.cache).unwrap();
    timed("again", || store.source(&path).unwrap());
}
