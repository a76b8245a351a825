//! Texts that people write: TOML values that know their place, and typed parameters read from them.

pub mod param;
pub mod text;
pub mod tree;
