//! attrflow: which training images made a text-to-image diffusion model draw this?
//!
//! The engine (`pipeline`, `graph`, `recipe`, `plan`, `forecast`, `exec`, `adopt`, `attest`, `audit`, `replay`, `care`, `store`, `manifest`, `event`)
//! never computes a tensor and never prints. The computation (`stages`, `math`, `nn`, `io`, and `export`, which
//! writes results in others' formats) never knows the store, the plan or the terminal. [`cli`] alone knows both.

pub mod adopt;
pub mod attest;
pub mod audit;
pub mod care;
pub mod cli;
pub mod digest;
pub mod event;
pub mod exec;
pub mod explain;
pub mod export;
pub mod forecast;
pub mod graph;
pub mod io;
pub mod manifest;
pub mod math;
pub mod nn;
pub mod param;
pub mod pipeline;
pub mod plan;
pub mod recall;
pub mod recipe;
pub mod replay;
pub mod report;
pub mod stage;
pub mod stages;
pub mod store;
pub mod text;
pub mod tree;
