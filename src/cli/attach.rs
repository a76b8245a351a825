//! `attrflow attach`: follows a run on a cluster from any host.

use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::time::Duration;

use clap::Args as ClapArgs;

use super::failure::Failure;
use super::runs::{RunArg, is_here};
use crate::progress::{self, print};
use attrflow_engine::cluster::{LeaseState, RunFolder, runs};
use attrflow_engine::exec::event::Event;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow attach\n  \
    attrflow attach demo-20260102T030405-1a2b --json")]
pub(super) struct Args {
    #[command(flatten)]
    run: RunArg,
    /// Write each event to standard output as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn attach(args: &Args) -> Result<(), Failure> {
    let run = args.run.find()?;
    let failed = |error: std::io::Error| Failure::Refused(error.to_string());
    let mut reporter = progress::choose(false);
    let mut events = Events { run: &run, offset: 0 };
    // Of a run that was taken over, from the last beginning on.
    let mut all = events.read().map_err(failed)?;
    let begin = all.iter().rposition(|(event, _)| matches!(event, Event::RunStarted { .. })).unwrap_or(0);
    all.drain(..begin);
    loop {
        let none = all.is_empty();
        for (event, line) in all.drain(..) {
            match args.json {
                true => print(&line),
                false => reporter.on_event(&event),
            }
            if let Event::RunFinished { failed, interrupted, .. } = event {
                return match (failed, interrupted) {
                    (0, 0) => Ok(()),
                    (0, _) => Err(Failure::Refused(format!("run {} was interrupted", run.name()))),
                    (failed, _) => Err(Failure::Stages(failed)),
                };
            }
        }
        let over = |lease: attrflow_engine::cluster::Lease| match lease.state {
            LeaseState::Ended => true,
            LeaseState::Running => is_here(&lease) && !runs::is_alive(&run, &lease, |_, _| {}),
        };
        if none && run.lease().is_ok_and(over) {
            let name = run.name();
            return Err(Failure::Refused(format!(
                "run {name} ended without an account of its stages: `attrflow logs {name}` may say why; the same `attrflow run` goes on where it stopped"
            )));
        }
        std::thread::sleep(Duration::from_millis(200));
        all = events.read().map_err(failed)?;
    }
}

/// The events of a run, as they are written.
struct Events<'a> {
    run: &'a RunFolder,
    offset: u64,
}

impl Events<'_> {
    /// Those since the last call, each with its line.
    fn read(&mut self) -> std::io::Result<Vec<(Event, String)>> {
        let mut file = match fs_err::File::open(self.run.events()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut file = BufReader::new(file);
        let mut events = Vec::new();
        loop {
            let mut line = String::new();
            let read = file.read_line(&mut line)?;
            // The end of the last line may not be there yet.
            if read == 0 || !line.ends_with('\n') {
                return Ok(events);
            }
            self.offset += read as u64;
            events.push((serde_json::from_str(&line)?, line));
        }
    }
}
