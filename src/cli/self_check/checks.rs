//! The checks, one after the other.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use anyhow::Context as _;
use attrflow_statistics::correlation::spearman;
use serde_json::Value as Json;

use super::Check;
use super::numbers::{self, ARRAYS, Expected};
use super::program::{Ended, Program};
use super::project::{self, PIPELINE};
use crate::cli::failure::Failure;
use crate::io::json;
use attrflow_engine::identity::digest::Digest;
use attrflow_engine::store::{Store, format_bytes};

/// Largest errors, relative to the largest value of an array.
const ON_CPU: f64 = 1e-5;
const ON_GPU: f64 = 1e-4;
/// The least rank correlation of influences in bfloat16.
const BF16: f64 = 0.9;
/// What a worker says where its kernels for a GPU do not compile.
const NO_KERNELS: &str = "the fused CUDA kernels cannot be used";
/// The number of stages of the pipeline.
const STAGES: usize = 7;
/// One worker with one thread, whose bytes are the same on each run.
const ONE_WORKER: [&str; 5] =
    ["--device=cpu", "--threads=1", "--micro-batch=128", "--cache=cache", "--jobs=1"];
/// An output of which a byte is flipped.
const DAMAGED: &str = "pretrain_loss.losses";
/// The exit code of a verification that found damage.
const DAMAGE: i32 = 4;

/// An output of a stage.
#[derive(Debug, PartialEq)]
struct Output {
    digest: String,
    path: PathBuf,
}

/// By stage and port.
type Outputs = BTreeMap<String, Output>;

/// The checks of a project in a folder.
pub(super) struct Checks<'a> {
    program: &'a Program,
    folder: PathBuf,
    say: &'a dyn Fn(&Check),
    /// Those that are done.
    pub done: Vec<Check>,
}

impl<'a> Checks<'a> {
    /// Nothing is checked yet; each check is said when it is done.
    pub fn new(program: &'a Program, folder: PathBuf, say: &'a dyn Fn(&Check)) -> Self {
        Self { program, folder, say, done: Vec::new() }
    }

    /// All checks, up to one without which the others make no sense.
    ///
    /// # Errors
    /// A missing libtorch, a file that cannot be read or written, and a signal.
    pub fn all(&mut self, gpu: Option<&str>) -> Result<(), Failure> {
        self.libtorch(gpu.is_some())?;
        project::write(&self.folder).map_err(refused)?;
        let expected = Expected::load().map_err(refused)?;
        let Some((_, first)) = self.pipeline("pipeline", &ONE_WORKER)? else { return Ok(()) };
        self.numbers("", &expected, ON_CPU)?;
        self.second_run(&first)?;
        self.flipped_byte(&first)?;
        self.two_workers(&first)?;
        match gpu {
            Some(devices) => self.gpu(devices, &expected),
            None => Ok(()),
        }
    }

    fn report(&mut self, name: impl Into<String>, result: Result<String, String>) {
        let passed = result.is_ok();
        let (Ok(found) | Err(found)) = result;
        let check = Check { name: name.into(), passed, found };
        (self.say)(&check);
        self.done.push(check);
    }

    /// What `doctor` says of libtorch: without it, nothing can be computed.
    fn libtorch(&mut self, gpu: bool) -> Result<(), Failure> {
        let ended = self.program.run(&self.folder, &["doctor", "--json"])?;
        let report = ended.lines.first().unwrap_or(&Json::Null);
        // A GPU that cannot be used is no fault of the CPU.
        let usable = report["worker"]["computes"] == true && (!gpu || ended.code == Some(0));
        if !usable {
            let why = ended.message().to_owned();
            let summary = why.lines().next().unwrap_or_default().to_owned();
            self.report("libtorch", Err(summary));
            return Err(Failure::Missing(why));
        }
        let text = |value: &Json| value.as_str().unwrap_or("an unknown version").to_owned();
        let place = report["worker"]["library"].as_str().unwrap_or("an unknown path");
        self.report("libtorch", Ok(format!("{} from {place}", text(&report["libtorch"]))));
        Ok(())
    }

    fn run(&self, arguments: &[&str]) -> Result<Ended, Failure> {
        self.program.run(&self.folder, &[&["run", PIPELINE, "--json"], arguments].concat())
    }

    /// Runs the pipeline where nothing is cached; `None` if that fails.
    fn pipeline(&mut self, name: &str, arguments: &[&str]) -> Result<Option<(Ended, Outputs)>, Failure> {
        // The log says what memory the workers took.
        let ended = self.run(&[arguments, &["-vv"]].concat())?;
        let stages = ended.stages("stage_finished").len();
        if ended.code != Some(0) || stages != STAGES {
            let why = if ended.code == Some(0) {
                format!("{stages} stages ran, expected {STAGES}")
            } else {
                ended.why()
            };
            self.report(name, Err(why));
            return Ok(None);
        }
        let [memory, on_device] = ["peak_memory", "peak_device_memory"].map(|name| ended.largest(name));
        let mut found = format!("{STAGES} stages, a worker took up to {}", format_bytes(memory));
        if on_device > 0 {
            found += &format!("; {} of the GPU's memory are in use", format_bytes(on_device));
        }
        self.report(name, Ok(found));
        let outputs = outputs(&ended);
        Ok(Some((ended, outputs)))
    }

