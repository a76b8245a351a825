//! How sure the rank of an image is.

use crate::error_bars::assert_views;
use crate::random::Random;

/// Scores with errors, of which a ranking is made: the largest comes first. An image's score is the largest of its latents'.
#[derive(Debug, Clone, Copy)]
pub struct NoisyScores<'a> {
    /// By latent: its score. Latent `l` is one of image `l % images`.
    pub scores: &'a [f64],
    /// By latent: the standard error of its score.
    pub errors: &'a [f64],
    /// The degrees of freedom of the errors; may be infinite.
    pub df: f64,
    /// How many images there are.
    pub images: usize,
    /// The correlation of the errors of an image's latents, see [`Differences::mirror_correlation`].
    ///
    /// [`Differences::mirror_correlation`]: crate::error_bars::Differences::mirror_correlation
    pub correlation: f64,
}

/// The ranks of some images, in the order in which they were asked for. Ranks count from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranks {
    /// The probability that the image is among the first k.
    pub in_top: Vec<f64>,
    /// The lower bound of its rank, which 2.5 % fall below at most.
    pub low: Vec<usize>,
    /// The upper bound of its rank, which 2.5 % exceed at most.
    pub high: Vec<usize>,
}

impl NoisyScores<'_> {
    /// The ranks of the images `of`, and how often each is among the first `top`, by parametric resampling.
    ///
    /// A resample adds to each latent's score its error times a number of Student's distribution, independent of those of other
    /// images, and ranks all images by what follows. Of equal scores the smaller index ranks first.
    ///
    /// The scores already contain noise. The best of many are there partly by luck, and resampling does not take it
    /// back: where errors are as large as the spread of the scores, it is too sure of the first places.
    ///
    /// Memory: a few numbers for each image, and one for each of `of` and resample.
    ///
    /// # Panics
    /// If the latents are not a multiple of the images, or have not one score and error each, or `resamples` is 0.
    pub fn ranks(&self, of: &[usize], top: usize, resamples: usize, seed: u64) -> Ranks {
        assert_views(self.scores, self.errors, self.images);
        assert!(resamples > 0, "ranks need a resample");
        let mut random = Random::new("ranks", seed);
        let mut drawn = vec![0.0; self.images];
        let mut rank = vec![0; self.images];
        let mut ranks = vec![0; of.len() * resamples];
        for resample in 0..resamples {
            self.draw(&mut random, &mut drawn);
            for (place, rank) in ranks_of(&drawn, of, &mut rank).enumerate() {
                ranks[place * resamples + resample] = rank;
            }
        }
        summary(&mut ranks, resamples, top)
    }

    /// New scores of all images.
    fn draw(&self, random: &mut Random, drawn: &mut [f64]) {
        let own_part = (1.0 - self.correlation.powi(2)).sqrt();
        for (image, drawn) in drawn.iter_mut().enumerate() {
            let first = random.student(self.df);
            let mut best = self.scores[image] + self.errors[image] * first;
            for latent in (image..self.scores.len()).step_by(self.images).skip(1) {
                let noise = self.correlation * first + own_part * random.student(self.df);
                best = best.max(self.scores[latent] + self.errors[latent] * noise);
            }
            *drawn = best;
        }
    }
}

/// The ranks of the images `of` among all. `rank` is room for one of each image.
fn ranks_of<'a>(scores: &[f64], of: &'a [usize], rank: &'a mut [u32]) -> impl Iterator<Item = u32> + 'a {
    let order = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    // Those behind all that are asked about need no order.
    let last = of.iter().copied().max_by(order);
    let is_needed = |image: &usize| last.is_some_and(|last| order(image, &last).is_le());
    let mut needed: Vec<usize> = (0..scores.len()).filter(is_needed).collect();
    needed.sort_unstable_by(order);
    needed.into_iter().zip(1..).for_each(|(image, place)| rank[image] = place);
    of.iter().map(|&image| rank[image])
}

/// The summary of a row of resampled ranks for each image. Sorts them.
fn summary(ranks: &mut [u32], resamples: usize, top: usize) -> Ranks {
    // Outwards to the next rank that was drawn.
    let last = (resamples - 1) as f64;
    let (low, high) = ((0.025 * last).floor() as usize, (0.975 * last).ceil() as usize);
    let count = ranks.len() / resamples;
    let mut found = Ranks {
        in_top: Vec::with_capacity(count),
        low: Vec::with_capacity(count),
        high: Vec::with_capacity(count),
    };
    for row in ranks.chunks_exact_mut(resamples) {
        row.sort_unstable();
        let inside = row.partition_point(|&rank| rank as usize <= top);
        found.in_top.push(inside as f64 / resamples as f64);
        found.low.push(row[low] as usize);
        found.high.push(row[high] as usize);
    }
    found
}

