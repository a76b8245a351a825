//! `attrflow run`: bring a pipeline's results up to date, or create those of a manifest again.

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::noop;
use super::project::{Project, Settings};
use super::replay;
use super::run_args::{Origin, RunArgs, RunOutcome, all_done, execute, repeat};
use super::sign::{Signer, describe};
use crate::progress;
use attrflow_engine::exec::noop_cache::{Found, NoopKey};
use attrflow_engine::kind::Registry;
use attrflow_engine::plan::graph;
use attrflow_engine::store::View;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The pipeline file, such as pipelines/demo.toml
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Only this stage and what it needs (repeatable; a repeated stage's name means all its items)
    #[arg(long = "target", value_name = "STAGE")]
    targets: Vec<String>,
    #[command(flatten)]
    how: RunArgs,
    /// Compute this stage whatever the cache holds (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Only show what would run, as `plan` does
    #[arg(long)]
    dry_run: bool,
    /// Create again what a manifest records, from the sources alone: exit code 3 if a stage gives other bytes
    ///
    /// The manifest alone says what to compute; no pipeline file is read. Cache and results are those of the current folder.
    /// Sources are taken by their bytes: from where they were, else from below the current folder. Device class, threads and micro
    /// batch are those of the recorded run unless they are given. A manifest may hold stages of the kind `command`, whose programs
    /// are then run: do so with manifests of people alone whom you trust with that.
    #[arg(long, value_name = "MANIFEST", conflicts_with_all = ["sets", "dry_run"])]
    from: Option<String>,
    /// Sign the manifest with this minisign secret key, into a file beside it that ends in .minisig
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Write every event to standard output as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, registry: &Registry, log: &str) -> Result<(), Failure> {
    // A key that does not open must not be found out after a night of computing.
    let signer = args.sign.as_deref().map(Signer::open).transpose()?;
    let reporter = progress::choose(args.json);
    let Some(from) = &args.from else {
        let file = args.pipeline.as_deref().unwrap_or(Path::new(""));
        let origin = || Origin { file, sets: &args.settings.sets };
        let key = noop::key(file, &args.settings, &args.targets).filter(|_| args.force.is_empty());
        if let Some(key) = key.as_ref().filter(|_| !args.dry_run)
            && let Some((no_op, store, _lock)) = noop::find_locked(key, file, &args.settings)?
        {
            let device = args.settings.device.as_deref();
            let ended = repeat(no_op, &store, &args.how, device, origin(), reporter)?;
            return sign(signer.as_ref(), &ended, args.json);
        }
        let project = args.settings.open(file, &args.targets, registry)?;
        let forced = graph::named(&args.force, &project.pipeline).map_err(Failure::Usage)?;
        if args.dry_run {
            return super::plan::show(&project, &forced, &args.how, None, args.json);
        }
        let ended = execute(&project, &forced, &args.how, origin(), reporter, log)?;
        if let Some(key) = &key {
            keep(key, &project, &ended);
        }
        sign(signer.as_ref(), &ended, args.json)?;
        return all_done(&ended.manifest);
    };
    let recreation = replay::Recreation::open(from, &args.settings, &args.targets, registry)?;
    let forced = graph::named(&args.force, &recreation.project.pipeline).map_err(Failure::Usage)?;
    let origin = Origin { file: &recreation.named.path, sets: &[] };
    let ended = execute(&recreation.project, &forced, &args.how, origin, reporter, log)?;
    sign(signer.as_ref(), &ended, args.json)?;
    recreation.compare(&ended.manifest, args.json)
}

/// Keeps a no-op run, so that the next one can repeat it. If that fails, this run has not failed.
fn keep(key: &NoopKey, project: &Project, ended: &RunOutcome) {
    let Project { store, pipeline, sources, results, .. } = project;
    let RunOutcome { manifest, shown, .. } = ended;
    let (texts, view) = (sources.files(), &View::record_path(results));
    let kept = store
        .shared_lock(|| {})
        .and_then(|_lock| key.keep(&Found { store, pipeline, texts, view, manifest, shown }));
    if let Err(error) = kept {
        tracing::warn!("not saved for the next run: {error}");
    }
}

fn sign(signer: Option<&Signer>, ended: &RunOutcome, as_json: bool) -> Result<(), Failure> {
    let Some(signer) = signer else { return Ok(()) };
    let Some(path) = &ended.path else {
        return Err(Failure::Refused("the manifest could not be kept, so there is nothing to sign".into()));
    };
    let bytes = fs_err::read(path).map_err(|error| Failure::Refused(error.to_string()))?;
    signer.sign(path, &bytes, &ended.manifest).map(|signature| describe(&signature, as_json))
}
