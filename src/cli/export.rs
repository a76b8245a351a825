//! `attrflow export`: results in the layout of the published experiment, or for diffusers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::project::{Project, ProjectArgs};
use crate::export::{self, Batch, ExportError, State};
use crate::progress::{Table, print, short_path};
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::StageNode;
use attrflow_engine::plan::{Action, Planner};
use attrflow_engine::store::{Entry, format_bytes};

#[derive(Debug, ClapArgs)]
#[group(id = "what", required = true, multiple = true, args = ["published", "unet"])]
#[command(after_help = "Examples:\n  \
    attrflow export pipelines/demo.toml --published exported\n  \
    attrflow export pipelines/demo.toml --target unlearn --unet exported")]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Write pretrain_loss.npy, fisher_info.pt, influence_Q.pkl and visualization_Q.jpg, as in the published experiment
    #[arg(long, value_name = "DIR")]
    published: Option<PathBuf>,
    /// Write each complete unlearned network to unet_Q/, for diffusers
    #[arg(long, value_name = "DIR")]
    unet: Option<PathBuf>,
    /// Replace existing files that differ
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
    let adapted = results
        .0
        .iter()
        .find(|(node, _, inputs)| node.kind().name == "unlearn" && inputs.contains_key("lora"));
    if let Some((node, ..)) = adapted.filter(|_| args.unet.is_some()) {
        let stage = &node.id;
        let message = format!(
            "the network of `{stage}` has a LoRA, which `--unet` cannot write: expected stages without one"
        );
        return Err(Failure::Refused(message));
    }
    let refused = |error: ExportError| Failure::Refused(error.to_string());
    let mut batches = Vec::new();
    if let Some(folder) = &args.published {
        batches.push(Batch::new(folder).map_err(refused)?);
        results.published(&mut batches[0]).map_err(refused)?;
    }
    if let Some(folder) = &args.unet {
        let mut batch = Batch::new(folder).map_err(refused)?;
        results.networks(&mut batch).map_err(refused)?;
        batches.push(batch);
    }
    let mut table = Table::new(&["file", "state", "size"]);
    for file in Batch::finish(&batches, args.force).map_err(refused)? {
        let word = match file.state {
            State::New => "written",
            State::Replaced => "replaced",
            State::Same => "unchanged",
        };
        table.row([short_path(&file.path), word.to_owned(), format_bytes(file.size)]);
    }
    print(&table.to_string());
    Ok(())
}

/// Paths by port.
type Paths = BTreeMap<String, PathBuf>;

/// The stages to export, each with its outputs and inputs.
struct Results<'a>(Vec<(&'a StageNode, Paths, Paths)>);

impl<'a> Results<'a> {
    /// The results of the selected stages of these kinds; all must be cached.
    fn of(project: &'a Project, args: &Args, kinds: &[&str]) -> Result<Self, Failure> {
        let planner = Planner::new(&project.pipeline, &project.store, &project.numerics, &[]);
        let actions = planner.all(&project.graph)?;
        project.store.try_flush()?;
        let wanted = |index: &usize| kinds.contains(&project.pipeline.stages[*index].kind().name);
        let mut done: BTreeMap<usize, Entry> = BTreeMap::new();
        let mut stale = Vec::new();
        for (index, action) in actions {
            match action {
                Action::Cached(entry) => _ = done.insert(index, *entry),
                _ if wanted(&index) => stale.push(project.pipeline.stages[index].id.clone()),
                _ => {}
            }
        }
        let file = args.project.pipeline.display();
        if !stale.is_empty() {
            let stale = stale.join(", ");
            return Err(Failure::Refused(format!(
                "not cached: {stale}; run `{}` first",
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
            return Err(Failure::Refused(format!(
                "{file} has no stage of the kinds that can be exported: {kinds}"
            )));
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

/// The item's label, or the name of a stage that is not repeated.
fn name(node: &StageNode) -> String {
    node.label.clone().unwrap_or_else(|| node.base.clone())
}
