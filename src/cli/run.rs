//! `attrflow run`: computes the results of a pipeline that are not cached, or recreates those of a manifest.

use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, Parser};

use super::cluster;
use super::detach;
use super::failure::Failure;
use super::noop;
use super::project::{Project, Settings};
use super::replay;
use super::report;
use super::run_args::{Origin, RunArgs, RunOutcome, check_failed, execute, repeat};
use super::sign::{Signer, print_signature};
use crate::progress::{self, print};
use attrflow_engine::exec::noop_cache::{Found, NoopKey};
use attrflow_engine::identity::regular_file;
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline;
use attrflow_engine::plan::graph;
use attrflow_engine::store::View;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow run pipelines/demo.toml\n  \
    attrflow run pipelines/demo.toml --target fisher --set fisher.epochs=2")]
pub(super) struct Args {
    /// The pipeline file, such as pipelines/demo.toml
    #[arg(required_unless_present = "from", conflicts_with = "from")]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Only this stage and its dependencies (repeatable; the name of a repeated stage selects all its items)
    #[arg(long = "target", value_name = "STAGE")]
    targets: Vec<String>,
    #[command(flatten)]
    how: RunArgs,
    /// Compute this stage even if its result is cached (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Only show the plan, as `attrflow plan` does
    #[arg(long)]
    dry_run: bool,
    /// Recreate the results that a manifest records, from its sources: exit code 3 if an output differs
    ///
    /// Reads the manifest, and no pipeline file. Uses the cache and results of the current folder. Sources are found by their
    /// digests: at the recorded paths, else below the current folder. Device class, threads and micro batch default to the recorded
    /// ones. A manifest can contain stages of the kind `command`, whose programs are run: use only manifests that you trust.
    #[arg(long, value_name = "MANIFEST", conflicts_with_all = ["sets", "dry_run", "detach", "print_script"])]
    from: Option<String>,
    /// Sign the manifest with this minisign secret key; the signature is written to MANIFEST.minisig
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Write the page of `attrflow report` when the run has ended, also if a stage failed: report.html in the folder of results
    #[arg(long, conflicts_with_all = ["dry_run", "print_script"])]
    report: bool,
    /// Write each event to standard output as a line of JSON
    #[arg(long)]
    json: bool,
    /// Only print the script that starts the workers of each pool of the cluster
    #[arg(long)]
    print_script: bool,
    /// Go on when this command ends; `attrflow attach` shows how far it is. With --backend slurm
    #[arg(long)]
    detach: bool,
    /// The name of the run on a cluster
    #[arg(long, value_name = "RUN", hide = true)]
    run_name: Option<String>,
}

impl Args {
    /// Those of a command line, which must be right, with their defaults.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        Line::parse_from(["run"].into_iter().chain(words)).args
    }
}

pub(super) fn run(args: &Args, registry: &Registry, log: &str) -> Result<(), Failure> {
    if args.run_name.is_some() {
        // Of its own session, it outlives the terminal. One that leads a session already needs none.
        let _ = rustix::process::setsid();
    }
    // A key that cannot be opened must be reported before hours of computing.
    let signer = args.sign.as_deref().map(Signer::open).transpose()?;
    let reporter = progress::choose(args.json);
    let Some(from) = &args.from else {
        let file = args.pipeline.as_deref().unwrap_or(Path::new(""));
        let origin = || Origin { file, sets: &args.settings.sets, run: args.run_name.as_deref() };
        let key = noop::key(file, &args.settings, &args.targets).filter(|_| args.force.is_empty());
        if let Some(key) = key.as_ref().filter(|_| !args.dry_run && !args.print_script && !args.detach)
            && let Some((no_op, store, _lock)) = noop::find_locked(key, file, &args.settings)?
        {
            let device = args.settings.device.as_deref();
            let ended = repeat(no_op, &store, &args.how, device, origin(), reporter)?;
            let results =
                pipeline::root(file).unwrap_or_default().join("results").join(&ended.manifest.pipeline);
            return close(args, signer.as_ref(), &ended, &results);
        }
        let project = args.settings.open(file, &args.targets, registry)?;
        let forced = graph::named(&args.force, &project.pipeline).map_err(Failure::Usage)?;
        if args.print_script {
            let Some(table) = &project.cluster else {
                return Err(Failure::Usage("--print-script is for a cluster: add --backend slurm".into()));
            };
            print(&cluster::scripts(&project, table, &args.how.template(&project, log)));
            return Ok(());
        }
        if args.detach {
            return detach::detach(&project, &args.how, log, args.json);
        }
        if args.dry_run {
            return super::plan::show(&project, &forced, &args.how, None, args.json);
        }
        let ended = execute(&project, &forced, &args.how, origin(), reporter, log)?;
        // One with a warning is planned again, so that it warns again.
        let known = project.pipeline.unused_sets.is_empty() && ended.signal.is_none();
        if let Some(key) = key.as_ref().filter(|_| known) {
            keep(key, &project, &ended);
        }
        close(args, signer.as_ref(), &ended, &project.results)?;
        return check_failed(&ended.manifest);
    };
    let recreation = replay::Recreation::open(from, &args.settings, &args.targets, registry)?;
    let forced = graph::named(&args.force, &recreation.project.pipeline).map_err(Failure::Usage)?;
    let origin = Origin { file: &recreation.named.path, sets: &[], run: args.run_name.as_deref() };
    let ended = execute(&recreation.project, &forced, &args.how, origin, reporter, log)?;
    close(args, signer.as_ref(), &ended, &recreation.project.results)?;
    recreation.compare(&ended.manifest, args.json)
}

/// Adds a complete run to the no-op cache. If that fails, the run has not failed.
fn keep(key: &NoopKey, project: &Project, ended: &RunOutcome) {
    let Project { store, pipeline, sources, results, .. } = project;
    let RunOutcome { manifest, placed: shown, .. } = ended;
    let (texts, view) = (sources.files(), &View::record_path(results));
    let kept = store
        .shared_lock(|| {})
        .and_then(|_lock| key.keep(&Found { store, pipeline, texts, view, manifest, shown }));
    if let Err(error) = kept {
        tracing::warn!("no-op cache not saved: {error}");
    }
}

/// Writes the report, also of a run that was interrupted, and signs the manifest, where that is asked for.
fn close(args: &Args, signer: Option<&Signer>, ended: &RunOutcome, results: &Path) -> Result<(), Failure> {
    if args.report {
        report::after_run(ended, results, args.json);
    }
    ended.check_interrupted()?;
    sign(signer, ended, args.json)
}

fn sign(signer: Option<&Signer>, ended: &RunOutcome, as_json: bool) -> Result<(), Failure> {
    let Some(signer) = signer else { return Ok(()) };
    let Some(path) = &ended.path else {
        return Err(Failure::Refused("the manifest could not be written, so it cannot be signed".into()));
    };
    let bytes = regular_file::read(path).map_err(|error| Failure::Refused(error.to_string()))?;
    signer.sign(path, &bytes, &ended.manifest).map(|signature| print_signature(&signature, as_json))
}
