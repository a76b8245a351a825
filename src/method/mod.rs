//! The method: formulas on tensors.
//!
//! Wang, Hertzmann, Efros, Zhu, Zhang, *Data Attribution for Text-to-Image Models by Unlearning Synthesized
//! Images*, NeurIPS 2024 (arXiv 2406.09408). [`loss`] before and after [`unlearn`], which weighs its steps by
//! [`fisher`], gives the [`influence`] of every training image, or with less work by [`halving`] that of the first ones.

pub mod autotune;
pub mod blocks;
pub mod data;
pub mod diffusion_loss;
pub mod error;
pub mod fisher;
pub mod influence;
pub mod loss;
pub mod micro_batches;
pub mod noise;
pub mod per_sample;
pub mod sample;
pub mod schedule;
pub mod selection;
pub mod successive_halving;
pub mod unlearn;
