//! `attrflow plan`: what a run would do, and why.

use clap::Args as ClapArgs;
use serde_json::json;

use super::exit::Failure;
use super::project::{Project, ProjectArgs};
use crate::graph;
use crate::plan::{Planner, Verdict};
use crate::report::{Table, print, short_path};
use crate::stage::Registry;
use crate::store::Adopted;

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Plan as if this stage had to be computed (repeatable)
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Write one line of JSON per stage
    #[arg(long)]
    json: bool,
}

pub(super) fn plan(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.project.open(registry)?;
    let forced = graph::named(&args.force, &project.pipeline).map_err(Failure::Usage)?;
    show(&project, &forced, args.json)
}

/// Prints the verdict on every selected stage.
pub(super) fn show(project: &Project, forced: &[usize], as_json: bool) -> Result<(), Failure> {
    let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, forced);
    let verdicts = planner.all(&project.graph)?;
    project.store.save_stat()?;
    let mut table = Table::new(&["stage", "would", "why"]);
    let mut counts = [0; 4];
    for (index, verdict) in &verdicts {
        let stage = &project.pipeline.stages[*index].id;
        let (column, verb, why) = words(verdict);
        counts[column] += 1;
        if as_json {
            let line = match verdict {
                Verdict::Run(_, _, reason) => json!({ "stage": stage, "verdict": verb, "why": reason }),
                Verdict::Wait { upstream, certain } => {
                    json!({ "stage": stage, "verdict": verb, "waits_for": upstream, "why": certain })
                }
                Verdict::Reuse(entry) => json!({
                    "stage": stage, "verdict": verb, "outputs": entry.outputs, "adopted": entry.adopted
                }),
                Verdict::Fail(error) => json!({ "stage": stage, "verdict": verb, "error": error }),
            };
            print(&format!("{line}\n"));
        }
        table.row([stage.clone(), verb.to_owned(), why]);
    }
    let [reuse, run, maybe, fail] = counts;
    if !as_json {
        let fails = if fail > 0 { format!(", {fail} to fail") } else { String::new() };
        print(&format!(
            "{table}\n{run} to run, {reuse} to reuse, {maybe} to be decided by what runs before{fails}\n"
        ));
    }
    if fail > 0 { Err(Failure::Stages(fail)) } else { Ok(()) }
}

/// Where adopted outputs are, as seen from the current folder.
fn places(adopted: &Adopted) -> String {
    adopted.paths.values().map(|path| short_path(path)).collect::<Vec<_>>().join(", ")
}

fn words(verdict: &Verdict) -> (usize, &'static str, String) {
    match verdict {
        Verdict::Reuse(entry) => match &entry.adopted {
            Some(adopted) => (0, "reuse", format!("adopted from {}", places(adopted))),
            None => (0, "reuse", format!("made in {:.1} s", entry.seconds)),
        },
        Verdict::Run(_, _, reason) => (1, "run", reason.to_string()),
        Verdict::Wait { upstream, certain: None } => {
            (2, "run if", format!("{} changes its output", upstream.join(" or ")))
        }
        Verdict::Wait { upstream, certain: Some(reason) } => {
            (1, "run", format!("{reason}, after {}", upstream.join(", ")))
        }
        Verdict::Fail(error) => (3, "fail", error.clone()),
    }
}
