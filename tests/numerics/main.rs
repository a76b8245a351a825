//! Formulas and networks against golden tensors made by the Python originals (`tests/golden/`).
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are test code too")]
#![allow(clippy::single_range_in_vec_init, reason = "a list of ranges may hold one")]

mod baselines;
mod checkpoints;
mod clip;
mod dino;
mod ekfac;
mod fast;
mod faults;
mod generation;
mod golden;
mod image;
mod lora;
mod method;
mod objectives;
mod passes;
mod pipeline;
#[allow(dead_code, reason = "a part of what the tests of the program need")]
#[path = "../cli/project.rs"]
mod project;
#[allow(dead_code, reason = "its archives alone are needed")]
#[path = "../cli/published.rs"]
mod published;
mod query_loss;
mod real;
mod refusals;
mod rescore;
mod ruled;
mod screen;
mod sdxl;
#[path = "../cli/server.rs"]
mod server;
mod sizes;
mod successive_halving;
mod tokenizer;
mod train;
mod unet;
mod vae;
mod written;
