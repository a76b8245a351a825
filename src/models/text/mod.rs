//! Texts: the tokenizer and the CLIP text encoder.

pub mod clip;
pub mod tokenizer;
