//! Intervals and scores on made-up data whose truth is known. All seeds are fixed.

#![allow(clippy::unwrap_used, reason = "helpers of tests are test code too")]

use attrflow_statistics::correlation::spearman;
use attrflow_statistics::error_bars::{Differences, ErrorBars};
use attrflow_statistics::lds::{self, Resamples};
use attrflow_statistics::random::Random;
use attrflow_statistics::ranks::NoisyScores;

const LATENTS: usize = 4000;

/// The difference without noise of a latent at a timestep, given a normal number of the latent and one of both.
type Truth = fn(f64, f64, usize) -> f64;

/// The share of the 95 % intervals that include the mean of the truth over the timesteps. The latents' variances
/// differ: they are those of a prior with 8 degrees of freedom.
fn coverage(timesteps: usize, draws: usize, truth: Truth) -> f64 {
    let mut random = Random::new("coverage", (timesteps * 10 + draws) as u64);
    let (mut rows, mut truths) = (Vec::<f32>::new(), Vec::new());
    for _ in 0..LATENTS {
        let deviation = (8.0 / (0..8).map(|_| random.normal().powi(2)).sum::<f64>()).sqrt();
        let (own, mut sum) = (random.normal(), 0.0);
        for timestep in 0..timesteps {
            let mean = truth(own, random.normal(), timestep);
            sum += mean;
            rows.extend((0..draws).map(|_| (mean + deviation * random.normal()) as f32));
        }
        truths.push(sum / timesteps as f64);
    }
    let bars = ErrorBars::of(Differences { rows: &rows, timesteps, draws }, 0.95).unwrap();
    let covers = |((row, truth), error): ((&[f32], &f64), &f64)| {
        let score = row.iter().copied().map(f64::from).sum::<f64>() / row.len() as f64;
        let interval = bars.interval(score, *error);
        interval.low <= *truth && *truth <= interval.high
    };
    let rows = rows.chunks_exact(timesteps * draws);
    rows.zip(&truths).zip(&bars.errors).filter(|row| covers(*row)).count() as f64 / LATENTS as f64
}

#[test]
fn intervals_of_scores_cover_the_truth() {
    let constant: Truth = |own, _, _| own;
    let shared: Truth = |own, _, timestep| own + 10.0 * (timestep as f64).sin();
    let any: Truth = |own, both, timestep| own + 3.0 * both + timestep as f64;
    let cases = [
        (4, 1, constant),
        (20, 1, constant),
        (4, 1, shared),
        (20, 1, shared),
        (4, 3, any),
        (2, 2, any),
        (1, 2, any),
    ];
    for (timesteps, draws, truth) in cases {
        let found = coverage(timesteps, draws, truth);
        assert!((0.92..=0.98).contains(&found), "{timesteps} timesteps, {draws} draws: {found}");
    }
}

/// Mirror images share a part of the noise: what is found of it, and whether the intervals of the means of both hold.
#[test]
fn shared_noise_of_mirror_images_is_seen_and_covered() {
    const SHARED: f64 = 0.73;
    for (timesteps, draws) in [(20, 1), (4, 3)] {
        let mut random = Random::new("mirrors", (timesteps + draws) as u64);
        let per_latent = timesteps * draws;
        let mut both = [Vec::<f32>::new(), Vec::new()];
        let mut truths = Vec::new();
        for _ in 0..LATENTS {
            let truth = [random.normal(), random.normal()];
            for _ in 0..per_latent {
                let shared = random.normal() * SHARED.sqrt();
                for (rows, truth) in both.iter_mut().zip(truth) {
                    rows.push((truth + shared + (1.0 - SHARED).sqrt() * random.normal()) as f32);
                }
            }
            truths.push((truth[0] + truth[1]) / 2.0);
        }
        let [own, mirrored] = &both;
        let rows = [own.as_slice(), mirrored.as_slice()].concat();
        let found = Differences { rows: &rows, timesteps, draws }.mirror_correlation(LATENTS);
        assert!((found - SHARED).abs() < 0.03, "{timesteps} timesteps, {draws} draws: {found}");
        let means: Vec<f32> = own.iter().zip(mirrored).map(|(a, b)| (a + b) / 2.0).collect();
        let bars = ErrorBars::of(Differences { rows: &means, timesteps, draws }, 0.95).unwrap();
        let inside =
            means.chunks_exact(per_latent).zip(&bars.errors).zip(&truths).filter(|((row, error), truth)| {
                let score = row.iter().copied().map(f64::from).sum::<f64>() / per_latent as f64;
                let interval = bars.interval(score, **error);
                interval.low <= **truth && **truth <= interval.high
            });
        let covered = inside.count() as f64 / LATENTS as f64;
        assert!((0.92..=0.98).contains(&covered), "{timesteps} timesteps, {draws} draws: {covered}");
    }
}

