//! Standard errors of scores that are means of differences over a fixed grid of timesteps.
//!
//! A latent's score is the mean of `d[t, r]` over T timesteps and R draws of noise at each. The grid is fixed, so the
//! spread between timesteps is no error. What the noise contributes is seen in one of two ways.
//!
//! With R >= 2, from the spread between draws: SE^2 = sum over t of s_t^2 / (R T^2), where s_t^2 is the sample
//! variance of the draws at t. This is right in expectation. It has T (R - 1) degrees of freedom if all s_t have
//! one expectation, and fewer otherwise: that count is approximate.
//!
//! With R = 1, from successive differences (von Neumann et al. 1941, *The mean square successive difference*):
//! SE^2 = sum over t of `(e[t+1] - e[t])^2` / (2 T (T - 1)), where e is d less the mean of d over all latents at
//! that timestep. The trend that all latents share is no noise. What remains of a latent's own trend adds to SE^2, so
//! it is an upper bound in expectation. The variance of their statistic for independent normal values gives
//! 2 (T - 1)^2 / (3 T - 4) degrees of freedom.
//!
//! These are few. So the variances are then shrunk towards the common one, see [`Prior`].

use crate::interval::Interval;
use crate::sample_variance;
use crate::variance::Prior;

/// The differences of all latents.
#[derive(Debug, Clone, Copy)]
pub struct Differences<'a> {
    /// The differences [latents, T, R].
    pub rows: &'a [f32],
    /// T.
    pub timesteps: usize,
    /// R.
    pub draws: usize,
}

/// The errors of all latents' scores.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorBars {
    /// By latent: the standard error of its score.
    pub errors: Vec<f64>,
    /// The degrees of freedom of the errors, those of the prior included. Infinite if the variances do not differ
    /// more than by chance.
    pub df: f64,
    /// The half width of an interval, in standard errors.
    pub quantile: f64,
}

impl ErrorBars {
    /// The errors, for intervals that hold with probability `level` where the noise is normal.
    ///
    /// `None` where one difference for each latent says nothing of noise: T = 1 and R = 1.
    ///
    /// # Panics
    /// If the differences are not T R for each latent.
    pub fn of(differences: Differences, level: f64) -> Option<Self> {
        let (squares, df) = differences.squared_errors()?;
        let prior = Prior::of(&squares, df);
        let errors = squares.iter().map(|own| prior.shrink_variance(*own, df).sqrt()).collect();
        Some(Self { errors, df: prior.df + df, quantile: prior.quantile(df, (1.0 - level) / 2.0) })
    }

    /// The interval of a score with this standard error.
    pub fn interval(&self, score: f64, error: f64) -> Interval {
        Interval::around(score, self.quantile * error)
    }
}

