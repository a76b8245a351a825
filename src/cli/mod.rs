//! The command line: one file per verb, and one row per verb below.

mod adopt;
mod attach;
mod attest;
mod audit;
mod cache;
mod cancel;
mod cluster;
mod cluster_worker;
mod completions;
mod demo;
mod detach;
mod device;
mod diff;
mod doctor;
mod doctor_cluster;
mod explain;
mod export;
mod failure;
mod files;
mod graph;
mod init;
mod kinds;
mod libtorch;
mod logs;
mod man;
mod manifests;
mod measure;
mod nearest_hit;
mod noop;
mod plan;
mod plan_rows;
mod plan_screen;
mod pool_totals;
mod pools;
mod project;
mod replay;
mod report;
mod requirements;
mod results;
mod run;
mod run_args;
mod runs;
mod schema;
mod self_check;
mod show;
mod sign;
mod signals;
mod status;

use std::io::IsTerminal;
use std::panic::AssertUnwindSafe;

use clap::error::ContextKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::kinds::command;
use crate::progress::{LogLines, output_error, print, print_colored};
use attrflow_engine::cluster::node::CLUSTER_WORKER;
use attrflow_engine::kind::{Computation, Registry};
use attrflow_engine::worker::local::LIGHT_WORKER;
use attrflow_engine::worker::protocol::{Facts, WorkerConfig};
use attrflow_engine::worker::serve::serve_until;

pub use doctor::DoctorReport;
pub use failure::{Failure, exit_code};
pub use project::build;

/// Which training images made a text-to-image diffusion model draw this?
#[derive(Debug, Parser)]
#[command(name = "attrflow", version, propagate_version = true, after_help = failure::EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Log more: -v decisions and units, -vv workers and timings, -vvv everything; ATTRFLOW_LOG sets a filter instead
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compute the results of a pipeline that are not cached
    Run(run::Args),
    /// Show what a run would do, why, and the time, memory and disk space it would need
    ///
    /// Time and memory are predicted from measurements on this machine (--measure) or, less precisely, from earlier runs; bytes
    /// follow from the shapes of arrays and networks.
    Plan(plan::Args),
    /// Show everything that is hashed for a stage, what changed since its last run, where, and by whom
    ///
    /// For a value in a git checkout: the last commit that changed its line. For an input: the files in it that changed.
    Explain(explain::Args),
    /// Show the state of each stage and where its results are
    Status(status::Args),
    /// Draw a pipeline with the state of each stage and the effect of a change
    ///
    /// With --set or --touch, all stages downstream of the change are marked. Early cutoff may end the change sooner: a stage whose
    /// outputs come out byte-identical does not invalidate the next. A repeated stage is one box unless --full.
    Graph(graph::Args),
    /// Use existing files as a stage's outputs, without a copy
    ///
    /// The files are checked against the stage's parameters and inputs, and stay where they are. If they are modified or removed, the
    /// next run reports it and computes the stage. They replace what the stage would compute with the same --set values and
    /// device class (see --device).
    Adopt(adopt::Args),
    /// Check a manifest against the cache and its sources
    ///
    /// Hashes every stored file again, and every source that still exists. Derives each fingerprint from its recipe, and follows
    /// each input to the stage that produced it. Exit code 3 if anything differs; 1 if nothing differs, but something is no
    /// longer in the cache.
    Audit(audit::Args),
    /// Compare two manifests, key by key
    ///
    /// Exit code 0 if the same stages have the same outputs, whatever else differs; else 3.
    Diff(diff::Args),
    /// Show the top of a ranking in the terminal
    #[command(long_about = show::ABOUT)]
    Show(show::Args),
    /// Write a run as one HTML file: queries, rankings with error bars, stages, provenance
    ///
    /// The page needs no network, no script and no other file. It shows what is in the cache; what is gone is shown as gone. With two
    /// runs it compares them. The same manifest and files give the same bytes.
    Report(report::Args),
    /// Export a manifest in standard formats: an in-toto statement, a Workflow Run RO-Crate
    ///
    /// Both list every result file with its path, BLAKE3 and SHA-256 digests, inputs and parameters. To sign the manifest itself,
    /// use run --sign or audit --sign.
    Attest(attest::Args),
    /// Inspect, clean, verify and share the cache
    Cache(cache::Args),
    /// List the runs on a cluster
    Runs(runs::Args),
    /// Follow a run on a cluster, from any host that sees its cache; Ctrl-C only leaves
    Attach(attach::Args),
    /// Show what the scheduler and the workers of a run on a cluster wrote
    Logs(logs::Args),
    /// End a run on a cluster; what it finished is kept
    Cancel(cancel::Args),
    /// Export results in the layout of the published experiment, or for diffusers
    Export(export::Args),
    /// List the stage kinds, or show the ports and parameters of one
    Kinds(kinds::Args),
    /// Write the JSON Schema of pipeline files, for editors
    ///
    /// Editors that support TOML and JSON Schema then complete and check pipelines whose first line is `#:schema FILE`.
    Schema(schema::Args),
    /// Write a small example, 459 emoji and a model, and run it: offline, some minutes on a CPU
    Demo(demo::Args),
    /// Create a starter pipeline and config; existing files are not modified
    Init(init::Args),
    /// Write shell completions to standard output
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
    /// Check libtorch and the devices, or those of a cluster
    Doctor(doctor::Args),
    /// Compute a tiny project and check every number: the first command after installing
    ///
    /// It needs no files and takes some seconds. The numbers of all stages must be those of the Python originals, a second run must
    /// compute nothing, a flipped byte in the cache must be found, and two workers must give the same bytes as one. On a GPU, its
    /// numbers, its kernels and the ranks in bfloat16 are checked too. Exit code 1 if anything is wrong.
    SelfCheck(self_check::Args),
}

