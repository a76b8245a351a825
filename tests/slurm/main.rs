//! Runs on a Slurm of this machine's own: see README.md. Each test brings one up, and waits for its turn.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "why a test is skipped, and what was measured")]

#[path = "../cli/acts.rs"]
mod acts;
mod bucket;
#[path = "../../crates/engine/tests/engine/conformance.rs"]
mod conformance;
#[path = "../cli/index_entries.rs"]
mod index_entries;
mod lab;
mod nodes;
#[path = "../cli/project.rs"]
#[allow(dead_code)]
mod project;
#[path = "../cli/s3.rs"]
#[allow(dead_code)]
mod s3;
mod trials;
