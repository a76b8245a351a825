//! The most influential images without all timesteps of all images: successive halving with paired intervals.
//!
//! The score of an image is the largest mean, over T timesteps, of its latents' differences (the image's and its
//! mirror image's). First all images are scored at the same few timesteps, and those that are too far behind are
//! discarded. The rest is scored at more timesteps, and the survivors at all (Karnin, Koren, Somekh 2013, *Almost optimal
//! exploration in multi-armed bandits*; Maron and Moore 1994, *Hoeffding races*). The loss of recall is measured:
//! a uniform sample of the discarded images is scored exactly. Where another method has already chosen the images to score,
//! [`rescore`] takes the place of the rounds.

mod certificate;
mod interval;

use std::ops::Range;

use super::error::MathError;

pub use attrflow_statistics::special_functions::trigamma;
pub use attrflow_statistics::variance::Prior;
pub use certificate::{sample_for, upper_bound};
pub use interval::{Intervals, Threshold, Visited};

/// The scores that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Population {
    /// N.
    pub images: usize,
    /// Latents an image: latent `l` is one of image `l % images`.
    pub views: usize,
    /// T.
    pub timesteps: usize,
}

/// The request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// K, how many images are wanted.
    pub top: usize,
    /// The probability with which all rounds keep an image of the top K, and with which the bound on what was missed
    /// holds.
    pub confidence: f64,
    /// The largest share of the images that a round may keep, regardless of the intervals; 1 for no limit.
    pub keep: f64,
    /// How many of the discarded are scored exactly.
    pub check: usize,
}

/// The source of differences and of random numbers.
pub trait Source {
    /// The differences of some latents at some timesteps, latent by latent: [latents * timesteps].
    ///
    /// # Errors
    /// They cannot be computed.
    fn differences(&mut self, latents: &[usize], timesteps: &[usize]) -> Result<Vec<f64>, MathError>;

    /// The numbers 0 to `count` - 1 in random order, all orders being equally likely.
    fn shuffled(&mut self, count: usize) -> Vec<usize>;
}

/// One round over the images that are left.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Timesteps at which each of them is scored.
    pub timesteps: usize,
    /// Images in the round.
    pub images: usize,
    /// Of them, discarded because their interval is below the threshold.
    pub behind: usize,
    /// Of them, discarded because of `max_keep`.
    pub surplus: usize,
    /// The K-th best score, of differences less the mean over images at each timestep.
    pub threshold: Threshold,
    /// The median distance to the threshold at which an image is discarded.
    pub margin: f64,
}

/// The exact scores of a random sample of the discarded images, and the bound that follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Discarded images.
    pub discarded: usize,
    /// Of them, scored exactly.
    pub sample: usize,
    /// Of those in the sample, the ones that rank before the K-th survivor. They are in the answer.
    pub found: usize,
    /// Upper bound of the discarded images that rank there, including those found.
    pub most: usize,
    /// Lower bound of the share of the true top K in the answer.
    pub recall: f64,
}

/// The result.
#[derive(Debug, Clone, PartialEq)]
pub struct Halving {
    /// The rounds that discarded or could have.
    pub rounds: Vec<Round>,
    /// By latent: the mean difference over all timesteps, or an estimate of it.
    pub means: Vec<f64>,
    /// By image: whether it was scored at all timesteps.
    pub exact: Vec<bool>,
    /// Pairs of a latent and a timestep that were computed.
    pub computed: usize,
    /// The check of the discarded images.
    pub check: Check,
}

impl Population {
    /// Pairs of a latent and a timestep that a full pass computes.
    pub fn pairs(&self) -> usize {
        self.images * self.views * self.timesteps
    }

    fn latents(&self, images: &[usize]) -> Vec<usize> {
        images.iter().flat_map(|image| (0..self.views).map(move |view| view * self.images + image)).collect()
    }
}

/// The numbers 0 to T - 1 in an order in which every prefix is spread evenly: golden-section steps from the middle, since the
/// timesteps at both ends are the least informative.
pub fn visit_order(timesteps: usize) -> Vec<usize> {
    const SECTION: f64 = 0.618_033_988_749_894_9;
    let (mut order, mut visited) = (Vec::with_capacity(timesteps), vec![false; timesteps]);
    let mut step = 0.0;
    // Its multiples reach every part of the range, and soon all T numbers (the three-gap theorem).
    while order.len() < timesteps {
        let place = (timesteps as f64 * (0.5 + step * SECTION).fract()) as usize;
        if !std::mem::replace(&mut visited[place], true) {
            order.push(place);
        }
        step += 1.0;
    }
    order
}

/// The numbers of timesteps after which images are discarded: an eighth, a quarter and half of T, but at least two, since
/// one gives no variance.
pub fn rounds(timesteps: usize) -> Vec<usize> {
    let mut rounds: Vec<usize> = [8, 4, 2].map(|part| timesteps.div_ceil(part).max(2)).to_vec();
    rounds.dedup();
    rounds.retain(|&round| round < timesteps);
    rounds
}

