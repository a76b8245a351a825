//! What a manifest records, computed once more: the pipeline that it describes, and whether the same bytes come out.
//!
//! Two ways lead here. A *replay* takes each stage by itself, from the inputs that the cache still holds, so that a
//! difference is the stage's own. A *re-creation* starts from the sources alone, somewhere else, and lets each stage
//! read what the one before it gave there.

mod rebuild;
mod verdict;

pub use rebuild::{RebuiltPipeline, ReplayError, parts, ports, recreation, replay, selected};
pub use verdict::{ArrayDiff, ReplayOutcome, outcomes};
