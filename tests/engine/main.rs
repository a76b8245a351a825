//! The engine on toy kinds: no tensor, no worker process.
#![allow(missing_docs, clippy::unwrap_used)]

mod adopt;
mod audit;
mod command;
mod edits;
mod faults;
mod layers;
mod pipelines;
mod project;
mod recipes;
mod repairs;
mod switches;
mod toys;
mod values;
