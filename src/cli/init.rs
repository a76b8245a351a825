//! `attrflow init`: a pipeline and a config to begin with.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::failure::Failure;
use crate::progress::{print, short_path};

/// What is written: path, text.
const FILES: [(&str, &str); 2] = [
    ("pipelines/attribution.toml", include_str!("init/pipeline.toml")),
    ("configs/attribution.toml", include_str!("init/config.toml")),
];
/// Kept out of git, where no such file is there yet.
const IGNORE: (&str, &str) = (".gitignore", "/cache/\n/results/\n");

#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Where to begin
    #[arg(default_value = ".")]
    dir: PathBuf,
}

pub(super) fn init(args: &Args) -> Result<(), Failure> {
    let there =
        FILES.iter().map(|(name, _)| args.dir.join(name)).filter(|path| path.symlink_metadata().is_ok());
    let there: Vec<String> = there.map(|path| path.display().to_string()).collect();
    if !there.is_empty() {
        return Err(Failure::Refused(format!(
            "nothing was written, since there is {} already",
            there.join(" and ")
        )));
    }
    let fault = |error: std::io::Error| Failure::Refused(error.to_string());
    for (name, text) in FILES {
        write_new(&args.dir.join(name), text).map_err(fault)?;
        print(&format!("wrote {}\n", short_path(&args.dir.join(name))));
    }
    let ignore = args.dir.join(IGNORE.0);
    match ignore.symlink_metadata() {
        Ok(_) => {
            print(&format!("left {} as it is: cache/ and results/ should stand in it\n", short_path(&ignore)))
        }
        Err(_) => {
            write_new(&ignore, IGNORE.1).map_err(fault)?;
            print(&format!("wrote {}\n", short_path(&ignore)));
        }
    }
    let [pipeline, config] = FILES.map(|(name, _)| short_path(&args.dir.join(name)));
    print(&format!(
        "\nnext:\n  1. say in {config}, below [sources], where your images, captions and model are\n  \
         2. attrflow plan {pipeline}\n  3. attrflow run {pipeline}\n\n\
         attrflow stages KIND says what each key means; attrflow graph {pipeline} draws it\n"
    ));
    Ok(())
}

/// Writes a file that must not be there, not even since it was looked for.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())
}
