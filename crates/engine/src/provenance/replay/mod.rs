//! Recomputes the stages of a manifest, and checks whether the same bytes result.
//!
//! There are two ways. A *replay* computes each stage on its own, from inputs that are still cached, so that a
//! difference is the stage's own. A *re-creation* starts from the sources alone, in another folder, and each stage
//! reads the new outputs of the stages before it.

mod rebuild;
mod verdict;

pub use rebuild::{RebuiltPipeline, ReplayError, parts, ports, recreation, replay, selected};
pub use verdict::{ArrayDiff, ReplayOutcome, outcomes};
