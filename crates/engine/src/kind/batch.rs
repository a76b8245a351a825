//! Units that share work: what of their inputs they read, and how several are computed at once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use super::{Context, Device, Downloads, Inputs, Unit};

/// The part of an input file that a unit reads.
///
/// Where the part stands in the file does not count: rows that move because others were put before them are the same rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteRanges {
    /// The bytes, in the order that they are read in.
    pub bytes: Vec<Range<u64>>,
    /// What they are read as, such as element type and shape of a row: equal bytes of another layout are other values.
    pub layout: String,
}

/// What a unit reads of its inputs, by port; all of a port that is not named.
pub type UnitInputs = BTreeMap<String, ByteRanges>;

/// One of several units that are computed together.
pub struct Member<'a, P> {
    /// The parameters of its stage.
    pub params: &'a P,
    /// The inputs of its stage.
    pub inputs: &'a Inputs,
    /// The unit.
    pub unit: &'a Unit,
    /// The empty folder that it goes into.
    pub out: &'a Path,
}

/// What surrounds units that are computed together; nothing in it may change a result.
pub struct Together<'a> {
    /// Where to compute.
    pub device: Device,
    /// Most rows to send through a network at once; 0 leaves it to the kind, as on GPUs, where results need not repeat bit for
    /// bit.
    pub micro_batch: usize,
    /// How to bring remote files.
    pub downloads: &'a Downloads,
    /// Reports a member's steps done and their total.
    pub progress: &'a dyn Fn(usize, u64, u64),
    /// Says which members are done: they are kept, whatever becomes of the others.
    pub finished: &'a dyn Fn(&[usize]),
}

impl Together<'_> {
    /// Hands the surroundings of one member to what computes it alone.
    pub fn alone<T>(&self, member: usize, work: impl FnOnce(&Context<'_>) -> T) -> T {
        let progress = |done, total| (self.progress)(member, done, total);
        let Self { device, micro_batch, downloads, .. } = *self;
        work(&Context { device, micro_batch, downloads, progress: &progress })
    }
}

impl Context<'_> {
    /// The micro batch for a kind that does not choose one by itself.
    pub fn effective_micro_batch(&self) -> usize {
        /// Keeps a large GPU busy with any network of this crate.
        const ROWS: usize = 1024;
        if self.micro_batch == 0 { ROWS } else { self.micro_batch }
    }

    /// The surroundings of a unit that is computed alone, for what computes several.
    pub fn together<T>(&self, work: impl FnOnce(&Together<'_>) -> T) -> T {
        let progress = |_, done, total| (self.progress)(done, total);
        let Self { device, micro_batch, downloads, .. } = *self;
        work(&Together { device, micro_batch, downloads, progress: &progress, finished: &|_| {} })
    }
}
