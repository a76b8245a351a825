//! How sure the scores and the places of a ranking are, from the influences per timestep.

use std::path::Path;

use attrflow_statistics::error_bars::{Differences, ErrorBars, image_errors};
use attrflow_statistics::interval::quantile;
use attrflow_statistics::ranks::{NoisyScores, ties};
use serde::Serialize;

use super::loss_pass::per_timestep::mean;
use crate::io::npy::Npy;
use crate::io::words::digits;
use crate::method::influence::{Flips, per_image};

/// The probability with which intervals hold.
const LEVEL: f64 = 0.95;
/// How many resamples give the intervals of ranks.
const RESAMPLES: usize = 200;
/// The seed of the resamples.
const SEED: u64 = 0;

/// Why a ranking has no error bars.
pub(super) const NOT_CONNECTED: &str = "no error bars: the input `per_timestep` is not connected; with `noise = \"per_batch\"` in the loss there is none";
/// The same for rankings by `top_k`.
pub(super) const TOP_K: &str =
    "no error bars with `top_k`: not all timesteps of all images are computed; scores are exact or estimates";
/// The same for the scores of `baseline`.
pub(super) const BASELINE: &str = "no error bars: a baseline gives one number for each image, with no timesteps or draws of noise to compare";
/// The same for a single loss before and after.
pub(super) const ONE_POINT: &str = "no error bars: one timestep with one draw of noise says nothing of the noise; increase `time_samples` or `draws`";
/// What the marks below pictures say.
pub(super) const LEGEND: &str = "Bar: 95 % interval, on the axis below. \u{b1}: standard error. Ranks: 95 % interval. \
     Tie: those of neighbours overlap.";

/// How the errors were computed, and how large they are.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Method {
    method: &'static str,
    timesteps: usize,
    draws: usize,
    /// Those of the errors, with the prior's; null for infinitely many.
    degrees_of_freedom: f64,
    level: f64,
    /// Half the width of an interval, in standard errors.
    half_width: f64,
    median_standard_error: f64,
    /// The k of the column `p_top`.
    top: usize,
    resamples: usize,
    flips: Flips,
}

/// The error of one image.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct ErrorBar {
    /// The standard error of its influence.
    pub standard_error: f32,
    /// The bounds of the interval of its influence.
    pub low: f32,
    pub high: f32,
    /// The probability that it is among the first `top`.
    pub p_top: f64,
    /// The bounds of the interval of its rank.
    pub rank_low: usize,
    pub rank_high: usize,
    /// Whether this interval overlaps that of the next image.
    pub tied: bool,
}

impl ErrorBar {
    /// The columns of a table.
    pub const COLUMNS: [&str; 7] =
        ["standard_error", "low", "high", "p_top", "rank_low", "rank_high", "tied"];

    /// What stands in them.
    pub fn record(&self) -> [String; 7] {
        let Self { standard_error, low, high, p_top, rank_low, rank_high, tied } = self;
        [
            standard_error.to_string(),
            low.to_string(),
            high.to_string(),
            p_top.to_string(),
            rank_low.to_string(),
            rank_high.to_string(),
            tied.to_string(),
        ]
    }

    /// Lines for below a picture.
    pub fn lines(&self) -> Vec<String> {
        let ranks = match (self.rank_low, self.rank_high) {
            (low, high) if low == high => format!("rank {low}"),
            (low, high) => format!("ranks {low}\u{2013}{high}"),
        };
        let error = digits(self.standard_error.into(), 2);
        let mut lines = vec![format!("\u{b1} {error}, {ranks}")];
        lines.extend(self.tied.then(|| "tie with the next".to_owned()));
        lines
    }
}

/// The influences per timestep in a file, and the scores that they are of.
pub(super) struct Scores<'a> {
    /// float32 [2N, T] or [2N, T, R], or N for 2N without mirror images.
    pub file: &'a Path,
    /// [N].
    pub influence: &'a [f32],
    pub flips: Flips,
}

/// What is known of the errors of a ranking.
pub(super) struct Found {
    pub method: Method,
    /// Of the first images.
    pub rows: Vec<ErrorBar>,
    /// Of all images, by index.
    pub standard_errors: Vec<f32>,
}

