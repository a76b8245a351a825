//! `attrflow runs`: the runs of a cache on a cluster.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use serde_json::json;

use super::cluster::base;
use super::failure::Failure;
use crate::progress::{Table, print};
use attrflow_engine::cluster::{Lease, LeaseState, RunFolder, runs};
use attrflow_engine::config::text::suggestion;
use attrflow_engine::kind::Device;
use attrflow_engine::worker::protocol::Facts;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow runs\n  \
    attrflow runs --json")]
pub(super) struct Args {
    /// The cache folder [default: cache beside the pipelines folder]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Write one line of JSON per run
    #[arg(long)]
    json: bool,
}

/// The argument of verbs on one run.
#[derive(Debug, ClapArgs)]
pub(super) struct RunArg {
    /// The run, as `attrflow runs` names it [default: the newest]
    run: Option<String>,
    /// The cache folder [default: cache beside the pipelines folder]
    #[arg(long, env = "ATTRFLOW_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
}

impl RunArg {
    /// The folder of the run.
    pub fn find(&self) -> Result<RunFolder, Failure> {
        let base = base(self.cache.as_deref());
        let runs = runs::list(&base).map_err(|error| Failure::Refused(error.to_string()))?;
        let Some(name) = &self.run else {
            let none = format!("{} holds no run on a cluster", base.display());
            return runs.into_iter().next().ok_or(Failure::Refused(none));
        };
        if let Some(run) = runs.iter().find(|run| run.name() == *name) {
            return Ok(run.clone());
        }
        let names: Vec<String> = runs.iter().map(RunFolder::name).collect();
        let hint = suggestion(name, names.iter().map(String::as_str));
        let hint = hint.map_or_else(String::new, |hint| format!("; {hint}"));
        Err(Failure::Usage(format!("{} holds no run `{name}`{hint}", base.display())))
    }
}

/// Whether a run's process is on this host, where the system knows whether it lives.
pub(super) fn is_here(lease: &Lease) -> bool {
    lease.host == Facts::of_machine("", Device::Cpu).host
}

pub(super) fn runs(args: &Args) -> Result<(), Failure> {
    let base = base(args.cache.as_deref());
    let found = runs::list(&base).map_err(|error| Failure::Refused(error.to_string()))?;
    let mut table = Table::new(&["run", "state", "host", "process"]);
    let mut text = String::new();
    for run in &found {
        // A folder that is just being made has no sign of life yet.
        let Ok(lease) = run.lease() else { continue };
        let state = match lease.state {
            LeaseState::Ended => "ended",
            LeaseState::Running if !is_here(&lease) => "running, on another host",
            LeaseState::Running if runs::is_alive(run, &lease, |_, _| {}) => "running",
            LeaseState::Running => "dead: the next run takes over what it left",
        };
        if args.json {
            text += &format!(
                "{}\n",
                json!({ "run": run.name(), "state": state, "host": lease.host, "process": lease.pid })
            );
        } else {
            table.row([run.name(), state.to_owned(), lease.host, lease.pid.to_string()]);
        }
    }
    if !args.json {
        text = if found.is_empty() {
            format!("{} holds no run on a cluster\n", base.display())
        } else {
            table.to_string()
        };
    }
    print(&text);
    Ok(())
}