impl Differences<'_> {
    /// By latent: SE^2. And the degrees of freedom of each.
    fn squared_errors(&self) -> Option<(Vec<f64>, f64)> {
        let (timesteps, draws) = (self.timesteps as f64, self.draws as f64);
        match (self.timesteps, self.draws) {
            (0, _) | (_, 0) | (1, 1) => None,
            (_, 1) => {
                let df = 2.0 * (timesteps - 1.0).powi(2) / (3.0 * timesteps - 4.0);
                Some((self.successive(), df))
            }
            _ => Some((self.between_draws(), timesteps * (draws - 1.0))),
        }
    }

    /// The rows of the latents.
    fn latents(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        let rows = self.rows.chunks_exact(self.timesteps * self.draws);
        assert!(rows.remainder().is_empty(), "a latent has a difference for each timestep and draw");
        rows
    }

    /// The correlation of the noise in an image's difference and in its mirror image's, pooled over all images: both may share
    /// their noise tensor. Latent `images + i` is the mirror image of latent `i`.
    ///
    /// It is 0 without mirror images, and where nothing shows of the noise.
    pub fn mirror_correlation(&self, images: usize) -> f64 {
        if self.latents().len() != 2 * images || (self.timesteps, self.draws) == (1, 1) {
            return 0.0;
        }
        let shared = self.shared_steps();
        let noise = |row: &[f32]| -> Vec<f64> {
            match self.draws {
                1 => own_steps(row).zip(&shared).map(|(own, shared)| own - shared).collect(),
                draws => row.chunks_exact(draws).flat_map(centered).collect(),
            }
        };
        let mut sums = [0.0; 3];
        for (own, mirrored) in self.latents().take(images).zip(self.latents().skip(images)) {
            for (a, b) in noise(own).into_iter().zip(noise(mirrored)) {
                sums = [sums[0] + a * b, sums[1] + a * a, sums[2] + b * b];
            }
        }
        let [both, own, mirrored] = sums;
        if own * mirrored > 0.0 { (both / (own * mirrored).sqrt()).clamp(-1.0, 1.0) } else { 0.0 }
    }

    fn between_draws(&self) -> Vec<f64> {
        let scale = self.draws as f64 * (self.timesteps as f64).powi(2);
        let mut at_timestep = Vec::with_capacity(self.draws);
        let mut square = |row: &[f32]| {
            let variance = |draws: &[f32]| {
                at_timestep.clear();
                at_timestep.extend(draws.iter().copied().map(f64::from));
                sample_variance(&at_timestep)
            };
            row.chunks_exact(self.draws).map(variance).sum::<f64>() / scale
        };
        self.latents().map(&mut square).collect()
    }

    fn successive(&self) -> Vec<f64> {
        let steps = self.shared_steps();
        let count = self.latents().len() as f64;
        // The subtracted mean was estimated from the same rows; this corrects for it.
        let taken = if count > 1.0 { count / (count - 1.0) } else { 1.0 };
        let scale = taken / (2.0 * (self.timesteps * (self.timesteps - 1)) as f64);
        let square = |row: &[f32]| {
            let steps = own_steps(row).zip(&steps).map(|(own, shared)| (own - shared).powi(2));
            steps.sum::<f64>() * scale
        };
        self.latents().map(square).collect()
    }

    /// The mean over all latents of the difference between successive timesteps. None of it is subtracted from a
    /// single latent, which would have nothing left.
    fn shared_steps(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.timesteps - 1];
        let count = self.latents().len();
        if count > 1 {
            for row in self.latents() {
                sums.iter_mut().zip(own_steps(row)).for_each(|(sum, step)| *sum += step);
            }
            sums.iter_mut().for_each(|sum| *sum /= count as f64);
        }
        sums
    }
}

/// Values less their mean.
fn centered(values: &[f32]) -> Vec<f64> {
    let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
    let mean = crate::mean(&values);
    values.into_iter().map(|value| value - mean).collect()
}

fn own_steps(row: &[f32]) -> impl Iterator<Item = f64> {
    row.windows(2).map(|pair| f64::from(pair[1]) - f64::from(pair[0]))
}

/// By image: the standard error of its score, which is the largest of its latents': that of the latent with it. Latent `l` is one
/// of image `l % images`.
///
/// It is approximate where two latents of an image are about equal.
///
/// # Panics
/// If the latents are not a multiple of the images, or have not one score and error each.
pub fn image_errors(scores: &[f64], errors: &[f64], images: usize) -> Vec<f64> {
    assert_views(scores, errors, images);
    let views = |image: usize| (image..scores.len()).step_by(images);
    let best = |image: usize| views(image).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    (0..images).map(|image| best(image).map_or(0.0, |latent| errors[latent])).collect()
}