/// Whether the rank intervals of the image at each place and of the next one overlap: one fewer than there are
/// images.
///
/// The bounds are those of [`Ranks`], for images in the order of their ranks.
pub fn ties(low: &[usize], high: &[usize]) -> Vec<bool> {
    let bounds: Vec<(usize, usize)> = low.iter().copied().zip(high.iter().copied()).collect();
    bounds.windows(2).map(|pair| pair[0].0 <= pair[1].1 && pair[1].0 <= pair[0].1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_errors_ranks_are_certain() {
        let scores = [1.0, 9.0, 4.0, 4.0, 3.0, 0.0, 5.0, 2.0];
        let noisy = NoisyScores { scores: &scores, errors: &[0.0; 8], df: 5.0, images: 4, correlation: 0.0 };
        // The images' scores are 3, 9, 5, 4.
        let found = noisy.ranks(&[0, 1, 2, 3, 1], 2, 10, 1);
        assert_eq!(found.low, [4, 1, 2, 3, 1]);
        assert_eq!(found.high, found.low);
        assert_eq!(found.in_top, [0.0, 1.0, 1.0, 0.0, 1.0]);
        // 2, 5, 5, 3: of equal ones the smaller index is first.
        let equal = NoisyScores { scores: &[2.0, 5.0, 5.0, 3.0], errors: &[0.0; 4], ..noisy };
        assert_eq!(equal.ranks(&[3, 2, 1, 0], 1, 10, 1).low, [3, 2, 1, 4]);
        assert!(noisy.ranks(&[], 1, 10, 1).low.is_empty());
    }

    #[test]
    fn ranks_of_some_are_those_among_all() {
        let mut random = Random::new("some of all", 1);
        let scores: Vec<f64> = (0..300).map(|_| random.normal()).collect();
        let errors: Vec<f64> = (0..300).map(|_| random.uniform()).collect();
        let noisy = NoisyScores { scores: &scores, errors: &errors, df: 7.5, images: 150, correlation: 0.7 };
        let all = noisy.ranks(&(0..150).collect::<Vec<_>>(), 10, 50, 3);
        let some = noisy.ranks(&[140, 3, 77], 10, 50, 3);
        for (place, image) in [140, 3, 77].into_iter().enumerate() {
            assert_eq!(some.in_top[place], all.in_top[image]);
            assert_eq!((some.low[place], some.high[place]), (all.low[image], all.high[image]));
        }
        // In each resample ten images are the first ten.
        assert!((all.in_top.iter().sum::<f64>() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn equal_images_are_equally_likely_first() {
        let noisy =
            NoisyScores { scores: &[2.0, 2.0], errors: &[0.5; 2], df: 4.0, images: 2, correlation: 0.0 };
        let found = noisy.ranks(&[0, 1], 1, 4000, 1);
        assert!((found.in_top[0] - 0.5).abs() < 0.04, "{found:?}");
        assert_eq!((found.low, found.high), (vec![1, 1], vec![2, 2]));
    }

    /// Of two equal latents with the same noise the larger is no larger than one; with independent noise it often is.
    #[test]
    fn shared_noise_makes_no_image_better() {
        let first = |correlation| {
            let (scores, errors) = ([0.0, 0.3, 0.0, -9.0], [1.0, 0.0, 1.0, 0.0]);
            let noisy = NoisyScores { scores: &scores, errors: &errors, df: 1e9, images: 2, correlation };
            noisy.ranks(&[0], 1, 20_000, 1).in_top[0]
        };
        // P(Z > 0.3) = 0.382, and 1 - (1 - 0.382)^2 = 0.618.
        assert!((first(1.0) - 0.382).abs() < 0.02, "{}", first(1.0));
        assert!((first(0.0) - 0.618).abs() < 0.02, "{}", first(0.0));
    }

    #[test]
    fn neighbours_tie_if_their_ranks_overlap() {
        assert_eq!(ties(&[1, 2, 5], &[2, 4, 6]), [true, false]);
        assert!(ties(&[], &[]).is_empty());
    }
}
