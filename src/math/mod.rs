//! The method: formulas on tensors.
//!
//! Wang, Hertzmann, Efros, Zhu, Zhang, *Data Attribution for Text-to-Image Models by Unlearning Synthesized
//! Images*, NeurIPS 2024 (arXiv 2406.09408). [`loss`] before and after [`unlearn`], which weighs its steps by
//! [`fisher`], gives the [`influence`] of every training image, or with less work by [`halving`] that of the first ones.

pub mod blocks;
pub mod data;
pub mod denoise;
pub mod error;
pub mod fisher;
pub mod halving;
pub mod influence;
pub mod loss;
pub mod memory;
pub mod noise;
pub mod per_sample;
pub mod sample;
pub mod schedule;
pub mod selection;
pub mod tune;
pub mod unlearn;
