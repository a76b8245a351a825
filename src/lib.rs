//! attrflow: which training images made a text-to-image diffusion model draw this?
//!
//! The engine (`pipeline`, `graph`, `recipe`, `plan`, `forecast`, `exec`, `adopt`, `attest`, `audit`, `replay`, `care`, `store`, `manifest`, `event`)
//! never computes a tensor and never prints. The computation (`stages`, `math`, `nn`, `io`, and `export`, which
//! writes results in others' formats) never knows the store, the plan or the terminal. [`cli`] alone knows both.

pub mod cli;
pub mod export;
pub mod io;
pub mod kinds;
pub mod method;
pub mod models;
pub mod progress;
