//! Which image each row of a step is of, and what is drawn for it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use tch::{Device, Tensor};

use super::{LeaveOut, TrainParams};
use crate::method::error::MathError;
use crate::method::noise::{Generator, derived_seed};

/// One use of an image in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Its position in the data set.
    pub image: usize,
    /// A number of its id.
    key: i64,
    /// How often the data set was gone through before.
    epoch: i64,
}

/// What is drawn for a visit.
pub struct Draws {
    /// Whether the mirror image is seen.
    pub flipped: bool,
    /// Which caption.
    pub caption: usize,
    /// Whether the empty text takes its place.
    pub without_text: bool,
    /// The timestep.
    pub timestep: i64,
    /// The place in the posterior [C, H, W], standard normal.
    pub posterior: Tensor,
    /// The noise [C, H, W].
    pub noise: Tensor,
}

impl Visit {
    /// Its draws, which depend on (seed, id, epoch) alone, in an order that no parameter changes.
    pub fn draws(&self, params: &TrainParams, captions: usize, timesteps: i64, shape: &[i64]) -> Draws {
        /// A number below this stands for a probability.
        const FINE: i64 = 1 << 24;
        let seed = derived_seed("train visit", &[params.seed.into(), self.key, self.epoch]);
        let mut draws = Generator::seeded(seed);
        let mut integer = |high: i64| draws.randint(high, 1).int64_value(&[0]);
        let flipped = integer(2) == 1 && params.flips;
        let caption = integer(captions as i64) as usize;
        let without_text = (integer(FINE) as f64) < params.caption_dropout * FINE as f64;
        let timestep = integer(timesteps);
        let posterior = draws.normal(shape, Device::Cpu);
        let noise = draws.noise(shape, params.objective.noise_offset, Device::Cpu);
        Draws { flipped, caption, without_text, timestep, posterior, noise }
    }
}

/// The endless stream of visits: permutations of the images, one after the other.
pub struct Stream {
    seed: i64,
    batch: usize,
    /// Positions in the data set, and keys, of the images that the permutations are of.
    images: Vec<(usize, i64)>,
    /// Whether a position in `images` is dropped.
    dropped: Vec<bool>,
    /// The last permutations that were asked for, with their epochs.
    orders: RefCell<Vec<(i64, Vec<i64>)>>,
}

impl Stream {
    /// The stream for images with these ids, of which some are left out.
    ///
    /// # Errors
    /// Ids that are left out and not there, and a set that leaves nothing.
    pub fn new(
        params: &TrainParams,
        ids: &[String],
        left_out: &BTreeSet<String>,
    ) -> Result<Stream, MathError> {
        let known: BTreeSet<&String> = ids.iter().collect();
        let unknown: Vec<&str> =
            left_out.iter().filter(|id| !known.contains(id)).map(String::as_str).collect();
        if !unknown.is_empty() {
            let (count, first) = (unknown.len(), unknown[0].to_owned());
            return Err(MathError::UnknownIds { count, first, images: ids.len() });
        }
        if left_out.len() == ids.len() {
            return Err(MathError::NothingLeft { images: ids.len() });
        }
        let all = ids.iter().enumerate().map(|(image, id)| (image, id_key(id), left_out.contains(id)));
        let taken = all.filter(|(_, _, out)| params.leave_out == LeaveOut::Drop || !out);
        let (images, dropped) = taken.map(|(image, key, out)| ((image, key), out)).unzip();
        let (seed, batch, orders) = (params.seed.into(), params.batch_size, RefCell::default());
        Ok(Stream { seed, batch, images, dropped, orders })
    }

    /// The visits of a step, without those that are dropped.
    pub fn visits(&self, step: usize) -> Vec<Visit> {
        let places = step * self.batch..(step + 1) * self.batch;
        places.filter_map(|place| self.visit(place)).collect()
    }

    fn visit(&self, place: usize) -> Option<Visit> {
        let (epoch, within) = ((place / self.images.len()) as i64, place % self.images.len());
        let at = self.order(epoch, within);
        let (image, key) = self.images[at];
        (!self.dropped[at]).then_some(Visit { image, key, epoch })
    }

