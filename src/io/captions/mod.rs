//! Captions: text files with one per line, and COCO annotations.

pub mod coco;
pub mod list;
mod near_miss;
