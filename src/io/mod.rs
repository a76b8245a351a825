//! Files and formats. Knows nothing of tensors on a device.

pub mod npy;
pub mod npy_writer;

pub use npy::Npy;
pub use npy_writer::NpyWriter;