    fn results(&self) -> PathBuf {
        self.folder.join("results/self-check")
    }

    /// Every array, the ranks, and the table that people read.
    fn numbers(&mut self, prefix: &str, expected: &Expected, bound: f64) -> Result<(), Failure> {
        let results = self.results();
        for (name, file) in ARRAYS {
            let compared = expected.compare(&results, file, bound).map_err(refused)?;
            let found =
                compared.map(|error| format!("largest error {error:.1e}, at most {bound:.0e} allowed"));
            self.report(format!("{prefix}{name}"), found);
        }
        let ranks = numbers::rank(&results).map_err(refused)?;
        self.report(format!("{prefix}ranks"), same_ranks(&ranks, &expected.rank));
        let table = table(&results).map_err(refused)?;
        self.report(format!("{prefix}ranking"), same_ranks(&table, &expected.rank));
        Ok(())
    }

    fn second_run(&mut self, first: &Outputs) -> Result<(), Failure> {
        let ended = self.run(&ONE_WORKER)?;
        let (cached, ran) = (ended.stages("stage_cached").len(), ended.stages("stage_finished"));
        let result = match ended.code {
            Some(0) if cached == STAGES && ran.is_empty() => {
                unchanged(first, &outputs(&ended)).map(|()| format!("all {STAGES} stages are cached"))
            }
            Some(0) => {
                Err(format!("{cached} stages are cached, and {ran:?} ran, expected {STAGES} and none"))
            }
            _ => Err(ended.why()),
        };
        self.report("second run", result);
        Ok(())
    }

    /// Damages an object of the cache: `cache verify` must find it, and the next run must give the same bytes again.
    fn flipped_byte(&mut self, first: &Outputs) -> Result<(), Failure> {
        let output = first.get(DAMAGED).with_context(|| format!("no output {DAMAGED}")).map_err(refused)?;
        let digest = Digest::from_str(&output.digest).map_err(anyhow::Error::msg).map_err(refused)?;
        let object = Store::open(&self.folder.join("cache"))?.path(&digest);
        flip_a_byte(&object).map_err(refused)?;
        let ended = self.program.run(&self.folder, &["cache", "verify", "--json", "--cache=cache"])?;
        let found: Vec<&str> = ended.lines.iter().filter_map(|line| line["path"].as_str()).collect();
        let is_object = |path: &&str| path.ends_with(&output.digest);
        let verified = match (ended.code, found.as_slice()) {
            (Some(DAMAGE), [path]) if is_object(path) => {
                Ok(format!("`cache verify` found it in the object of {DAMAGED}"))
            }
            (code, _) => Err(format!(
                "`cache verify` ended with {code:?} and named {found:?}, expected {DAMAGE} and {}",
                object.display()
            )),
        };
        let verified_it = verified.is_ok();
        self.report("a flipped byte", verified);
        if !verified_it {
            return Ok(());
        }
        let ended = self.run(&ONE_WORKER)?;
        let ran = ended.stages("stage_finished");
        let mended = match ended.code {
            Some(0) if DAMAGED.split_once('.').is_some_and(|(stage, _)| ran == [stage]) => {
                let shown = Digest::of_file(&output.path).map_err(refused)?;
                match shown == digest {
                    true => unchanged(first, &outputs(&ended)),
                    false => Err(format!("{} holds other bytes", output.path.display())),
                }
            }
            Some(0) => Err(format!("{ran:?} ran, expected the stage of {DAMAGED}")),
            _ => Err(ended.why()),
        };
        self.report(
            "the run after it",
            mended.map(|()| "computed what was damaged, with the same bytes".to_owned()),
        );
        Ok(())
    }

    /// Two workers in an empty cache.
    fn two_workers(&mut self, first: &Outputs) -> Result<(), Failure> {
        let [device, threads, micro_batch, ..] = ONE_WORKER;
        let ended = self.run(&[device, threads, micro_batch, "--cache=second", "--jobs=2"])?;
        let result = match ended.code {
            Some(0) => unchanged(first, &outputs(&ended)),
            _ => Err(ended.why()),
        };
        self.report("two workers", result.map(|()| "the same bytes as one".to_owned()));
        Ok(())
    }

    /// The same numbers on a GPU; its kernels; and the ranks in bfloat16.
    fn gpu(&mut self, devices: &str, expected: &Expected) -> Result<(), Failure> {
        let device = format!("--device={devices}");
        let Some((ended, _)) = self.pipeline("GPU: pipeline", &[&device, "--cache=gpu"])? else {
            return Ok(());
        };
        self.numbers("GPU: ", expected, ON_GPU)?;
        let arguments = [&device, "--cache=bf16", "--set=loss.precision=\"bf16\""];
        let short = self.pipeline("GPU: bfloat16", &arguments)?;
        let both = short.iter().map(|(ended, _)| ended).chain([&ended]);
        // A worker whose kernels do not compile says so, and goes on without them.
        let messages = both.flat_map(|ended| ended.events("log")).filter_map(|line| line["message"].as_str());
        let warnings: Vec<&str> = messages.filter(|message| message.contains(NO_KERNELS)).collect();
        let kernels = if warnings.is_empty() { Ok("compiled".to_owned()) } else { Err(warnings.join("; ")) };
        self.report("GPU: kernels", kernels);
        if short.is_some() {
            let influence = numbers::influence(&self.results()).map_err(refused)?;
            let result = correlated(&influence, &expected.arrays[numbers::INFLUENCE][""].values);
            self.report("GPU: ranks of bfloat16", result);
        }
        Ok(())
    }
}

