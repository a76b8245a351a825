//! `attrflow cancel`: ends a run on a cluster from any host.

use std::time::{Duration, Instant};

use clap::Args as ClapArgs;

use super::cluster::abandon;
use super::failure::Failure;
use super::runs::RunArg;
use crate::progress::{print, print_error};
use attrflow_engine::cluster::slurm::queue;
use attrflow_engine::cluster::{LeaseState, runs};
use attrflow_engine::exec::CancelMode;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow cancel\n  \
    attrflow cancel demo-20260102T030405-1a2b --now")]
pub(super) struct Args {
    #[command(flatten)]
    run: RunArg,
    /// End the units that run too, instead of waiting until they are done
    #[arg(long)]
    now: bool,
}

pub(super) fn cancel(args: &Args) -> Result<(), Failure> {
    let run = args.run.find()?;
    let failed = |error: std::io::Error| Failure::Refused(error.to_string());
    let name = run.name();
    let lease = run.lease().map_err(failed)?;
    let told = |_: &str, longest: Duration| {
        print_error(&format!(
            "looking for {:.0} s whether the run lives, on {}",
            longest.as_secs_f64(),
            lease.host
        ));
    };
    if runs::is_alive(&run, &lease, told) {
        let mode = if args.now { CancelMode::Kill } else { CancelMode::Drain };
        run.request_cancel(mode).map_err(failed)?;
        if !args.now {
            print(&format!("run {name} ends when the units that run are done; --now ends them too\n"));
            return Ok(());
        }
        let begun = Instant::now();
        while run.lease().is_ok_and(|lease| lease.state == LeaseState::Running) {
            if begun.elapsed() > Duration::from_secs(60) {
                return Err(Failure::Refused(format!("run {name} does not end: see `attrflow logs {name}`")));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    } else if lease.state == LeaseState::Running {
        abandon(&run).map_err(failed)?;
    }
    // Whether it was the run that ended its jobs, or this command: none may be left.
    let begun = Instant::now();
    loop {
        let _ = attrflow_engine::cluster::slurm::cancel(&name, false);
        let left = queue(&name).map_err(|error| Failure::Refused(format!("jobs may be left: {error}")))?;
        let left = left.iter().filter(|line| !line.is_over()).count();
        if left == 0 {
            print(&format!("run {name} is over, and no job of it is left; what it finished is kept\n"));
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(Failure::Refused(format!("{left} jobs of run {name} do not end: see `squeue`")));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