impl Scores<'_> {
    /// The errors of the first `count` images of a ranking, in its order; `None` if there is only one difference for each latent.
    ///
    /// # Errors
    /// The file is not of these scores.
    pub fn error_bars(&self, ranks: &[i64], count: usize, top: usize) -> anyhow::Result<Option<Found>> {
        let images = self.influence.len();
        let (mut rows, [timesteps, draws]) = self.read()?;
        let per_latent = timesteps * draws;
        let scores: Vec<f64> = rows.chunks_exact(per_latent).map(mean).collect();
        self.expect_same(&scores)?;
        if self.flips == Flips::Mean && scores.len() == 2 * images {
            rows = means_of_mirrors(&rows);
        }
        let scores: Vec<f64> = rows.chunks_exact(per_latent).map(mean).collect();
        let differences = Differences { rows: &rows, timesteps, draws };
        let Some(bars) = ErrorBars::of(differences, LEVEL) else { return Ok(None) };
        let errors = image_errors(&scores, &bars.errors, images);
        // One more, which the last one may tie with.
        let of: Vec<usize> = ranks.iter().take(count + 1).map(|&image| image as usize).collect();
        let correlation = differences.mirror_correlation(images);
        let noisy = NoisyScores { scores: &scores, errors: &bars.errors, df: bars.df, images, correlation };
        let found = noisy.ranks(&of, top, RESAMPLES, SEED);
        let tied = ties(&found.low, &found.high);
        let rows = of.iter().take(count).enumerate().map(|(place, &image)| {
            let interval = bars.interval(self.influence[image].into(), errors[image]);
            ErrorBar {
                standard_error: errors[image] as f32,
                low: interval.low as f32,
                high: interval.high as f32,
                p_top: found.in_top[place],
                rank_low: found.low[place],
                rank_high: found.high[place],
                tied: tied.get(place).copied().unwrap_or(false),
            }
        });
        let rows = rows.collect();
        let standard_errors = errors.iter().map(|error| *error as f32).collect();
        let mut sorted = errors;
        sorted.sort_by(f64::total_cmp);
        let method = Method {
            method: if draws > 1 { "between draws" } else { "successive differences" },
            timesteps,
            draws,
            degrees_of_freedom: bars.df,
            level: LEVEL,
            half_width: bars.quantile,
            median_standard_error: quantile(&sorted, 0.5),
            top,
            resamples: RESAMPLES,
            flips: self.flips,
        };
        Ok(Some(Found { method, rows, standard_errors }))
    }

    /// The values, and T and R.
    fn read(&self) -> anyhow::Result<(Vec<f32>, [usize; 2])> {
        let (npy, images) = (Npy::open(self.file)?, self.influence.len());
        let latents = npy.rows();
        anyhow::ensure!(
            images > 0 && (latents == images || latents == 2 * images),
            "{}: {latents} rows, expected {images} or {} (with mirror images), since there are {images} influences",
            self.file.display(),
            2 * images
        );
        let size = match *npy.shape() {
            [_, timesteps] => [timesteps, 1],
            [_, timesteps, draws] => [timesteps, draws],
            _ => {
                npy.expect_shape(&[None, None])?;
                [0, 0]
            }
        };
        npy.expect_values()?;
        npy.expect_finite()?;
        let mut rows = Vec::new();
        npy.read_f32(0..latents, &mut rows)?;
        Ok((rows, size))
    }

    /// Refuses scores of latents that do not give the influences.
    fn expect_same(&self, scores: &[f64]) -> anyhow::Result<()> {
        let largest = self.influence.iter().fold(0.0_f32, |largest, score| largest.max(score.abs()));
        // An influence is a small difference of large losses, rounded before it was taken.
        let most = 1e-6 + 1e-3 * f64::from(largest);
        let scores: Vec<f32> = scores.iter().map(|score| *score as f32).collect();
        let found = per_image(&scores, self.influence.len(), self.flips)?;
        for (image, (found, &expected)) in found.into_iter().zip(self.influence).enumerate() {
            anyhow::ensure!(
                f64::from(found - expected).abs() <= most,
                "{}: the score of image {image} is {found:.3e}, expected {expected:.3e} as on `influence`: both must come from the \
                 same stage, and `flips` must be its own",
                self.file.display()
            );
        }
        Ok(())
    }
}

/// The mean of each image's and its mirror image's differences. The noise that both share is in it as it is.
fn means_of_mirrors(rows: &[f32]) -> Vec<f32> {
    let (own, mirrored) = rows.split_at(rows.len() / 2);
    own.iter().zip(mirrored).map(|(own, mirrored)| (own + mirrored) / 2.0).collect()
}

#[cfg(test)]
#[path = "ranking_error_bars_tests.rs"]
mod tests;