fn refused(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Refused(format!("{:#}", error.into()))
}

/// The outputs of all stages, computed or cached.
fn outputs(ended: &Ended) -> Outputs {
    let lines = ended.events("stage_finished").chain(ended.events("stage_cached"));
    let each = lines.flat_map(|line| {
        let stage = line["stage"].as_str().unwrap_or_default();
        line["outputs"].as_object().into_iter().flatten().map(move |(port, output)| {
            let text = |key: &str| output[key].as_str().unwrap_or_default();
            (
                format!("{stage}.{port}"),
                Output { digest: text("digest").to_owned(), path: text("path").into() },
            )
        })
    });
    each.collect()
}

/// Fails with the first output whose bytes are others.
fn unchanged(first: &Outputs, now: &Outputs) -> Result<(), String> {
    let digest = |output: Option<&Output>| output.map_or("none", |output| &output.digest).to_owned();
    match first.keys().chain(now.keys()).find(|name| {
        first.get(*name).map(|output| &output.digest) != now.get(*name).map(|output| &output.digest)
    }) {
        None => Ok(()),
        Some(name) => Err(format!(
            "the bytes of {name} have the digest {}, expected {}, as in the first run",
            digest(now.get(name)),
            digest(first.get(name))
        )),
    }
}

/// Changes the lowest bit in the middle of a file, which may be read-only.
fn flip_a_byte(file: &Path) -> std::io::Result<()> {
    let mut bytes = fs_err::read(file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_err::set_permissions(file, std::fs::Permissions::from_mode(0o644))?;
    fs_err::write(file, bytes)
}

fn same_ranks(found: &[i64], expected: &[i64]) -> Result<String, String> {
    match found == expected {
        true => Ok(format!("{} images in the expected order", expected.len())),
        false => Err(format!("the order is {found:?}, expected {expected:?}")),
    }
}

/// The images of the table, in its order.
fn table(results: &Path) -> anyhow::Result<Vec<i64>> {
    let table: Json = json::read(results.join("ranking/top.json"))?;
    let rows = table["rows"].as_array().context("ranking/top.json has no rows")?;
    Ok(rows.iter().filter_map(|row| row["index"].as_i64()).collect())
}

fn correlated(found: &[f64], expected: &[f64]) -> Result<String, String> {
    let rho = if found.len() == expected.len() { spearman(found, expected) } else { None };
    let text = |rho: f64| format!("rank correlation {rho:.3}, at least {BF16} needed");
    match rho {
        Some(rho) if rho >= BF16 => Ok(text(rho)),
        rho => Err(text(rho.unwrap_or(f64::NAN))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(pairs: &[(&str, &str)]) -> Outputs {
        let output = |digest: &str| Output { digest: digest.to_owned(), path: PathBuf::new() };
        pairs.iter().map(|(name, digest)| ((*name).to_owned(), output(digest))).collect()
    }

    #[test]
    fn other_bytes_are_named() {
        let first = named(&[("a.x", "11"), ("b.y", "22")]);
        assert_eq!(unchanged(&first, &named(&[("a.x", "11"), ("b.y", "22")])), Ok(()));
        let why = unchanged(&first, &named(&[("a.x", "11"), ("b.y", "23")])).unwrap_err();
        assert_eq!(why, "the bytes of b.y have the digest 23, expected 22, as in the first run");
        let why = unchanged(&first, &named(&[("a.x", "11")])).unwrap_err();
        assert_eq!(why, "the bytes of b.y have the digest none, expected 22, as in the first run");
    }

    #[test]
    fn other_ranks_are_shown() {
        assert!(same_ranks(&[1, 0], &[1, 0]).is_ok());
        assert_eq!(same_ranks(&[0, 1], &[1, 0]).unwrap_err(), "the order is [0, 1], expected [1, 0]");
    }

    #[test]
    fn kernels_that_do_not_compile_are_heard_of() {
        assert!(include_str!("../../models/kernels/cuda.rs").contains(NO_KERNELS));
    }

    #[test]
    fn ranks_in_short_numbers_may_differ_a_little() {
        let exact: Vec<f64> = (0..10).map(f64::from).collect();
        let mut close = exact.clone();
        close.swap(3, 4);
        assert_eq!(correlated(&close, &exact).unwrap(), "rank correlation 0.988, at least 0.9 needed");
        close.reverse();
        assert_eq!(correlated(&close, &exact).unwrap_err(), "rank correlation -0.988, at least 0.9 needed");
        assert!(correlated(&close[..3], &exact).unwrap_err().contains("NaN"));
    }
}
