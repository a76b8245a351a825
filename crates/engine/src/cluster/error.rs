//! What a scheduler answers when it does not do what it was asked.

/// Why Slurm did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    /// It refused: its words.
    #[error("{0}")]
    Refused(String),
    /// It did not answer, so that what became of the request is not known.
    #[error("{0}")]
    Absent(String),
}
