//! Files and formats. Knows nothing of tensors on a device.

pub mod archive;
pub mod caption_list;
pub mod coco;
pub mod compare;
pub mod fetch;
pub mod held;
pub mod hub;
pub mod image;
pub mod npy;
mod npy_error;
mod npy_header;
pub mod npy_writer;
pub mod pickle;
pub mod picture;
pub mod pins;
pub mod resize;
#[cfg(test)]
#[path = "../../tests/cli/server.rs"]
mod server;
pub mod space;
pub mod tensor_file;
pub mod torch_file;

pub use coco::Captions;
pub use npy::Npy;
pub use npy_writer::NpyWriter;
pub use tensor_file::TensorFile;
pub use torch_file::TorchFile;
