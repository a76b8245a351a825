//! `attrflow export`: results in the formats of others.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::project::{Project, ProjectArgs};
use crate::export::{self, Batch, ExportError, State};
use crate::progress::{Table, print, short_path, size};
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::StageNode;
use attrflow_engine::plan::{Action, Planner};
use attrflow_engine::store::Entry;

#[derive(Debug, ClapArgs)]
#[group(id = "what", required = true, multiple = true, args = ["published", "unet"])]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Write pretrain_loss.npy, fisher_info.pt, influence_Q.pkl and visualization_Q.jpg, as published
    #[arg(long, value_name = "DIR")]
    published: Option<PathBuf>,
    /// Write each unlearned network in whole to unet_Q/, for diffusers
    #[arg(long, value_name = "DIR")]
    unet: Option<PathBuf>,
    /// Replace files that are there with other content
    #[arg(long)]
    force: bool,
}

pub(super) fn export(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let project = args.project.open(registry)?;
    let mut kinds = Vec::new();
    if args.published.is_some() {
        kinds.extend(["pretrain-loss", "fisher", "influence", "ranking"]);
    }
    if args.unet.is_some() {
        kinds.push("unlearn");
    }
    let results = Results::of(&project, args, &kinds)?;
    let told = |error: ExportError| Failure::Refused(error.to_string());
    let mut batches = Vec::new();
    if let Some(folder) = &args.published {
        batches.push(Batch::new(folder).map_err(told)?);
        results.published(&mut batches[0]).map_err(told)?;
    }
    if let Some(folder) = &args.unet {
        let mut batch = Batch::new(folder).map_err(told)?;
        results.networks(&mut batch).map_err(told)?;
        batches.push(batch);
    }
    let mut table = Table::new(&["file", "", "size"]);
    for file in Batch::finish(&batches, args.force).map_err(told)? {
        let word = match file.state {
            State::New => "written",
            State::Replaced => "replaced",
            State::Same => "as it was",
        };
        table.row([short_path(&file.path), word.to_owned(), size(file.size)]);
    }
    print(&table.to_string());
    Ok(())
}

/// Paths by port.
type Paths = BTreeMap<String, PathBuf>;

/// The stages whose results are written, each with its outputs and inputs.
struct Results<'a>(Vec<(&'a StageNode, Paths, Paths)>);

impl<'a> Results<'a> {
    /// The results of the selected stages of these kinds, all of which must be up to date.
    fn of(project: &'a Project, args: &Args, kinds: &[&str]) -> Result<Self, Failure> {
        let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
        let verdicts = planner.all(&project.graph)?;
        project.store.save_stat()?;
        let wanted = |index: &usize| kinds.contains(&project.pipeline.stages[*index].kind().name);
        let mut done: BTreeMap<usize, Entry> = BTreeMap::new();
        let mut stale = Vec::new();
        for (index, verdict) in verdicts {
            match verdict {
                Action::Cached(entry) => _ = done.insert(index, *entry),
                _ if wanted(&index) => stale.push(project.pipeline.stages[index].id.clone()),
                _ => {}
            }
        }
        let file = args.project.pipeline.display();
        if !stale.is_empty() {
            let stale = stale.join(", ");
            return Err(Failure::Refused(format!(
                "not up to date: {stale}; run `{}` first",
                args.project.command("run")
            )));
        }
        let mut results = Vec::new();
        for (index, entry) in done.iter().filter(|(index, _)| wanted(index)) {
            let node = &project.pipeline.stages[*index];
            let outputs = entry.outputs.iter();
            let outputs = outputs.map(|(port, file)| (port.clone(), project.store.path(&file.digest)));
            let inputs = planner.inputs(node, &done).map_err(|error| Failure::Refused(error.to_string()))?;
            let inputs = inputs.map(|inputs| inputs.paths).unwrap_or_default();
            results.push((node, outputs.collect(), inputs));
        }
        if results.is_empty() {
            let kinds = kinds.join(", ");
            return Err(Failure::Refused(format!("{file} has no stage of a kind that is written: {kinds}")));
        }
        Ok(Self(results))
    }

    fn published(&self, batch: &mut Batch) -> Result<(), ExportError> {
        for (node, outputs, _) in &self.0 {
            match node.kind().name {
                "pretrain-loss" => export::pretrain_loss(batch, &outputs["losses"])?,
                "fisher" => export::fisher(batch, &outputs["fisher"])?,
                "influence" => {
                    let port = |port: &str| outputs[port].clone();
                    let query = export::Influence {
                        name: name(node),
                        influence: port("influence"),
                        rank: port("rank"),
                    };
                    export::influence(batch, &query)?;
                }
                "ranking" => export::picture(batch, &name(node), &outputs["picture"])?,
                _ => {}
            }
        }
        Ok(())
    }

    fn networks(&self, batch: &mut Batch) -> Result<(), ExportError> {
        for (node, outputs, inputs) in self.0.iter().filter(|(node, ..)| node.kind().name == "unlearn") {
            let query = export::Unlearned {
                name: name(node),
                unet: inputs["unet"].clone(),
                checkpoint: inputs.get("checkpoint").cloned(),
                weights: outputs["weights"].clone(),
            };
            export::unet(batch, &query)?;
        }
        Ok(())
    }
}

/// The item's label, or the stage's name where it is not repeated.
fn name(node: &StageNode) -> String {
    node.label.clone().unwrap_or_else(|| node.base.clone())
}
