//! Formulas and networks against golden tensors made by the Python originals (`tests/golden/`).
#![allow(missing_docs)]

mod faults;
mod golden;
mod method;
mod passes;
mod unet;
