//! The command line: one file per verb, one row per verb below.

mod adopt;
mod attest;
mod audit;
mod cache;
mod completions;
mod diff;
mod doctor;
mod explain;
mod export;
mod failure;
mod graph;
mod init;
mod man;
mod manifests;
mod measure;
mod noop;
mod plan;
mod project;
mod replay;
mod requirements;
mod run;
mod run_args;
mod schema;
mod sign;
mod signals;
mod stages;
mod status;
mod why_not;

use std::io::IsTerminal;

use clap::{CommandFactory, Parser, Subcommand};

use crate::kinds::command;
use crate::progress::LogLines;
use attrflow_engine::kind::{Computation, Registry};
use attrflow_engine::worker::local::LIGHT_WORKER;
use attrflow_engine::worker::serve::serve_until;

pub use attrflow_engine::worker::serve::serve;
pub use doctor::DoctorReport;
pub use failure::{Failure, exit_code};
pub use measure::{MEASURE, serve_measurement};

/// Which training images made a text-to-image diffusion model draw this?
#[derive(Debug, Parser)]
#[command(name = "attrflow", version, propagate_version = true, after_help = failure::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log more: -v decisions and units, -vv workers and timings, -vvv all; ATTRFLOW_LOG takes a filter instead
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring a pipeline's results up to date
    Run(run::Args),
    /// Show what a run would do, why, and what it would take of time, memory and disk
    ///
    /// Time and memory are known of stages that were measured on this machine (--measure) or, less well, have run before; bytes
    /// follow from the shapes of arrays and networks.
    Plan(plan::Args),
    /// Show all that counts for a stage, what changed since its last run, where that is written and who changed it
    ///
    /// Of a value in a git checkout, the commit that changed its line last; of an input, the files below that changed.
    Explain(explain::Args),
    /// Show the smallest edit after which a stage's result would be found in the cache
    WhyNot(why_not::Args),
    /// Show what stands, and where
    Status(status::Args),
    /// Draw a pipeline: the state of each stage, and what a change would touch
    ///
    /// With --set and --touch, what the change reaches is marked: a stage that gives the same bytes as before ends it
    /// earlier. A repeated stage is one box unless --full.
    Graph(graph::Args),
    /// Let files from elsewhere stand for a stage's outputs, without a copy
    ///
    /// They are checked against the stage's parameters and inputs, and stay where they are. If they change or go, the
    /// next run says so and computes the stage. They stand for what the stage would give with the same --set values
    /// on the same class of device (see --device).
    Adopt(adopt::Args),
    /// Hold a manifest against what the cache and its sources hold now
    ///
    /// Everything is hashed again: each stored file, and each source that still exists. Each fingerprint is derived from
    /// its recipe, and each input followed to what gave it. Exit code 3 if anything differs, 1 if nothing does but something
    /// is not in the cache any more.
    Audit(audit::Args),
    /// Compare two manifests, key by key
    ///
    /// Exit code 0 if the same stages gave the same outputs, whatever else differs, and 3 if not.
    Diff(diff::Args),
    /// Write what a manifest says in forms that others check: an in-toto statement, a Workflow Run RO-Crate
    ///
    /// Both name every file of results by place, BLAKE3 and SHA-256, what it was made from, and with which parameters. A signature
    /// of the manifest itself is made by run --sign and audit --sign.
    Attest(attest::Args),
    /// Look after the cache: what it holds, what can go, whether it is sound, and sharing it
    Cache(cache::Args),
    /// Write results as the published experiment does, or for diffusers
    Export(export::Args),
    /// Show the stage kinds, their ports and parameters
    Stages(stages::Args),
    /// Write the form of pipeline files as JSON Schema, for editors
    ///
    /// An editor that knows TOML and JSON Schema then completes and checks pipelines as they are written, if their first
    /// line is `#:schema FILE`.
    Schema(schema::Args),
    /// Begin a project: a pipeline and a config with comments; nothing that is there is touched
    Init(init::Args),
    /// Write the completions of a shell: attrflow completions bash > ~/.local/share/bash-completion/completions/attrflow
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
    /// Check libtorch and devices
    Doctor(doctor::Args),
}

/// Runs the program on the process's arguments and returns its exit code.
///
/// With the kinds that it can compute itself it also serves as the light worker of another run of it.
pub fn main(registry: &Registry, own: &[Computation]) -> i32 {
    if let [first, setting] = std::env::args().skip(1).collect::<Vec<_>>().as_slice()
        && first == LIGHT_WORKER
        && let Ok(setting) = serde_json::from_str(setting)
    {
        command::adopt_orphans();
        serve_until(own, &setting, command::kill_all);
        return failure::DONE;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { failure::USAGE } else { failure::DONE };
            let _ = error.print();
            return code;
        }
    };
    let log = ["warn", "attrflow=info", "attrflow=debug", "attrflow=trace"][usize::from(cli.verbose.min(3))];
    let filter = std::env::var("ATTRFLOW_LOG").unwrap_or_else(|_| log.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&filter))
        .with_writer(|| LogLines)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .without_time()
        .init();
    let result = match &cli.command {
        Command::Run(args) => run::run(args, registry, &filter),
        Command::Plan(args) => plan::plan(args, registry, &filter),
        Command::Explain(args) => explain::explain(args, registry),
        Command::WhyNot(args) => why_not::why_not(args, registry),
        Command::Status(args) => status::status(args, registry),
        Command::Adopt(args) => adopt::adopt(args, registry),
        Command::Audit(args) => audit::audit(args, registry, &filter),
        Command::Attest(args) => attest::attest(args, registry),
        Command::Diff(args) => diff::diff(args),
        Command::Cache(args) => cache::cache(args),
        Command::Export(args) => export::export(args, registry),
        Command::Stages(args) => stages::stages(args, registry),
        Command::Schema(args) => schema::schema(args, registry),
        Command::Graph(args) => graph::graph(args, registry),
        Command::Init(args) => init::init(args),
        Command::Completions(args) => completions::completions(args, Cli::command()),
        Command::Man(args) => man::man(args, Cli::command()),
        Command::Doctor(args) => doctor::doctor(args),
    };
    match result {
        Ok(()) => failure::DONE,
        Err(failure) => {
            failure.show();
            exit_code(&failure)
        }
    }
}