/// What the program prints without arguments.
const START: &str = "\
attrflow: which training images made a text-to-image diffusion model draw this?

  attrflow demo                     a small example, offline: some minutes
  attrflow init NAME --images FOLDER --model FOLDER --query 'FOLDER/*.png'
                                    a pipeline for your images and model
  attrflow run pipelines/NAME.toml  computes what is not cached yet

`attrflow --help` lists all commands, `attrflow self-check` tests itself.
";

/// Verbs and options of earlier versions, each with its name now.
const RENAMED: [(&str, &str); 3] =
    [("stages", "kinds"), ("why-not", "explain --nearest-hit"), ("--downloads", "--download-jobs")];

/// The new name of a verb or option that a command line names by its old one.
fn renamed(error: &clap::Error) -> Option<String> {
    let names = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg];
    let mut names = names.into_iter().filter_map(|kind| error.get(kind));
    let (old, new) = names.find_map(|name| RENAMED.iter().find(|(old, _)| *old == name.to_string()))?;
    Some(format!("`{old}` is named `{new}` now"))
}

/// [`main`], with a panic anywhere reported as what it is.
pub fn guarded(registry: &Registry, own: &[Computation]) -> i32 {
    attrflow_engine::store::report_file_size_limit();
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            before(panic);
        }
        failure::show_bug(panic);
    }));
    std::panic::catch_unwind(AssertUnwindSafe(|| main(registry, own))).unwrap_or(failure::BUG)
}

