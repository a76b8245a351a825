//! The stage kinds: one file and one row each.

pub mod command;
mod download;
mod fisher;
mod generate;
mod influence;
mod latents;
mod loss_pass;
mod pretrain_loss;
mod ranking;
pub mod shared;
mod unlearn;

pub use shared::arrays::NpyRows;

use attrflow_engine::kind::{Computation, Registry};

/// Lists the kinds once: for the front program, which plans all and computes the light ones, and for the worker.
macro_rules! registry {
    (light { $($light:expr),* $(,)? } heavy { $($heavy:expr),* $(,)? }) => {
        /// The kinds as the engine sees them.
        pub fn kinds() -> Registry {
            vec![$(&$light,)* $(&$heavy),*]
        }

        /// The kinds that need no libtorch, as a worker runs them: the front program links no other.
        pub fn light() -> Vec<&'static dyn Computation> {
            vec![$(&$light),*]
        }

        /// The kinds that need libtorch, as a worker runs them.
        pub fn heavy() -> Vec<&'static dyn Computation> {
            vec![$(&$heavy),*]
        }
    };
}

registry! {
    light {
        download::Download,
        command::Command,
    }
    heavy {
        latents::Latents,
        pretrain_loss::PretrainLoss,
        fisher::Fisher,
        generate::Generate,
        unlearn::Unlearn,
        influence::Influence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_listed_where_it_says_that_it_computes() {
        let named = |light: bool| {
            kinds().into_iter().filter(move |kind| kind.light() == light).map(|kind| kind.name())
        };
        assert!(named(true).eq(light().iter().map(|kind| kind.kind())));
        assert!(named(false).eq(heavy().iter().map(|kind| kind.kind())));
    }
}
