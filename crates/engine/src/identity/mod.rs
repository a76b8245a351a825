//! What a stage or a unit is: digests of bytes, recipes, fingerprints.

pub mod digest;
pub mod recipe;
