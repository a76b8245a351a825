//! `attrflow demo`: writes the demo and runs it.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::init::demo;
use super::project::shell_word;
use super::run;
use crate::io::words::count;
use crate::progress::print;
use attrflow_engine::kind::Registry;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow demo\n  \
    attrflow demo ~/attrflow-demo --device cpu")]
pub(super) struct Args {
    /// The folder of the demo; files that it has are kept
    #[arg(default_value = "attrflow-demo")]
    dir: PathBuf,
    /// Where stages compute: auto, cpu, cuda, cuda:N [default: auto]
    #[arg(long)]
    device: Option<String>,
}

pub(super) fn demo(args: &Args, registry: &Registry, log: &str) -> Result<(), Failure> {
    let written = demo::write(&args.dir)?;
    let folder = args.dir.display();
    if written > 0 {
        print(&format!("wrote {} to {folder}\n", count(written, "file", "files")));
    }
    let pipeline = args.dir.join(demo::PIPELINE);
    let pipeline = pipeline.to_str().ok_or_else(|| Failure::Usage(format!("{folder}: expected UTF-8")))?;
    let device = args.device.as_ref().map(|device| format!("--device={device}"));
    let words = [pipeline, "--report"].into_iter().chain(device.as_deref());
    run::run(&run::Args::of(words), registry, log)?;
    print(&format!(
        "\nOpen the report, or look at the rankings and change a value, which computes again only what depends on it:\n  \
         cd {}\n  \
         attrflow show apple\n  \
         attrflow run {} --set loss.time_samples=5\n",
        shell_word(&folder.to_string()),
        demo::PIPELINE
    ));
    Ok(())
}
