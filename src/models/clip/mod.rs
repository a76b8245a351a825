//! CLIP: its text encoder, which conditions the diffusion model, and its image encoder, which compares pictures.

pub mod image;
pub mod text;