/// Finds the top K.
///
/// # Errors
/// A difference that is not finite, or an error of the source.
pub fn halve(population: Population, spec: &Spec, source: &mut dyn Source) -> Result<Halving, MathError> {
    expect_some(population, spec)?;
    let mut race = Race::new(population, source);
    let schedule = rounds(population.timesteps);
    // The rounds share the allowed error probability.
    let error = (1.0 - spec.confidence) / schedule.len().max(1) as f64;
    let (mut live, mut rounds): (Vec<usize>, Vec<Round>) = ((0..population.images).collect(), Vec::new());
    for &timesteps in &schedule {
        if live.len() <= spec.top {
            break;
        }
        race.see(&live, timesteps)?;
        let (round, left) = race.discard(live, spec, error);
        rounds.push(round);
        live = left;
    }
    race.see(&live, population.timesteps)?;
    let check = race.check(&live, spec)?;
    let exact: Vec<bool> = (0..population.images).map(|image| race.is_exact(image)).collect();
    let means = race.means(&live);
    Ok(Halving { rounds, means, exact, computed: race.computed, check })
}

/// Finds the top K among images chosen beforehand, which are scored at all timesteps. All others are discarded at once: `estimate`
/// gives the mean difference of their latents. What that loses is measured as by [`halve`].
///
/// # Errors
/// As [`halve`]; or fewer than K images are chosen of more.
pub fn rescore(
    population: Population,
    spec: &Spec,
    chosen: &[usize],
    estimate: &dyn Fn(usize) -> f64,
    source: &mut dyn Source,
) -> Result<Halving, MathError> {
    expect_some(population, spec)?;
    let least = spec.top.min(population.images);
    if chosen.len() < least {
        return Err(MathError::parameter("screened", chosen.len(), format!("must be at least {least}")));
    }
    let mut race = Race::new(population, source);
    race.see(chosen, population.timesteps)?;
    let check = race.check(chosen, spec)?;
    let exact: Vec<bool> = (0..population.images).map(|image| race.is_exact(image)).collect();
    let means = race.seen.iter().enumerate().map(|(latent, seen)| match exact[latent % exact.len()] {
        true => mean(seen),
        false => estimate(latent),
    });
    let means = means.collect();
    Ok(Halving { rounds: Vec::new(), means, exact, computed: race.computed, check })
}

fn expect_some(population: Population, spec: &Spec) -> Result<(), MathError> {
    if spec.top > 0 && population.timesteps > 0 {
        return Ok(());
    }
    let key = if spec.top == 0 { "top" } else { "time_samples" };
    Err(MathError::parameter(key, 0, "must be at least 1"))
}

/// The differences computed so far.
struct Race<'a> {
    population: Population,
    source: &'a mut dyn Source,
    order: Vec<usize>,
    /// By latent, in the order of the timesteps.
    seen: Vec<Vec<f64>>,
    computed: usize,
}

impl<'a> Race<'a> {
    fn new(population: Population, source: &'a mut dyn Source) -> Self {
        let seen = vec![Vec::new(); population.images * population.views];
        Self { population, source, order: visit_order(population.timesteps), seen, computed: 0 }
    }

    /// Computes these images, which all have equally many timesteps, up to the first `count` timesteps.
    fn see(&mut self, images: &[usize], count: usize) -> Result<(), MathError> {
        let Some(before) = images.first().map(|&image| self.seen[image].len()) else { return Ok(()) };
        let timesteps: Range<usize> = before..count;
        if timesteps.is_empty() {
            return Ok(());
        }
        let latents = self.population.latents(images);
        let new = &self.order[timesteps];
        let found = self.source.differences(&latents, new)?;
        for (&latent, differences) in latents.iter().zip(found.chunks_exact(new.len())) {
            if let Some(at) = differences.iter().position(|value| !value.is_finite()) {
                return Err(MathError::DifferenceNotFinite {
                    image: latent % self.population.images,
                    mirrored: latent >= self.population.images,
                    place: new[at],
                    value: differences[at],
                });
            }
            self.seen[latent].extend(differences);
        }
        self.computed += found.len();
        Ok(())
    }

