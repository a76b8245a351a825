//! Formulas and networks against golden tensors made by the Python originals (`tests/golden/`).
#![allow(missing_docs, clippy::unwrap_used)]

mod clip;
mod faults;
mod golden;
mod image;
mod method;
mod passes;
mod tokenizer;
mod unet;
mod vae;
