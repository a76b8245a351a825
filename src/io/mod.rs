//! Files and formats. Knows nothing of tensors on a device.

pub mod coco;
pub mod image;
pub mod npy;
pub mod npy_writer;
pub mod resize;

pub use coco::Captions;
pub use npy::Npy;
pub use npy_writer::NpyWriter;
