//! Why a stage computes.

use serde::{Deserialize, Serialize};

use crate::identity::recipe::Change;

/// Why a stage computes.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// No earlier run of this pipeline contains the stage.
    First,
    /// The recipe differs from that of the last run.
    Changed {
        /// The changed fields.
        changes: Vec<Change>,
    },
    /// The recipe is that of the last run, but its result is not in the cache: removed, or never finished.
    Missing,
    /// The recipe is that of the last run, in which the stage failed.
    Failed {
        /// Its error.
        error: String,
    },
    /// Its result was adopted, and the files are missing or were modified.
    Modified {
        /// What happened to them.
        what: String,
    },
    /// There is a result for another class of device.
    OtherDevice {
        /// That class, `cpu` or `cuda`.
        device: String,
        /// Whether it was adopted.
        adopted: bool,
    },
    /// The user asked for it.
    Forced,
}

/// The first texts of a list, and how many more there are: a stage may read the outputs of hundreds.
pub fn first_of(texts: &[String], between: &str) -> String {
    const SHOWN: usize = 6;
    let more = match texts.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("{between}{more} more"),
    };
    texts[..texts.len().min(SHOWN)].join(between) + &more
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::First => f.write_str("never run before"),
            Self::Missing => f.write_str("partial, or its result is not cached"),
            Self::Failed { error } => write!(f, "failed in the last run: {error}"),
            Self::Modified { what } => f.write_str(what),
            Self::OtherDevice { device, adopted } => {
                let how = if *adopted { "adopted" } else { "computed" };
                write!(
                    f,
                    "{how} for {device}, which may round differently: `--device {device}` uses that result"
                )
            }
            Self::Forced => f.write_str("forced"),
            Self::Changed { changes } => {
                let texts: Vec<String> = changes.iter().map(Change::to_string).collect();
                f.write_str(&first_of(&texts, "; "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_long_list_the_first_are_shown() {
        let texts = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>();
        assert_eq!(first_of(&texts(6), ", "), "0, 1, 2, 3, 4, 5");
        assert_eq!(first_of(&texts(8), ", "), "0, 1, 2, 3, 4, 5, 2 more");
        assert_eq!(first_of(&[], ", "), "");
    }
}
