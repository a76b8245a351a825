//! Configuration texts: TOML values with their source locations, and typed parameters read from them.

pub mod param;
pub mod sorted_map;
pub mod text;
pub mod tree;