    /// A place of an epoch's permutation.
    fn order(&self, epoch: i64, within: usize) -> usize {
        // A step may touch several epochs of a small set.
        const KEPT: usize = 4;
        let mut orders = self.orders.borrow_mut();
        let found = orders.iter().position(|(known, _)| *known == epoch);
        let found = found.unwrap_or_else(|| {
            let mut draws = Generator::seeded(derived_seed("train order", &[self.seed, epoch]));
            let order = draws.permutation(self.images.len() as i64);
            orders.truncate(KEPT - 1);
            orders.insert(0, (epoch, Vec::try_from(order).expect("a vector of int64")));
            0
        });
        orders[found].1[within] as usize
    }
}

/// A number for an id, in seeds.
fn id_key(id: &str) -> i64 {
    derived_seed(&format!("image id {id}"), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|id| (7 * id).to_string()).collect()
    }

    fn left_out(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|&id| id.to_owned()).collect()
    }

    fn params(batch_size: usize) -> TrainParams {
        TrainParams { batch_size, ..TrainParams::default() }
    }

    #[test]
    fn every_epoch_visits_all_images_once_across_steps() {
        let stream = Stream::new(&params(4), &ids(10), &BTreeSet::new()).unwrap();
        let visits: Vec<Visit> = (0..5).flat_map(|step| stream.visits(step)).collect();
        for epoch in visits.chunks(10) {
            let images: BTreeSet<usize> = epoch.iter().map(|visit| visit.image).collect();
            assert_eq!(images.len(), 10);
        }
        assert_ne!(
            visits[..10].iter().map(|v| v.image).collect::<Vec<_>>(),
            visits[10..].iter().map(|v| v.image).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_is_left_out_is_dropped_and_nothing_else_changes() {
        let all = Stream::new(&params(4), &ids(10), &BTreeSet::new()).unwrap();
        let some = Stream::new(&params(4), &ids(10), &left_out(&["14", "63"])).unwrap();
        for step in 0..20 {
            let mut kept = all.visits(step);
            kept.retain(|visit| ![2, 9].contains(&visit.image));
            assert_eq!(some.visits(step), kept);
        }
        let compact = TrainParams { leave_out: LeaveOut::Compact, ..params(4) };
        let compact = Stream::new(&compact, &ids(10), &left_out(&["14", "63"])).unwrap();
        assert!((0..20).all(|step| compact.visits(step).len() == 4));
    }

    #[test]
    fn draws_are_those_of_seed_id_and_epoch() {
        let stream = Stream::new(&params(10), &ids(10), &BTreeSet::new()).unwrap();
        let draws = |visit: &Visit, params: &TrainParams| visit.draws(params, 5, 1000, &[2, 3, 3]);
        let visits = stream.visits(0);
        let (first, plain) =
            (draws(&visits[0], &params(10)), TrainParams { flips: false, caption_dropout: 0.0, ..params(3) });
        let again = draws(&visits[0], &plain);
        assert!(first.noise.equal(&again.noise) && first.posterior.equal(&again.posterior));
        assert_eq!((first.caption, first.timestep), (again.caption, again.timestep));
        assert!(!again.flipped && !again.without_text);
        let next =
            draws(stream.visits(1).iter().find(|visit| visit.image == visits[0].image).unwrap(), &plain);
        assert!(!first.noise.equal(&next.noise));
        let always = TrainParams { caption_dropout: 1.0, ..params(10) };
        assert!(visits.iter().all(|visit| draws(visit, &always).without_text));
    }

    #[test]
    fn sets_that_cannot_be_left_out_are_refused() {
        let error = |ids: &[String], out: &[&str]| {
            Stream::new(&params(4), ids, &left_out(out)).err().unwrap().to_string()
        };
        assert_eq!(
            error(&ids(3), &["5", "0", "6"]),
            "2 of the ids that are left out are not in the data set of 3 images, for instance `5`"
        );
        assert_eq!(error(&ids(2), &["0", "7"]), "all 2 images are left out: nothing is left to train on");
    }
}
