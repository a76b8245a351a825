//! The engine on toy kinds: no tensor, no worker process.
#![allow(missing_docs, clippy::unwrap_used)]

mod adopt;
mod audit;
mod care;
mod edits;
mod explain;
mod faults;
mod field;
mod forecast;
mod fuzz;
mod fuzzing;
mod language;
mod mutation;
mod objects;
mod pipelines;
mod project;
mod recipes;
mod remotes;
mod repairs;
mod rows;
mod sequences;
mod speed;
mod switches;
mod toys;
mod values;
mod verify;
