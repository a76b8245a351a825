//! attrflow: which training images made a text-to-image diffusion model draw this?

pub mod io;
pub mod math;
pub mod nn;