/// That each image has as many latents as another.
pub(crate) fn assert_views(scores: &[f64], errors: &[f64], images: usize) {
    assert_eq!(scores.len(), errors.len(), "a latent has a score and an error");
    assert!(images > 0 && scores.len().is_multiple_of(images), "all images have the same number of latents");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_between_draws_are_those_of_the_formula() {
        // Sample variances 2 and 8, then 0 and 0, whatever the timestep.
        let rows = [1.0, 3.0, 10.0, 14.0, 5.0, 5.0, -7.0, -7.0];
        let found = Differences { rows: &rows, timesteps: 2, draws: 2 }.squared_errors();
        assert_eq!(found, Some((vec![10.0 / 8.0, 0.0], 2.0)));
    }

    #[test]
    fn errors_of_one_draw_are_those_of_successive_differences() {
        // Less the mean at each timestep: 1, -1, 2 and -1, 1, -2. Two latents: the mean takes half of the variance.
        let rows = [11.0, 29.0, 32.0, 9.0, 31.0, 28.0];
        let found = Differences { rows: &rows, timesteps: 3, draws: 1 }.squared_errors();
        assert_eq!(found, Some((vec![2.0 * 13.0 / 12.0; 2], 8.0 / 5.0)));
        let alone = Differences { rows: &rows[..3], timesteps: 3, draws: 1 }.squared_errors();
        assert_eq!(alone, Some((vec![(18.0 * 18.0 + 9.0) / 12.0], 8.0 / 5.0)));
    }

    #[test]
    fn two_timesteps_have_one_degree_of_freedom() {
        let found = Differences { rows: &[1.0, 2.0], timesteps: 2, draws: 1 }.squared_errors();
        assert_eq!(found, Some((vec![0.25], 1.0)));
    }

    #[test]
    fn one_difference_says_nothing_of_noise() {
        assert_eq!(ErrorBars::of(Differences { rows: &[1.0, 2.0], timesteps: 1, draws: 1 }, 0.95), None);
        assert_eq!(ErrorBars::of(Differences { rows: &[], timesteps: 0, draws: 3 }, 0.95), None);
        let none = ErrorBars::of(Differences { rows: &[], timesteps: 4, draws: 1 }, 0.95).unwrap();
        assert!(none.errors.is_empty());
    }

    #[test]
    fn without_noise_there_is_no_error() {
        let rows: Vec<f32> = (0..40).map(|i| (i % 4) as f32).collect();
        let bars = ErrorBars::of(Differences { rows: &rows, timesteps: 4, draws: 1 }, 0.95).unwrap();
        assert_eq!(bars.errors, [0.0; 10]);
        assert_eq!(bars.interval(1.5, 0.0), Interval { mean: 1.5, low: 1.5, high: 1.5 });
    }

    #[test]
    fn the_error_of_an_image_is_that_of_its_best_latent() {
        let (scores, errors) = ([1.0, 5.0, 2.0, 4.0], [3.0, 0.3, 4.0, 0.4]);
        assert_eq!(image_errors(&scores, &errors, 2), [4.0, 0.3]);
        assert_eq!(image_errors(&scores, &errors, 4), errors);
    }

    #[test]
    fn noise_that_mirror_images_share_is_seen() {
        let correlation = |rows: &[f32], timesteps, draws, images| {
            Differences { rows, timesteps, draws }.mirror_correlation(images)
        };
        // Draws around 5 and 9: equal, opposite, and of another image alone.
        assert_eq!(correlation(&[4.0, 6.0, 8.0, 10.0], 1, 2, 1), 1.0);
        assert_eq!(correlation(&[4.0, 6.0, 10.0, 8.0], 1, 2, 1), -1.0);
        assert_eq!(correlation(&[4.0, 6.0, 8.0, 10.0], 1, 2, 2), 0.0);
        assert_eq!(correlation(&[4.0, 6.0, 9.0, 9.0], 1, 2, 1), 0.0);
        // Steps of 2 and -2 against 1 and -3, of which the mean over both is taken.
        let found = correlation(&[0.0, 2.0, 0.0, 0.0, 1.0, -2.0], 3, 1, 1);
        assert!((found + 1.0).abs() < 1e-12, "{found}");
    }
}
