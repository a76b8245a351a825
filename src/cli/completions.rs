//! `attrflow completions`: shell completions.

use clap::{Args as ClapArgs, Command};
use clap_complete::Shell;

use super::failure::Failure;
use crate::progress::print;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow completions bash > ~/.local/share/bash-completion/completions/attrflow\n  \
    attrflow completions fish > ~/.config/fish/completions/attrflow.fish")]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn completions(args: &Args, mut command: Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "attrflow", &mut script);
    print(&String::from_utf8_lossy(&script));
    Ok(())
}
