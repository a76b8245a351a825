//! How an artifact was placed in the results folder, and what was wrong there before.

use std::path::PathBuf;

/// Where an artifact is placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The path in the results folder.
    pub path: PathBuf,
    /// What was wrong with it before it was restored, if anything.
    pub mended: Option<Repair>,
    /// Whether another artifact was shown there before.
    pub replaced: bool,
}

/// What was wrong with a result in the results folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// It was missing.
    Missing,
    /// It held other bytes.
    Changed,
    /// So many files of the folder were missing or held other bytes.
    Files(usize),
}

impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display();
        match self.mended {
            None => write!(f, "{path} is as it was"),
            Some(Repair::Missing) => write!(f, "{path} was missing and is restored"),
            Some(Repair::Changed) => write!(f, "{path} held other bytes than the stage gave and is restored"),
            Some(Repair::Files(1)) => {
                write!(f, "{path}: a file in it was missing or changed and is restored")
            }
            Some(Repair::Files(count)) => {
                write!(f, "{path}: {count} files in it were missing or changed and are restored")
            }
        }
    }
}
