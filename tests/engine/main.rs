//! The engine on toy kinds: no tensor, no worker process.
#![allow(missing_docs, clippy::unwrap_used)]

mod adopt;
mod audit;
mod care;
mod command;
mod edits;
mod explain;
mod faults;
mod field;
mod forecast;
mod fuzz;
mod language;
mod layers;
mod mutation;
mod objects;
mod pipelines;
mod project;
mod recipes;
mod remotes;
mod repairs;
mod sequences;
mod speed;
mod switches;
mod toys;
mod values;
mod verify;
