//! What is remembered of files, so that they need not be read again.

pub mod byte_ranges;
pub mod index_pack;
pub mod snapshot;
pub mod stat;
pub mod tree_stat;
pub mod verified;
