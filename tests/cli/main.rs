//! The real program, front and worker, on a miniature of the demo in a folder of its own.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]

mod adopt;
mod audit;
mod bad_data;
mod bad_input;
mod captions;
mod command;
mod download;
mod edits;
mod export;
mod kill;
mod mscoco;
mod mscoco_web;
mod project;
mod published;
mod reports;
mod run;
mod schema;
mod server;