#[test]
fn what_remains_of_a_trend_widens_intervals_of_one_draw() {
    let found = coverage(8, 1, |own, _, timestep| own * timestep as f64);
    assert!(found > 0.95, "{found}");
}

/// 2 E^2 / Var of the mean square successive difference of normal values.
#[test]
fn successive_differences_have_the_stated_degrees_of_freedom() {
    for timesteps in [2, 4, 20] {
        let (mut random, count) = (Random::new("successive", timesteps), 60_000);
        let mut square = || {
            let values: Vec<f64> = (0..timesteps).map(|_| random.normal()).collect();
            values.windows(2).map(|pair| (pair[1] - pair[0]).powi(2)).sum::<f64>()
        };
        let squares: Vec<f64> = (0..count).map(|_| square()).collect();
        let mean = squares.iter().sum::<f64>() / f64::from(count);
        let variance = squares.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / f64::from(count);
        let t = timesteps as f64;
        let (found, expected) = (2.0 * mean * mean / variance, 2.0 * (t - 1.0).powi(2) / (3.0 * t - 4.0));
        assert!((found / expected - 1.0).abs() < 0.05, "{found} for {expected}");
    }
}

/// Images with normal true scores, measured with errors that differ, and how their ranks come out.
#[test]
fn probabilities_and_bounds_of_ranks_are_about_right() {
    let (images, top) = (1000, 100);
    let (mut likely, mut inside, mut covered, mut expected, mut count) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for seed in 0..6 {
        let mut random = Random::new("calibration", seed);
        let truth: Vec<f64> = (0..images).map(|_| random.normal()).collect();
        let errors: Vec<f64> = (0..images).map(|_| 0.1 + 0.2 * random.uniform()).collect();
        let scores: Vec<f64> = truth.iter().zip(&errors).map(|(t, e)| t + e * random.student(10.0)).collect();
        let noisy = NoisyScores { scores: &scores, errors: &errors, df: 10.0, images, correlation: 0.0 };
        let of: Vec<usize> = (0..images).collect();
        let found = noisy.ranks(&of, top, 200, seed);
        for image in of {
            let rank = 1 + truth.iter().filter(|other| **other > truth[image]).count();
            if (0.2..0.8).contains(&found.in_top[image]) {
                expected += found.in_top[image];
                likely += 1.0;
                inside += f64::from(u8::from(rank <= top));
            }
            covered += f64::from(u8::from((found.low[image]..=found.high[image]).contains(&rank)));
            count += 1.0;
        }
    }
    assert!(likely > 100.0 && ((inside - expected) / likely).abs() < 0.1, "{inside} of {likely}, {expected}");
    assert!((0.9..0.99).contains(&(covered / count)), "{}", covered / count);
}

/// Losses of models on subsets of 200 images, by subset and query, for `seeds` seeds each.
struct World {
    scores: Vec<Vec<f64>>,
    kept: Vec<Vec<bool>>,
    seeds: Vec<Vec<Vec<f64>>>,
}

impl World {
    const IMAGES: usize = 200;

    fn new(subsets: usize, queries: usize, seeds: usize) -> Self {
        let mut random = Random::new("world", 1);
        let scores = Self::random_scores(&mut random, queries);
        let keep = |random: &mut Random| (0..Self::IMAGES).map(|_| random.below(2) == 0).collect();
        let kept: Vec<Vec<bool>> = (0..subsets).map(|_| keep(&mut random)).collect();
        let mut world = Self { scores, kept, seeds: Vec::new() };
        // The predictions' deviation is about 7.
        for _ in 0..seeds {
            let mut losses = world.predictions(&world.scores);
            losses.iter_mut().flatten().for_each(|loss| *loss += 7.0 * random.normal());
            world.seeds.push(losses);
        }
        world
    }

