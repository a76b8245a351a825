//! The stage kinds: one file and one row each.

mod accept;
mod arrays;
pub mod device;
mod download;
mod fisher;
mod generate;
mod influence;
mod latents;
mod loss;
mod network;
mod pretrain_loss;
mod select;
mod spans;
mod table;
mod tensors;
mod unlearn;

use crate::stage::{Computation, Registry};

/// Lists the kinds once, for the front program (which plans) and for the worker (which computes).
macro_rules! registry {
    ($($kind:expr),* $(,)?) => {
        /// The kinds as the engine sees them.
        pub fn kinds() -> Registry {
            vec![$(&$kind),*]
        }

        /// The kinds as a worker runs them.
        pub fn computations() -> Vec<&'static dyn Computation> {
            vec![$(&$kind),*]
        }
    };
}

registry! {
    download::Download,
    latents::Latents,
    pretrain_loss::PretrainLoss,
    fisher::Fisher,
    generate::Generate,
    unlearn::Unlearn,
    influence::Influence,
}
