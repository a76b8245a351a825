//! What the scheduler says of the tasks of a run.

use std::time::Duration;

/// One task of a job array, as `squeue` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobLine {
    /// The number of the array, and the place in it.
    pub id: TaskId,
    /// As Slurm names it: `RUNNING`.
    pub state: String,
    /// Why it waits, or ended.
    pub reason: String,
    /// The node, empty where there is none.
    pub node: String,
    /// The time that is left to it.
    pub left: Option<Duration>,
    /// What the job was submitted with.
    pub comment: String,
}

/// The number of a job array, and the place of a task in it.
pub type TaskId = (String, String);

impl JobLine {
    /// Reads a line of `%F|%K|%T|%r|%N|%L|%k`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.trim().splitn(7, '|').map(str::to_owned);
        let mut next = || fields.next();
        let id = (next()?, next()?);
        let (state, reason, node, left) = (next()?, next()?, next()?, next()?);
        Some(Self { id, state, reason, node, left: duration(&left), comment: next().unwrap_or_default() })
    }

    /// Whether it is over, however it ended.
    pub fn is_over(&self) -> bool {
        const OVER: [&str; 11] = [
            "COMPLETED",
            "FAILED",
            "CANCELLED",
            "TIMEOUT",
            "NODE_FAIL",
            "PREEMPTED",
            "OUT_OF_MEMORY",
            "BOOT_FAIL",
            "DEADLINE",
            "REVOKED",
            "SPECIAL_EXIT",
        ];
        OVER.contains(&self.state.as_str())
    }

    /// Whether a worker of it may be alive on its node.
    pub fn is_running(&self) -> bool {
        ["RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"]
            .contains(&self.state.as_str())
    }

    /// The pool that it was submitted for.
    pub fn pool(&self) -> Option<&str> {
        self.comment.rsplit_once(':').map(|(_, pool)| pool)
    }

    /// How it is, for people: `FAILED (NonZeroExitCode)`.
    pub fn describe(&self) -> String {
        match self.reason.as_str() {
            "" | "None" => self.state.clone(),
            reason => format!("{} ({reason})", self.state),
        }
    }
}

/// A time as Slurm writes it: `[days-][[hours:]minutes:]seconds`.
fn duration(text: &str) -> Option<Duration> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (days.parse::<u64>().ok()?, clock),
        None => (0, text),
    };
    let mut seconds = 0;
    for part in clock.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    Some(Duration::from_secs(days * 86400 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_squeue() {
        let line = JobLine::parse("12|3|RUNNING|None|node2|1-02:03:04|attrflow:demo:gpu").unwrap();
        assert_eq!(line.id, ("12".to_owned(), "3".to_owned()));
        assert_eq!(line.left, Some(Duration::from_secs(93784)));
        assert!(line.is_running() && !line.is_over() && line.pool() == Some("gpu"));
        let line = JobLine::parse("12|4|PENDING|Resources||UNLIMITED|attrflow:demo:gpu").unwrap();
        assert!(!line.is_running() && !line.is_over() && line.left.is_none());
        assert_eq!(line.describe(), "PENDING (Resources)");
        let line = JobLine::parse("12|4|TIMEOUT|TimeLimit|node1|0:00|").unwrap();
        assert!(line.is_over() && line.left == Some(Duration::ZERO) && line.pool().is_none());
        assert_eq!(JobLine::parse("slurm_load_jobs error"), None);
    }
}
