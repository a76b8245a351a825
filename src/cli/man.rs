//! `attrflow man`: manual pages, one for the program and one for each verb.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Command};

use super::failure::Failure;
use crate::progress::{print, short_path};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow man ~/.local/share/man/man1\n  \
    attrflow man target/man")]
pub(super) struct Args {
    /// The folder for the pages, such as ~/.local/share/man/man1
    dir: PathBuf,
}

pub(super) fn man(args: &Args, command: Command) -> Result<(), Failure> {
    let fault = |error: std::io::Error| Failure::Refused(error.to_string());
    fs_err::create_dir_all(&args.dir).map_err(fault)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    clap_mangen::generate_to(command.clone(), &args.dir)
        .map_err(|error| fault(std::io::Error::other(format!("{}: {error}", args.dir.display()))))?;
    fn count(command: &Command) -> usize {
        1 + command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(count).sum::<usize>()
    }
    let pages = count(&command);
    print(&format!("wrote {pages} pages to {}\n", short_path(&args.dir)));
    Ok(())
}
