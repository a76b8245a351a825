//! The record of a run, and ways to check it: manifests, audits, replays, attestations.

pub mod attest;
pub mod audit;
pub mod manifest;
pub mod replay;
