//! The real program, front and worker, on a miniature of the demo in a folder of its own.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]

mod acts;
mod adopt;
mod audit;
mod backends;
mod bad_data;
mod bad_input;
mod cache;
mod captions;
mod clock;
mod command;
mod command_ports;
#[path = "../../crates/engine/tests/engine/conformance.rs"]
mod conformance;
mod dataset;
mod dataset_refused;
mod disk;
mod download;
mod edits;
mod error_bars;
mod estimate;
mod evaluation;
mod explain;
mod export;
mod graph;
mod images;
mod index_entries;
mod init_own;
mod inputs;
mod interrupt;
mod kill;
mod layers;
mod lora;
mod model;
mod mscoco;
mod mscoco_evaluate;
mod mscoco_web;
mod noop;
mod project;
mod published;
mod query;
mod readonly;
mod replay;
mod reports;
mod run;
mod s3;
mod schema;
mod server;
mod streams;
mod top_k;
mod training;
