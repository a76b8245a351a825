//! Who computes a task.

pub mod local;
pub mod measure;
pub mod serve;
