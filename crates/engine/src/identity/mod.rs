//! The identity of a stage or a unit: digests, recipes, fingerprints.

pub mod digest;
pub mod recipe;
pub mod regular_file;
pub mod shared_fs;
