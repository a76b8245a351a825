//! The record of a run, and ways to check it: manifests, times of tasks, audits, replays, attestations.

pub mod attest;
pub mod audit;
pub mod manifest;
pub mod replay;
pub mod task_times;
