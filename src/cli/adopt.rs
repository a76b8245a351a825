//! `attrflow adopt`: existing files as a stage's outputs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::project::{self, Settings};
use crate::progress::{print, short_path};
use attrflow_engine::exec::adopt::{AdoptError, Adoption};
use attrflow_engine::identity::recipe::Numerics;
use attrflow_engine::kind::Registry;
use attrflow_engine::pipeline::{self, Pipeline, StageNode};
use attrflow_engine::plan::graph;
use attrflow_engine::store::format_bytes;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow adopt pretrain_loss published/pretrain_loss.npy\n  \
    attrflow adopt generate[apple] images=apple/images latents=apple/latents.npy --pipeline pipelines/demo.toml")]
pub(super) struct Args {
    /// The full name of the stage: pretrain_loss, influence[apple]
    stage: String,
    /// The file or folder of the output; for a stage with several outputs, PORT=PATH for each
    #[arg(required = true, value_name = "PATH")]
    outputs: Vec<String>,
    /// The pipeline file [default: the file in pipelines/ that has the stage]
    #[arg(long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    /// Replace an existing result
    #[arg(long)]
    force: bool,
}

pub(super) fn adopt(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let file = match &args.pipeline {
        Some(file) => file.clone(),
        None => find(&args.stage, &args.settings.sets, registry)?,
    };
    let project = args.settings.open(&file, std::slice::from_ref(&args.stage), registry)?;
    let stage = index(&args.stage, &project.pipeline)?;
    let node = &project.pipeline.stages[stage];
    let adoption = Adoption {
        pipeline: &project.pipeline,
        graph: &project.graph,
        store: &project.store,
        numerics: &project.numerics,
        stage,
        paths: paths(node, &args.outputs)?,
        force: args.force,
        own: vec![project.store.root().to_path_buf(), project.results.clone()],
    };
    let entry = adoption.execute().map_err(|error| match error {
        AdoptError::Store(error) => Failure::Store(error),
        error => Failure::Refused(error.to_string()),
    })?;
    for (port, artifact) in &entry.outputs {
        let path = entry.adopted.as_ref().and_then(|adopted| adopted.paths.get(port));
        let path = path.map(|path| short_path(path)).unwrap_or_default();
        print(&format!("adopted {path} ({}) as {}.{port}\n", format_bytes(artifact.size), node.id));
    }
    if let Some(adopted) = &entry.adopted {
        print(&format!(
            "checked: {}; taken on trust: that the files come from these inputs and parameters\n",
            adopted.checked
        ));
    }
    if let Some(Numerics { libtorch, device, .. }) = &entry.recipe.numerics {
        print(&format!("adopted for libtorch {libtorch} on {device}; use --device for another device\n"));
    }
    Ok(())
}

/// The only pipeline file in `pipelines/` that has the stage.
fn find(stage: &str, sets: &[String], registry: &Registry) -> Result<PathBuf, Failure> {
    let folder = project::pipelines().unwrap_or_else(|| "pipelines".into());
    let entries = fs_err::read_dir(&folder)
        .map_err(|error| Failure::Usage(format!("{error}; give a file with --pipeline")))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let (mut found, mut others) = (Vec::new(), Vec::new());
    for file in &files {
        match pipeline::load(file, sets, registry) {
            Ok((pipeline, _))
                if pipeline.stages.iter().any(|node| node.id == stage || node.base == stage) =>
            {
                found.push(file.clone());
            }
            Ok(_) => others.push(file.display().to_string()),
            Err(_) => others.push(format!("{} (has errors)", file.display())),
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::Usage(format!(
            "no pipeline in {}/ has a stage `{stage}`; searched: {}",
            folder.display(),
            if others.is_empty() { "no files".to_owned() } else { others.join(", ") }
        ))),
        several => {
            let names: Vec<String> = several.iter().map(|file| file.display().to_string()).collect();
            let names = names.join(", ");
            Err(Failure::Usage(format!("{names} have a stage `{stage}`: choose one with --pipeline")))
        }
    }
}

/// The only stage of that name.
fn index(stage: &str, pipeline: &Pipeline) -> Result<usize, Failure> {
    let found = graph::named(&[stage.to_owned()], pipeline).map_err(Failure::Usage)?;
    match found.as_slice() {
        [one] => Ok(*one),
        several => {
            let names: Vec<&str> = several.iter().map(|index| pipeline.stages[*index].id.as_str()).collect();
            Err(Failure::Usage(format!("`{stage}` is repeated: choose one of {}", names.join(", "))))
        }
    }
}

/// A path for each of the stage's output ports.
fn paths(node: &StageNode, arguments: &[String]) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let ports: Vec<&str> = node.outputs.iter().map(|port| port.name.as_str()).collect();
    let expected = || {
        let forms: Vec<String> = ports.iter().map(|port| format!("{port}=PATH")).collect();
        forms.join(" ")
    };
    let mut paths = BTreeMap::new();
    for argument in arguments {
        let named = argument.split_once('=').filter(|(port, _)| ports.contains(port));
        let (port, path) = match (named, ports.as_slice()) {
            (Some((port, path)), _) => (port, path),
            (None, [only]) => (*only, argument.as_str()),
            (None, _) => {
                return Err(Failure::Usage(format!(
                    "`{argument}` does not name an output of `{}`: expected {}",
                    node.id,
                    expected()
                )));
            }
        };
        if paths.insert(port.to_owned(), Path::new(path).to_path_buf()).is_some() {
            return Err(Failure::Usage(format!("two paths for the output `{port}` of `{}`", node.id)));
        }
    }
    match ports.iter().find(|port| !paths.contains_key(**port)) {
        None => Ok(paths),
        Some(port) => Err(Failure::Usage(format!(
            "no path for the output `{port}` of `{}`: expected {}",
            node.id,
            expected()
        ))),
    }
}
