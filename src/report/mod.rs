//! A run as one HTML file: queries, the training images at the ends of their rankings, and where all of it comes from.
//!
//! A report reads a manifest and the results that [`Files`](crate::results::Files) gives it. It computes no tensor, asks nothing of a network, and is
//! the same for the same files. Nothing in it grows with the number of training images or of tasks.

mod archive;
mod budget;
mod comparison;
mod distribution;
mod embed;
mod evaluation;
mod graph;
mod header;
mod methods;
mod options;
mod page;
mod pictures;
mod plot;
mod provenance;
mod query;
mod redact;
mod row_view;
mod shell;
mod sides;
mod stages;
mod timeline;
mod words;

#[cfg(test)]
mod tests;

pub use comparison::Comparison;
pub use embed::extract;
pub use options::{Options, ReportError};
pub use page::Page;
