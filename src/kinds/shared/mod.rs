//! What stage kinds have in common.

pub mod arrays;
pub mod check_inputs;
pub mod check_outputs;
pub mod check_values;
pub(crate) mod counted;
pub mod device;
pub mod expected;
pub(crate) mod factors;
pub(crate) mod ids;
pub mod micro_batch;
pub mod network;
pub(crate) mod parameters;
pub(crate) mod query_table;
pub mod ranges;
pub mod tensors;
pub(crate) mod text;
pub(crate) mod trained_with;
