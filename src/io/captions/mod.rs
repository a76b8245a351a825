//! Captions: lists of lines, and COCO's annotations.

pub mod coco;
pub mod list;
