//! The results of a run, read by its manifest: queries, scores, ranks, and the training images behind them.
//!
//! It computes nothing and needs no pipeline file. What is gone is `None`.

mod files;
mod query;
mod records;
mod rows;

pub use files::{Files, ManifestFile};
pub use query::QueryStages;
pub use records::{Run, base, item, text};
pub use rows::{Arrays, CaptionFiles, ErrorBar, Method, Row, Summary, Top, TopRow, rows};

/// [`SCORE_MEANING`], for `concat!`.
macro_rules! score_meaning {
    () => {
        "A score is the rise of a training image's loss after the model unlearned the query: loss after minus loss before. Its \
         unit is that of the loss, the model's mean squared error in predicting noise. Positive: the model got worse at this \
         image, so it and the query share something; larger is more influential. Near the median of all: no connection found, \
         since unlearning makes the model slightly worse at everything. Negative: the model got better at it. The scale depends \
         on the step and on the model: compare the scores of one query with each other, not those of two queries or two models."
    };
}
pub(crate) use score_meaning;

/// What a score means, in one paragraph: for the page, the README and the help.
pub const SCORE_MEANING: &str = score_meaning!();
