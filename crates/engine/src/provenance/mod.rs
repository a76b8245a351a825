//! What happened, and how others check it: manifests, audits, replays, attestations.

pub mod attest;
pub mod audit;
pub mod manifest;
pub mod replay;
