//! `attrflow logs`: what the scheduler and the workers of a run wrote.

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::runs::RunArg;
use crate::progress::print;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow logs\n  \
    attrflow logs demo-20260102T030405-1a2b")]
pub(super) struct Args {
    #[command(flatten)]
    run: RunArg,
}

/// The most that is shown of one file: its end.
const MOST: usize = 64 << 10;

pub(super) fn logs(args: &Args) -> Result<(), Failure> {
    let run = args.run.find()?;
    let failed = |error: std::io::Error| Failure::Refused(error.to_string());
    let mut files = Vec::new();
    for entry in fs_err::read_dir(run.log()).map_err(failed)? {
        files.push(entry.map_err(failed)?.path());
    }
    files.sort();
    let mut text = String::new();
    for file in files {
        let bytes = fs_err::read(&file).map_err(failed)?;
        let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MOST)..]).into_owned();
        let cut = if bytes.len() > MOST { ", its end" } else { "" };
        let empty = if bytes.is_empty() { ", empty" } else { "" };
        text += &format!("==> {}{cut}{empty}\n{end}", file.display());
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    print(&text);
    Ok(())
}