    /// Splits the images by their intervals at the timesteps computed so far.
    fn discard(&self, live: Vec<usize>, spec: &Spec, error: f64) -> (Round, Vec<usize>) {
        let latents = self.population.latents(&live);
        let rows: Vec<&[f64]> = latents.iter().map(|&latent| self.seen[latent].as_slice()).collect();
        let timesteps = rows.first().map_or(0, |row| row.len());
        let found = Visited { rows: &rows, timesteps: self.population.timesteps }.intervals(error);
        // The latents of an image are together: its score is that of the best one.
        let views = self.population.views;
        let best: Vec<usize> = (0..latents.len())
            .step_by(views)
            .map(|first| largest_of(&found.centers, first..first + views))
            .collect();
        let scores: Vec<f64> = best.iter().map(|&latent| found.centers[latent]).collect();
        let errors: Vec<f64> = best.iter().map(|&latent| found.errors[latent]).collect();
        let threshold = Threshold::of(&scores, &errors, spec.top);
        let margins: Vec<f64> =
            found.errors.iter().map(|error| found.quantile * error.hypot(threshold.error)).collect();
        let upper: Vec<f64> =
            found.centers.iter().zip(&margins).map(|(center, margin)| center + margin).collect();
        let upper: Vec<f64> = upper.chunks_exact(views).map(largest).collect();
        let ahead = upper.iter().filter(|upper| **upper >= threshold.score).count();
        // The limit never discards the requested K; equal scores stay together.
        let cap = ((live.len() as f64 * spec.keep).ceil() as usize).max(spec.top);
        let floor = if cap < live.len() { descending(&scores)[cap - 1] } else { f64::NEG_INFINITY };
        let images = live.len();
        let places = live.into_iter().enumerate();
        let left: Vec<usize> = places
            .filter(|(place, _)| upper[*place] >= threshold.score && scores[*place] >= floor)
            .map(|(_, image)| image)
            .collect();
        let margin = descending(&margins)[margins.len() / 2];
        let (behind, surplus) = (images - ahead, ahead - left.len());
        (Round { timesteps, images, behind, surplus, threshold, margin }, left)
    }

    fn is_exact(&self, image: usize) -> bool {
        self.seen[image].len() == self.population.timesteps
    }

    /// An image's score, if it was computed at all timesteps.
    fn score(&self, image: usize) -> f64 {
        let means = self.population.latents(&[image]).into_iter().map(|latent| mean(&self.seen[latent]));
        largest(&means.collect::<Vec<_>>())
    }

    /// Scores a random sample of the discarded, and counts those that rank before the K-th survivor.
    fn check(&mut self, survivors: &[usize], spec: &Spec) -> Result<Check, MathError> {
        let discarded: Vec<usize> =
            (0..self.population.images).filter(|&image| !self.is_exact(image)).collect();
        let count = spec.check.min(discarded.len());
        let mut sample: Vec<usize> = match count {
            0 => Vec::new(),
            _ => {
                self.source.shuffled(discarded.len())[..count].iter().map(|&place| discarded[place]).collect()
            }
        };
        sample.sort_by_key(|&image| (self.seen[image].len(), image));
        // Those of one round were seen equally often.
        let groups: Vec<Vec<usize>> = sample
            .chunk_by(|a, b| self.seen[*a].len() == self.seen[*b].len())
            .map(<[usize]>::to_vec)
            .collect();
        for group in groups {
            self.see(&group, self.population.timesteps)?;
        }
        // Of equal scores the smaller index ranks first, as in the ranking that is written.
        let place = |image: usize| (self.score(image), std::cmp::Reverse(image));
        let mut places: Vec<_> = survivors.iter().map(|&image| place(image)).collect();
        places.sort_by(|a, b| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
        let last = places.get(spec.top - 1);
        let found = sample.iter().filter(|&&image| last.is_some_and(|last| place(image) > *last)).count();
        let most = upper_bound(discarded.len(), count, found, spec.confidence);
        let top = spec.top.min(self.population.images) as f64;
        // Those that were found are not missed any more.
        let recall = (1.0 - (most - found) as f64 / top).max(0.0);
        Ok(Check { discarded: discarded.len(), sample: count, found, most, recall })
    }

    /// The means of all latents. For those not seen at all timesteps, the mean of what was seen and what the images
    /// seen at all of them gained on average by the rest.
    fn means(&self, survivors: &[usize]) -> Vec<f64> {
        let mut rescored: Vec<bool> = (0..self.population.images).map(|image| self.is_exact(image)).collect();
        survivors.iter().for_each(|&image| rescored[image] = false);
        let rescored: Vec<usize> = (0..rescored.len()).filter(|&image| rescored[image]).collect();
        // The sample represents the discarded; survivors were lucky at the first timesteps.
        let known = self.population.latents(if rescored.is_empty() { survivors } else { &rescored });
        let mut shifts: Vec<Option<f64>> = vec![None; self.population.timesteps + 1];
        let mut shift = |count: usize| {
            let gain = |&latent: &usize| mean(&self.seen[latent]) - mean(&self.seen[latent][..count]);
            *shifts[count].get_or_insert_with(|| mean(&known.iter().map(gain).collect::<Vec<_>>()))
        };
        let all = self.seen.iter().map(|seen| match seen.len() {
            count if count == self.population.timesteps => mean(seen),
            count => mean(seen) + shift(count),
        });
        all.collect()
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// The index of the largest value of a range.
fn largest_of(values: &[f64], range: Range<usize>) -> usize {
    range.clone().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(range.start)
}

fn descending(values: &[f64]) -> Vec<f64> {
    let mut values = values.to_vec();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}
