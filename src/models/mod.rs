//! Networks, named as their checkpoints name them.
//!
//! A model is built from a [`weights::Weights`], which hands out each tensor once and reports every key that
//! does not fit, out of [`layers`], which write down what they computed while a [`tape::Tape`] records.

mod adapter;
mod autograd;
pub mod clip;
pub mod dino;
pub mod kernels;
pub mod layers;
pub mod lora;
pub mod profile;
pub mod tape;
pub mod tokenizer;
mod transformer;
pub mod unet;
pub mod vae;
pub mod vision;
pub mod weights;
