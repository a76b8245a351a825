//! `attrflow init`: a pipeline and a config, for one's own images and model or to be filled in.

pub(super) mod demo;
mod found;
mod own;
mod places;
mod text;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::project::shell_word;
use crate::io::words::count;
use crate::progress::{print, short_path};
use attrflow_engine::kind::Registry;

/// The files: path and text.
const FILES: [(&str, &str); 2] = [
    ("pipelines/attribution.toml", include_str!("pipeline.toml")),
    ("configs/attribution.toml", include_str!("config.toml")),
];
/// Keeps the cache and the results out of git; written only if there is no such file.
const IGNORE: (&str, &str) = (".gitignore", "/cache/\n/results/\n");

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow init my-project\n  \
    attrflow init cats --images ./cats --model ./sd15 --lora ./cats.safetensors --query 'out/*.png'")]
pub(super) struct Args {
    /// The folder of a project to be filled in; with --images, the name of the pipeline
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Write the demo into the folder: 459 emoji, a small model, a pipeline; `attrflow demo` runs it as well
    #[arg(long, conflicts_with = "images")]
    demo: bool,
    #[command(flatten)]
    own: own::Own,
}

pub(super) fn init(args: &Args, registry: &Registry) -> Result<(), Failure> {
    if args.own.images.is_some() {
        return own::init(&args.dir, &args.own, registry);
    }
    if args.demo {
        let written = demo::write(&args.dir)?;
        let pipeline = shell_word(&short_path(&args.dir.join(demo::PIPELINE)));
        print(&format!("wrote {}\n\nnext: attrflow run {pipeline}\n", count(written, "file", "files")));
        return Ok(());
    }
    let there =
        FILES.iter().map(|(name, _)| args.dir.join(name)).filter(|path| path.symlink_metadata().is_ok());
    let there: Vec<String> = there.map(|path| path.display().to_string()).collect();
    if !there.is_empty() {
        return Err(Failure::Refused(format!("{} already exists; nothing was written", there.join(" and "))));
    }
    let fault = |error: std::io::Error| Failure::Refused(error.to_string());
    for (name, text) in FILES {
        write_new(&args.dir.join(name), text).map_err(fault)?;
        print(&format!("wrote {}\n", short_path(&args.dir.join(name))));
    }
    print(&format!("{}\n", keep_out_of_git(&args.dir)?));
    let [pipeline, config] = FILES.map(|(name, _)| shell_word(&short_path(&args.dir.join(name))));
    print(&format!(
        "\nnext:\n  1. enter the locations of your images, captions and model in {config}, below [sources]\n  \
         2. attrflow plan {pipeline}\n  3. attrflow run {pipeline}\n\n\
         `attrflow kinds KIND` explains each key; `attrflow graph {pipeline}` draws the pipeline\n"
    ));
    Ok(())
}

/// Writes `.gitignore` if there is none; what was done, for people.
fn keep_out_of_git(folder: &Path) -> Result<String, Failure> {
    let ignore = folder.join(IGNORE.0);
    if ignore.symlink_metadata().is_ok() {
        let text = fs_err::read_to_string(&ignore).unwrap_or_default();
        // `/cache/*`, `cache/` and the like do it too.
        let plain = |line: &str| line.trim().trim_matches(['/', '*']).to_owned();
        let has_all = IGNORE.1.lines().all(|line| text.lines().any(|own| plain(own) == plain(line)));
        let advice = if has_all { "" } else { ": add /cache/ and /results/ to it" };
        return Ok(format!("kept {}{advice}", short_path(&ignore)));
    }
    write_new(&ignore, IGNORE.1).map_err(|error| Failure::Refused(error.to_string()))?;
    Ok(format!("wrote {}", short_path(&ignore)))
}

/// Writes a new file; fails if it exists.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())
}