/// Runs the program on the process's arguments and returns its exit code.
///
/// With the kinds in `own` it also serves as the worker without libtorch of another process.
pub fn main(registry: &Registry, own: &[Computation]) -> i32 {
    if let Some(argument) = std::env::args_os().find(|argument| argument.to_str().is_none()) {
        Failure::Usage(format!("the argument {argument:?} is not UTF-8, expected UTF-8")).show();
        return failure::USAGE;
    }
    if let [first, setting] = std::env::args().skip(1).collect::<Vec<_>>().as_slice()
        && first == LIGHT_WORKER
        && let Ok(config) = serde_json::from_str::<WorkerConfig>(setting)
    {
        command::adopt_orphans();
        serve_until(own, &config, Facts::of_machine(&build(), config.device), command::kill_all);
        return failure::SUCCESS;
    }
    if let [first, place, pool] = std::env::args().skip(1).collect::<Vec<_>>().as_slice()
        && first == CLUSTER_WORKER
    {
        return cluster_worker::serve(place, pool);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(message) = renamed(&error) {
                Failure::Usage(message).show();
                return failure::USAGE;
            }
            if error.use_stderr() {
                let _ = error.print();
                return failure::USAGE;
            }
            let text = error.render();
            print_colored(&if colored(&std::io::stdout()) {
                text.ansi().to_string()
            } else {
                text.to_string()
            });
            return output_code(failure::SUCCESS);
        }
    };
    let Some(command) = &cli.command else {
        print(START);
        return output_code(failure::SUCCESS);
    };
    let log = ["warn", "attrflow=info", "attrflow=debug", "attrflow=trace"][usize::from(cli.verbose.min(3))];
    let filter = std::env::var("ATTRFLOW_LOG").unwrap_or_else(|_| log.to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&filter))
        .with_writer(|| LogLines)
        .with_ansi(colored(&std::io::stderr()))
        .without_time()
        .init();
    tracing::info!("attrflow {}", build());
    let result = match surroundings() {
        Err(failure) => Err(failure),
        Ok(()) => verb(command, registry, &filter),
    };
    let code = match result {
        Ok(()) => failure::SUCCESS,
        Err(failure) => {
            failure.show();
            exit_code(&failure)
        }
    };
    output_code(code)
}

/// The exit code, which says too whether all output was written.
fn output_code(code: i32) -> i32 {
    match output_error() {
        Some(error) if code == failure::SUCCESS => {
            let failure = Failure::Refused(format!("standard output: {error}; the output is incomplete"));
            failure.show();
            exit_code(&failure)
        }
        _ => code,
    }
}

/// Whether colours are wanted on a stream: by NO_COLOR, CLICOLOR_FORCE and CLICOLOR, as bixense.com/clicolors says, and TERM.
fn colored(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let off = |name: &str| set(name).is_some_and(|value| value == "0");
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some() && !off("CLICOLOR_FORCE") {
        return true;
    }
    stream.is_terminal() && !off("CLICOLOR") && set("TERM").is_none_or(|term| term != "dumb")
}

/// Refuses folders that no path can be relative to, and paths that no manifest can hold.
fn surroundings() -> Result<(), Failure> {
    let here = std::env::current_dir().map_err(|error| {
        Failure::Usage(format!("the current folder cannot be used: {error}; was it removed?"))
    })?;
    let cache = std::env::var_os("ATTRFLOW_CACHE");
    let texts = [("the current folder", Some(here.into_os_string())), ("ATTRFLOW_CACHE", cache)];
    for (what, text) in texts {
        if let Some(text) = text.filter(|text| text.to_str().is_none()) {
            return Err(Failure::Usage(format!("{what} is {text:?}, expected a path in UTF-8")));
        }
    }
    Ok(())
}

/// Runs one verb.
fn verb(command: &Command, registry: &Registry, filter: &str) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args, registry, filter),
        Command::Plan(args) => plan::plan(args, registry, filter),
        Command::Explain(args) => explain::explain(args, registry),
        Command::Status(args) => status::status(args, registry),
        Command::Adopt(args) => adopt::adopt(args, registry),
        Command::Audit(args) => audit::audit(args, registry, filter),
        Command::Attest(args) => attest::attest(args, registry),
        Command::Show(args) => show::show(args),
        Command::Report(args) => report::report(args),
        Command::Diff(args) => diff::diff(args),
        Command::Cache(args) => cache::cache(args),
        Command::Runs(args) => runs::runs(args),
        Command::Attach(args) => attach::attach(args),
        Command::Logs(args) => logs::logs(args),
        Command::Cancel(args) => cancel::cancel(args),
        Command::Export(args) => export::export(args, registry),
        Command::Kinds(args) => kinds::kinds(args, registry),
        Command::Schema(args) => schema::schema(args, registry),
        Command::Graph(args) => graph::graph(args, registry),
        Command::Init(args) => init::init(args, registry),
        Command::Demo(args) => demo::demo(args, registry, filter),
        Command::Completions(args) => completions::completions(args, Cli::command()),
        Command::Man(args) => man::man(args, Cli::command()),
        Command::Doctor(args) => doctor::doctor(args, registry, filter),
        Command::SelfCheck(args) => self_check::self_check(args),
    }
}

#[cfg(test)]
mod tests;
