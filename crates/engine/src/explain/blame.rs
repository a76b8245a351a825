//! The last commit that changed a line.

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

/// The result of `git blame` for a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Blame {
    /// It has uncommitted changes.
    Uncommitted,
    /// The commit that changed it last.
    Commit {
        /// Its whole hash.
        hash: String,
        /// Its author.
        author: String,
        /// The day, UTC.
        day: String,
        /// The first line of its message.
        summary: String,
    },
}

impl std::fmt::Display for Blame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uncommitted => f.write_str("not committed yet"),
            Self::Commit { hash, author, day, summary } => {
                write!(f, "commit {} of {day} by {author}: {summary}", hash.get(..10).unwrap_or(hash))
            }
        }
    }
}

/// Runs `git blame` on a line; `None` without git, outside a checkout, or for an untracked file.
pub fn blame(file: &Path, line: usize) -> Option<Blame> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["blame", "--porcelain", "-L", &format!("{line},{line}"), "--"])
        .arg(file.file_name()?)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// Reads the porcelain format: the hash, then one header per line.
fn parse(text: &str) -> Option<Blame> {
    let hash = text.split_whitespace().next()?;
    if hash.bytes().all(|byte| byte == b'0') {
        return Some(Blame::Uncommitted);
    }
    let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let seconds = header("author-time ")?.parse().ok()?;
    Some(Blame::Commit {
        hash: hash.to_owned(),
        author: header("author ")?,
        day: jiff::Timestamp::from_second(seconds).ok()?.strftime("%Y-%m-%d").to_string(),
        summary: header("summary ").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn porcelain_is_read() {
        let text = "0123456789abcdef0123456789abcdef01234567 3 4 1\nauthor Ada L\nauthor-mail <a@b>\n\
                    author-time 86400\nauthor-tz +0100\nsummary more steps\nfilename a.toml\n\tsteps = 4\n";
        let blame = parse(text).unwrap();
        assert_eq!(blame.to_string(), "commit 0123456789 of 1970-01-02 by Ada L: more steps");
        let text = text.replace("0123456789abcdef0123456789abcdef01234567", &"0".repeat(40));
        assert_eq!(parse(&text), Some(Blame::Uncommitted));
        assert_eq!(parse(""), None);
    }
}
