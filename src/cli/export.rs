//! `attrflow export`: results in the layout of the published experiment, for diffusers, or as one table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::project::{Project, ProjectArgs};
use crate::export::{self, Batch, ExportError, State};
use crate::progress::{Table, print, short_path};
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::{Source, StageNode};
use attrflow_engine::plan::{Action, Planner};
use attrflow_engine::store::{Entry, format_bytes};

#[derive(Debug, ClapArgs)]
#[group(id = "what", required = true, multiple = true, args = ["published", "unet", "table"])]
#[command(after_help = "Examples:\n  \
    attrflow export pipelines/demo.toml --published exported\n  \
    attrflow export pipelines/demo.toml --table scores.parquet")]
pub(super) struct Args {
    #[command(flatten)]
    project: ProjectArgs,
    /// Write pretrain_loss.npy, fisher_info.pt, influence_Q.pkl and visualization_Q.jpg, as in the published experiment
    #[arg(long, value_name = "DIR")]
    published: Option<PathBuf>,
    /// Write each complete unlearned network to unet_Q/, for diffusers
    #[arg(long, value_name = "DIR")]
    unet: Option<PathBuf>,
    /// Write all scores as one table, Parquet or CSV, with a row for each query and training image
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
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
    if args.table.is_some() {
        kinds.extend(["influence", "ranking"]);
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
    if let Some(path) = &args.table {
        let (Some(name), folder) = (path.file_name().and_then(|name| name.to_str()), path.parent()) else {
            return Err(Failure::Usage(format!("{}: expected a file", path.display())));
        };
        if !name.ends_with(".parquet") && !name.ends_with(".csv") {
            let message = format!("{}: expected a name that ends in .parquet or .csv", path.display());
            return Err(Failure::Usage(message));
        }
        let folder = folder.filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut batch = Batch::new(folder).map_err(refused)?;
        results.table(&project, &mut batch, name).map_err(refused)?;
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

const CAPTIONS: &str = "captions";

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
            let mut inputs = inputs.map(|inputs| inputs.paths).unwrap_or_default();
            // The captions of the scores are those of the latents.
            if let ("influence", Some(Source::Port { stage, .. })) =
                (node.kind().name, node.inputs.get("latents"))
                && let Ok(Ok(latents)) = planner.inputs(&project.pipeline.stages[*stage], &done)
                && let Some(path) = latents.paths.get(CAPTIONS)
            {
                inputs.insert(CAPTIONS.to_owned(), path.clone());
            }
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

    /// A query for each ranking, and for each influence that no ranking reads.
    fn table(&self, project: &Project, batch: &mut Batch, file: &str) -> Result<(), ExportError> {
        let of_kind = |kind: &'static str| self.0.iter().filter(move |(node, ..)| node.kind().name == kind);
        let read = |node: &StageNode| match node.inputs.get("influence")? {
            Source::Port { stage, .. } => Some(project.pipeline.stages[*stage].id.as_str()),
            Source::File(_) => None,
        };
        let influence = |node: &StageNode| {
            let id = read(node)?;
            of_kind("influence").find(|(node, ..)| node.id == id)
        };
        let mut queries = Vec::new();
        for (node, outputs, inputs) in of_kind("ranking") {
            let (theirs, beside) = influence(node).map(|(_, outputs, inputs)| (outputs, inputs)).unzip();
            let either = |own: &Paths, other: Option<&Paths>, port: &str| {
                own.get(port).or_else(|| other?.get(port)).cloned()
            };
            let files = export::QueryFiles {
                query: name(node),
                influence: inputs["influence"].clone(),
                rank: inputs["rank"].clone(),
                captions: either(inputs, beside, CAPTIONS),
                errors: outputs.get("errors").cloned(),
                top_k: either(inputs, theirs, "top_k"),
            };
            queries.push((node, files));
        }
        let known: Vec<&str> = of_kind("ranking").filter_map(|(node, ..)| read(node)).collect();
        for (node, outputs, inputs) in
            of_kind("influence").filter(|(node, ..)| !known.contains(&node.id.as_str()))
        {
            let files = export::QueryFiles {
                query: name(node),
                influence: outputs["influence"].clone(),
                rank: outputs["rank"].clone(),
                captions: inputs.get(CAPTIONS).cloned(),
                errors: None,
                top_k: outputs.get("top_k").cloned(),
            };
            queries.push((node, files));
        }
        // Stages of the same items go by their full names, as in `attrflow show`.
        let names: BTreeSet<&str> = queries.iter().map(|(_, files)| files.query.as_str()).collect();
        if names.len() < queries.len() {
            queries.iter_mut().for_each(|(node, files)| files.query.clone_from(&node.id));
        }
        export::table(batch, file, &queries.into_iter().map(|(_, files)| files).collect::<Vec<_>>())
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