    fn random_scores(random: &mut Random, queries: usize) -> Vec<Vec<f64>> {
        (0..queries).map(|_| (0..Self::IMAGES).map(|_| random.normal()).collect()).collect()
    }

    fn predictions(&self, scores: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let row = |kept: &Vec<bool>| scores.iter().map(|scores| lds::prediction(scores, kept)).collect();
        self.kept.iter().map(row).collect()
    }

    /// The mean over the seeds.
    fn losses(&self) -> Vec<Vec<f64>> {
        let at = |m: usize, q: usize| {
            self.seeds.iter().map(|seed| seed[m][q]).sum::<f64>() / self.seeds.len() as f64
        };
        (0..self.kept.len()).map(|m| (0..self.scores.len()).map(|q| at(m, q)).collect()).collect()
    }
}

#[test]
fn a_perfect_method_reaches_the_ceiling_and_a_random_one_nothing() {
    let world = World::new(64, 24, 2);
    let losses = world.losses();
    let draws = Resamples::new(1, 300, 64, 24);
    let perfect = world.predictions(&world.scores);
    let found = lds::interval(&losses, &perfect, &draws, 0.95).unwrap();
    let rho = lds::reliability(&world.seeds[0], &world.seeds[1]).unwrap();
    let ceiling = lds::ceiling(lds::spearman_brown(rho, 2.0));
    assert!(found.low <= ceiling && ceiling <= found.high, "{found:?}, ceiling {ceiling}");
    assert!(found.low < found.mean && found.mean < found.high && found.mean > 0.7, "{found:?}");

    let random = world.predictions(&World::random_scores(&mut Random::new("random method", 1), 24));
    let chance = lds::interval(&losses, &random, &draws, 0.95).unwrap();
    assert!(chance.low < 0.0 && 0.0 < chance.high, "{chance:?}");
    let difference = lds::difference_interval(&losses, &perfect, &random, &draws, 0.95).unwrap();
    assert!(difference.low > 0.5, "{difference:?}");
    assert!((difference.mean - (found.mean - chance.mean)).abs() < 1e-12);
}

#[test]
fn negated_scores_negate_the_score() {
    let world = World::new(20, 6, 1);
    let negated: Vec<Vec<f64>> =
        world.scores.iter().map(|row| row.iter().map(|score| -score).collect()).collect();
    let losses = world.losses();
    let one = lds::score(&losses, &world.predictions(&world.scores)).unwrap();
    let other = lds::score(&losses, &world.predictions(&negated)).unwrap();
    assert!(one > 0.3 && (one + other).abs() < 1e-12, "{one}, {other}");
}

/// Losses that are sums of the kept images' effects: the regression finds the sum over the top images.
#[test]
fn the_effect_of_a_removal_is_found_from_subsets() {
    let world = World::new(400, 1, 1);
    let mut order: Vec<usize> = (0..World::IMAGES).collect();
    order.sort_by(|&a, &b| world.scores[0][b].total_cmp(&world.scores[0][a]));
    let top = &order[..20];
    let kept: Vec<f64> =
        world.kept.iter().map(|kept| top.iter().filter(|&&image| kept[image]).count() as f64).collect();
    let losses: Vec<f64> = world.losses().iter().map(|row| row[0]).collect();
    let expected: f64 = top.iter().map(|&image| world.scores[0][image]).sum();
    let found = lds::removal_effect(&losses, &kept, 20.0).unwrap();
    assert!((found / expected - 1.0).abs() < 0.3, "{found} for {expected}");
    assert!(spearman(&losses, &kept).unwrap() < -0.3);
}

/// The size of a large data set: takes seconds.
#[test]
#[ignore = "a measurement, on demand"]
fn ranks_of_many_images_take_seconds() {
    let images = 120_000;
    let mut random = Random::new("many", 1);
    let scores: Vec<f64> = (0..2 * images).map(|_| random.normal()).collect();
    let noisy =
        NoisyScores { scores: &scores, errors: &vec![0.2; 2 * images], df: 6.5, images, correlation: 0.0 };
    for count in [100, images] {
        let of: Vec<usize> = (0..count).collect();
        let start = std::time::Instant::now();
        noisy.ranks(&of, 100, 200, 1);
        println!("{count} of {images} images: {:.1?}", start.elapsed());
    }
}
