//! How far the mean over some timesteps may be from the mean over all.
//!
//! The differences of an image at the visited timesteps are a sample without replacement of its T. What all images
//! share at a timestep is taken away first: it says nothing of who is ahead, and it is most of what varies. Two or
//! three timesteps tell little of an image's own variance, so it is moderated by that of the others (Smyth 2004,
//! *Linear models and empirical Bayes methods for assessing differential expression*, section 6.2): a prior with as
//! many degrees of freedom as the images' variances agree.

use super::special_functions::{digamma, inverse_trigamma, student, trigamma};

/// The visited part of a population: a row of differences per latent, all of one length.
pub struct Visited<'a> {
    /// Differences [latents, n].
    pub rows: &'a [&'a [f64]],
    /// T, of which n are visited.
    pub timesteps: usize,
}

/// What is known of the latents' means over all timesteps, up to a number that all of them share.
#[derive(Debug, Clone, PartialEq)]
pub struct Intervals {
    /// The mean over the visited timesteps less that of all latents.
    pub centers: Vec<f64>,
    /// The standard errors of the centers.
    pub errors: Vec<f64>,
    /// How many of them an interval reaches to either side.
    pub quantile: f64,
}

/// The K-th best score, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    /// The estimate.
    pub score: f64,
    /// Its standard error.
    pub error: f64,
    /// The share of the variance of the images' scores that is not by chance.
    pub reliability: f64,
}

impl Threshold {
    /// From the images' scores at the visited timesteps, and their standard errors.
    ///
    /// The K-th largest of them is above the K-th best score: to be that large takes luck. Drawn towards the mean by the root of
    /// their reliability, the scores vary as much as the true ones do (Louis 1984, *Estimating a population of parameter
    /// values using Bayes and empirical Bayes methods*), and the K-th of them is as large as the K-th true one.
    pub fn of(scores: &[f64], errors: &[f64], top: usize) -> Self {
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        let variance =
            scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
        let chance = errors.iter().map(|error| error * error).sum::<f64>() / count;
        let reliability = if variance > 0.0 { (1.0 - chance / variance).max(0.0) } else { 1.0 };
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let last = order[top - 1];
        // Written so that without chance it is the K-th score itself, to the last bit; and never above it, so that K stay.
        let drawn = scores[last] - (1.0 - reliability.sqrt()) * (scores[last] - mean);
        // The K-th place is as well known as the mean of those that contend for it.
        let near = scores.iter().filter(|score| (*score - scores[last]).abs() <= errors[last]).count();
        let error = errors[last] / (near.max(1) as f64).sqrt();
        Self { score: drawn.min(scores[last]), error, reliability }
    }
}

impl Visited<'_> {
    /// The intervals; a side fails with probability `error` where what remains of the differences is normal.
    pub fn intervals(&self, error: f64) -> Intervals {
        let (latents, n) = (self.rows.len(), self.rows.first().map_or(0, |row| row.len()));
        let shared: Vec<f64> =
            (0..n).map(|t| self.rows.iter().map(|row| row[t]).sum::<f64>() / latents as f64).collect();
        let center = |row: &&[f64]| {
            row.iter().zip(&shared).map(|(value, shared)| value - shared).sum::<f64>() / n as f64
        };
        let centers: Vec<f64> = self.rows.iter().map(center).collect();
        let df = (n - 1) as f64;
        // What is shared was estimated from the same rows and took a part of each with it.
        let taken = if latents > 1 { latents as f64 / (latents - 1) as f64 } else { 1.0 };
        let variance = |(row, center): (&&[f64], &f64)| {
            let squares = row.iter().zip(&shared).map(|(value, shared)| (value - shared - center).powi(2));
            squares.sum::<f64>() * taken / df
        };
        let variances: Vec<f64> = self.rows.iter().zip(&centers).map(variance).collect();
        let prior = Prior::of(&variances, df);
        let quantile = prior.quantile(df, error);
        // Of a population of T, the n that are visited leave nothing to guess when they are all.
        let left = (1.0 - n as f64 / self.timesteps as f64) / n as f64;
        let errors = variances.iter().map(|own| (prior.shrink_variance(*own, df) * left).sqrt()).collect();
        Intervals { centers, errors, quantile }
    }
}

/// What the variances of many images say of the variance of one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    /// Degrees of freedom; infinite where the variances differ no more than by chance.
    pub df: f64,
    /// The variance that the images have in common.
    pub variance: f64,
}

impl Prior {
    /// From sample variances with `df` degrees of freedom each, by the moments of their logarithms.
    pub fn of(variances: &[f64], df: f64) -> Self {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let common = Self { df: f64::INFINITY, variance: mean(variances) };
        let mut sorted = variances.to_vec();
        sorted.sort_by(f64::total_cmp);
        // A variance of zero has no logarithm; one that small is a matter of rounding.
        let floor = sorted.get(sorted.len() / 2).map_or(0.0, |median| median * 1e-5);
        if floor <= 0.0 || variances.len() < 3 {
            return common;
        }
        let log = |variance: &f64| variance.max(floor).ln() - digamma(df / 2.0) + (df / 2.0).ln();
        let logs: Vec<f64> = variances.iter().map(log).collect();
        let center = mean(&logs);
        let spread = logs.iter().map(|log| (log - center).powi(2)).sum::<f64>() / (logs.len() - 1) as f64;
        let excess = spread - trigamma(df / 2.0);
        if excess <= 0.0 {
            return common;
        }
        let half = inverse_trigamma(excess);
        Self { df: 2.0 * half, variance: (center + digamma(half) - half.ln()).exp() }
    }

    /// An image's own variance, with `df` degrees of freedom, drawn towards the common one.
    pub fn shrink_variance(&self, own: f64, df: f64) -> f64 {
        if self.df.is_infinite() {
            return self.variance;
        }
        (self.df * self.variance + df * own) / (self.df + df)
    }

    /// How many standard errors an interval reaches to each side.
    fn quantile(&self, df: f64, error: f64) -> f64 {
        student(self.df + df, 1.0 - error)
    }
}
