//! Formulas and networks against golden tensors made by the Python originals (`tests/golden/`).
#![allow(missing_docs, clippy::unwrap_used)]

mod clip;
mod image;
mod support;
mod tokenizer;
mod vae;
