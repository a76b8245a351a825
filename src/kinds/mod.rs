//! The stage kinds: one file and one row each.

mod baseline;
pub mod command;
mod dataset;
mod download;
mod eigenbasis;
mod ekfac;
mod evaluate;
mod fisher;
mod generate;
mod gradients;
mod influence;
mod influence_summary;
mod latents;
pub mod look;
mod loss_pass;
mod model;
mod pretrain_loss;
mod query;
mod query_loss;
mod ranking;
mod ranking_error_bars;
mod screen;
pub mod shared;
mod step_check;
mod subset;
mod train;
mod universe;
mod unlearn;

pub use shared::arrays::NpyRows;

use attrflow_engine::kind::{Computation, Kind as _, Registry};

/// Lists the kinds once: for the command-line process, which plans all and computes those without libtorch, and for the worker.
macro_rules! registry {
    (without_libtorch { $($own:ty),* $(,)? } with_libtorch { $($torch:ty),* $(,)? }) => {
        /// The kinds as the engine sees them.
        pub fn kinds() -> Registry {
            vec![$(&<$own>::INFO,)* $(&<$torch>::INFO),*]
        }

        /// How to compute the kinds that need no libtorch: the command-line process links no other.
        pub fn without_libtorch() -> Vec<Computation> {
            vec![$(Computation::of::<$own>()),*]
        }

        /// How to compute the kinds that need libtorch.
        pub fn with_libtorch() -> Vec<Computation> {
            vec![$(Computation::of::<$torch>()),*]
        }
    };
}

registry! {
    without_libtorch {
        download::Download,
        dataset::Dataset,
        model::Model,
        query::Query,
        command::Command,
        ranking::Ranking,
        subset::Subset,
        universe::Universe,
        evaluate::Evaluate,
    }
    with_libtorch {
        latents::Latents,
        pretrain_loss::PretrainLoss,
        fisher::FisherParams,
        eigenbasis::Eigenbasis,
        ekfac::EkfacParams,
        generate::SampleParams,
        unlearn::UnlearnParams,
        screen::Screen,
        influence::Influence,
        train::TrainParams,
        query_loss::QueryLoss,
        gradients::GradientsParams,
        baseline::BaselineParams,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_listed_where_it_says_that_it_computes() {
        let named = |libtorch: bool| {
            kinds().into_iter().filter(move |kind| kind.libtorch == libtorch).map(|kind| kind.name)
        };
        assert!(named(false).eq(without_libtorch().iter().map(|computation| computation.kind.name)));
        assert!(named(true).eq(with_libtorch().iter().map(|computation| computation.kind.name)));
    }
}
