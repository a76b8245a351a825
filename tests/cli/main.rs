//! The real program, front and worker, on a miniature of the demo in a folder of its own.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]

mod bad_data;
mod bad_input;
mod download;
mod edits;
mod kill;
mod project;
mod reports;
mod run;
mod server;
