//! Files and formats, without tensors on a device.

pub mod archive;
pub mod captions;
pub mod compare;
pub mod dataset;
pub mod download;
pub mod dtype;
pub mod image;
pub mod json;
pub mod libtorch;
pub mod lora;
pub mod mistaken;
pub mod names;
pub mod npy;
pub mod prompt;
pub mod rankings;
pub mod single_file;
pub mod tensor_file;
pub mod torch;
pub mod words;
pub mod xml;

#[cfg(test)]
#[path = "../../tests/cli/server.rs"]
mod server;

pub use captions::coco::Captions;
pub use dtype::Dtype;
pub use npy::Npy;
pub use npy::writer::NpyWriter;
pub use tensor_file::TensorFile;
pub use torch::TorchFile;
