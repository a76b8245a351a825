//! The method: formulas on tensors.
//!
//! Wang, Hertzmann, Efros, Zhu, Zhang, *Data Attribution for Text-to-Image Models by Unlearning Synthesized
//! Images*, NeurIPS 2024 (arXiv 2406.09408). The [`influence`] of a training image is its [`loss`] after
//! [`unlearn`], whose steps are preconditioned by [`fisher`], minus its loss before. [`successive_halving`] finds the
//! most influential images with less work, and [`screen`] estimates the influence on many queries at once.

pub mod autotune;
pub mod baseline;
pub mod blocks;
pub mod curvature;
pub mod damping;
pub mod data;
pub mod diffusion_loss;
pub mod ekfac;
pub mod error;
pub mod fisher;
pub mod gradients;
pub mod identity;
pub mod influence;
pub mod layer_gradients;
pub mod loss;
pub mod micro_batches;
pub mod noise;
pub mod objective;
pub mod per_sample;
pub mod projection;
pub mod sample;
pub mod schedule;
pub mod screen;
pub mod selection;
pub mod successive_halving;
pub mod train;
pub mod unlearn;
