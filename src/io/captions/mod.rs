//! Captions: text files with one per line, and COCO annotations.

pub mod coco;
mod error;
pub mod list;
mod near_miss;

pub use error::CocoError;
