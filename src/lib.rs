//! attrflow: which training images made a text-to-image diffusion model draw this?
//!
//! The engine is the crate `attrflow-engine`: pipelines, cache, planning, running, provenance. This crate adds the
//! computation ([`kinds`] of stages on [`method`], [`models`] and [`io`]), the formats of others ([`export`]), and the
//! program ([`cli`], [`progress`], what a run left: [`results`], its page: [`report`]).

pub mod cli;
pub mod export;
pub mod io;
pub mod kinds;
pub mod method;
pub mod models;
pub mod progress;
pub mod report;
pub mod results;
