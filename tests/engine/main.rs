//! The engine on toy kinds: no tensor, no worker process.
#![allow(missing_docs)]

mod edits;
mod faults;
mod layers;
mod pipelines;
mod recipes;
mod toys;
