//! The loss pass: every training image's loss, averaged over draws of noise, timesteps and captions.
//!
//! A row is (image, caption, timestep, draw), the draw fastest. Pretrained and unlearned model must see the same
//! noise, so both passes take the same [`LossParams`].

use std::ops::Range;
use std::sync::mpsc::sync_channel;

use attrflow_engine::config::param::Validate;
use attrflow_engine::params;
use serde_json::Value as Json;
use tch::{Device, Tensor};

use super::data::{DataSet, Loaded, to_device};
use super::diffusion_loss::{DenoisingRows, check, losses};
use super::error::MathError;
use super::identity::hashed;
use super::micro_batches::in_micro_batches;
use super::noise::{Noise, Point, batch_noise};
use super::objective::Objective;
use super::schedule::{NoiseSchedule, ScheduleConfig};
use crate::models::unet::conditioning::EncodedConditioning;
use crate::models::unet::{Precision, UNet};

params! {
    /// How to measure the loss of a training image.
    pub struct LossParams {
        /// Timesteps per image and caption, evenly spaced from 0; must divide the model's number of timesteps.
        time_samples: usize [1..=100_000] = 20,
        /// Number of captions per image; the first ones are used.
        captions: usize [1..=1000] = 5,
        /// Seed of the noise.
        seed: u32 = 0,
        /// `per_batch`: one draw per batch, as published, so that `batch_size` and `time_samples` change every loss;
        /// `per_image`: `draws` per image and timestep, independent of other parameters; `per_image_philox`: the same by a generator
        /// whose numbers a GPU draws itself, the same on all devices.
        noise: Noise = Noise::PerBatch,
        /// Draws of noise per image and timestep, whose losses are averaged: more of them make errors smaller, and let them be
        /// measured. More than one needs `noise = "per_image"`; a later increase computes only the new draws.
        draws: usize [1..=1000] = 1,
        /// Rows (image x caption x timestep) that one draw covers: 8000 as published. Required with `noise = "per_batch"`, an
        /// error with `per_image`.
        batch_size: Option<usize> = None,
        /// `fp32`, `tf32` or `bf16`: precision of the network's matrix products. Lower precision is faster on GPUs,
        /// and changes the last digits of losses. A sample of the rows is also computed in float32, and a warning
        /// reports a deviation that is too large.
        precision: Precision = Precision::Fp32,
        /// What the model was trained to minimise.
        objective: Objective = Objective::default(),
    }
}

impl Validate for LossParams {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let Self { time_samples, captions, draws, .. } = self;
        if self.noise == Noise::PerBatch && *draws > 1 {
            let message = format!(
                "`draws` is {draws}: more than one draw per image needs `noise = \"per_image\"`; with `\"per_batch\"` all images of a \
                 batch share one"
            );
            return vec![("draws", message)];
        }
        let rows = self.rows_per_image();
        let message = match (self.noise, self.batch_size) {
            (Noise::PerImage | Noise::PerImagePhilox, None) => return Vec::new(),
            (Noise::PerBatch, Some(size)) if size > 0 && size.is_multiple_of(rows) => return Vec::new(),
            (Noise::PerBatch, Some(size)) => format!(
                "`batch_size` is {size}, expected a multiple of {rows}, the {captions} captions x {time_samples} timesteps of an image"
            ),
            (Noise::PerBatch, None) => {
                "`batch_size` is missing: with noise = \"per_batch\" it is the number of rows that share a draw, \
                 8000 as published"
                    .to_owned()
            }
            (Noise::PerImage | Noise::PerImagePhilox, Some(_)) => {
                "`batch_size` has no effect with noise = \"per_image\": remove it".to_owned()
            }
        };
        vec![("batch_size", message)]
    }
}

/// The divisors next to a number that is none.
fn near_divisors(of: i64, number: i64) -> String {
    let is_divisor = |candidate: &i64| of % candidate == 0;
    let below = (1..number.min(of)).rev().find(is_divisor);
    let above = (number..=of).find(is_divisor);
    let near: Vec<String> = [below, above].into_iter().flatten().map(|near| near.to_string()).collect();
    format!("set {}", near.join(" or "))
}

impl LossParams {
    /// The timesteps: 0, s, 2s, ...
    ///
    /// # Errors
    /// Their number does not divide that of the schedule.
    pub fn timesteps(&self, schedule: &ScheduleConfig) -> Result<Vec<i64>, MathError> {
        let (samples, train) = (self.time_samples as i64, schedule.num_train_timesteps);
        if train % samples != 0 {
            let rule =
                format!("must divide the model's {train} timesteps: {}", near_divisors(train, samples));
            return Err(MathError::parameter("time_samples", samples, rule));
        }
        Ok((0..samples).map(|i| i * (train / samples)).collect())
    }

    /// Where an image's noise is drawn: all draws at each of these timesteps.
    pub fn points(&self, timesteps: &[i64]) -> Vec<Point> {
        let at = |&timestep: &i64| (0..self.draws).map(move |draw| Point { timestep, draw });
        timesteps.iter().flat_map(at).collect()
    }

    /// The number of points: T R.
    pub fn count_points(&self) -> usize {
        self.time_samples * self.draws
    }

    /// What is hashed.
    pub fn identity(&self) -> Json {
        hashed(self, &[("draws", self.draws == 1), ("objective", self.objective.is_plain())])
    }

    /// Rows of an image: its captions at all points.
    pub fn rows_per_image(&self) -> usize {
        self.captions * self.count_points()
    }

    /// Images per batch; with noise per image it only limits memory and changes no loss.
    pub fn images_per_batch(&self) -> usize {
        const IMAGES: usize = 16;
        self.batch_size.map_or(IMAGES, |rows| rows / self.rows_per_image())
    }

    /// The number of batches of `images`; the last one may be short.
    pub fn batches(&self, images: usize) -> usize {
        images.div_ceil(self.images_per_batch())
    }

    /// The images of a batch.
    pub fn images_of(&self, batch: usize, images: usize) -> Range<usize> {
        let size = self.images_per_batch();
        (batch * size).min(images)..((batch + 1) * size).min(images)
    }
}

/// A loss pass of a model over a data set.
pub struct LossPass<'a> {
    pub(super) unet: &'a UNet,
    pub(super) schedule: &'a NoiseSchedule,
    pub(super) data: DataSet<'a>,
    pub(super) params: &'a LossParams,
    pub(super) points: Vec<Point>,
    pub(super) micro_batch: usize,
}

impl<'a> LossPass<'a> {
    /// `micro_batch` rows go through the network at once; it changes losses only by rounding.
    ///
    /// # Errors
    /// The parameters don't fit the model's timesteps or the data's captions.
    pub fn new(
        unet: &'a UNet,
        schedule: &'a NoiseSchedule,
        data: DataSet<'a>,
        params: &'a LossParams,
        micro_batch: usize,
    ) -> Result<LossPass<'a>, MathError> {
        let points = params.points(&params.timesteps(schedule.config())?);
        if params.captions > data.captions() {
            let rule = format!("the data has {} captions an image", data.captions());
            return Err(MathError::parameter("captions", params.captions, rule));
        }
        Ok(LossPass { unet, schedule, data, params, points, micro_batch })
    }

    /// The losses of the images of a range of batches: a mean over points, then over captions.
    ///
    /// `progress` receives the number of finished images after each batch.
    ///
    /// # Errors
    /// The data can't be read, or a loss is not finite.
    pub fn of_batches(
        &self,
        batches: Range<usize>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>, MathError> {
        let images_of = |batch| self.params.images_of(batch, self.data.latents_len());
        let (mut losses, first) = (Vec::new(), images_of(batches.start).start);
        let mut read = |queued: Queued<'_>| {
            let means = queued.read()?.mean_dim(2, false, None).mean_dim(1, false, None); // [images]
            losses.extend(Vec::<f32>::try_from(means).expect("a vector of float32"));
            Ok::<_, MathError>(())
        };
        let mut queued: Option<Queued<'_>> = None;
        self.each_loaded(batches, &mut |batch, loaded| {
            // A batch is read when the next one is queued, so that a GPU does not wait in between.
            let last = queued.replace(self.queue(batch, &loaded, None)?);
            progress(images_of(batch).end - first);
            last.map_or(Ok(()), &mut read)
        })?;
        queued.map_or(Ok(()), read)?;
        Ok(losses)
    }

    /// Calls a function with each batch's rows, while another thread reads those of the next batch.
    fn each_loaded(
        &self,
        batches: Range<usize>,
        work: &mut dyn FnMut(usize, Loaded) -> Result<(), MathError>,
    ) -> Result<(), MathError> {
        let (captions, device, count) = (self.params.captions, self.unet.device(), self.data.latents_len());
        let Some(data) = self.data.shared() else {
            return batches.into_iter().try_for_each(|batch| {
                let loaded = self.data.load(self.params.images_of(batch, count), captions);
                work(batch, loaded.map_err(MathError::Data)?)
            });
        };
        std::thread::scope(|scope| {
            // One batch waits while one is read: memory for two, and for the one in work.
            let (sender, receiver) = sync_channel(1);
            let params = self.params;
            scope.spawn(move || {
                for batch in batches {
                    let loaded = data.load(params.images_of(batch, count), captions, device);
                    // The receiver is gone if the work failed.
                    if sender.send((batch, loaded)).is_err() {
                        break;
                    }
                }
            });
            receiver.into_iter().try_for_each(|(batch, loaded)| work(batch, loaded.map_err(MathError::Data)?))
        })
    }

    /// The losses [images, captions, points] of the images of a batch, on the CPU.
    ///
    /// # Errors
    /// As [`LossPass::of_batches`].
    pub fn rows_of_batch(&self, batch: usize) -> Result<Tensor, MathError> {
        self.some_rows(batch, None)
    }

    /// The losses [pairs, 1, points] of some pairs of image and caption of a batch, numbered from 0 with the caption fastest.
    ///
    /// # Errors
    /// As [`LossPass::of_batches`].
    pub fn pairs_of_batch(&self, batch: usize, pairs: Range<usize>) -> Result<Tensor, MathError> {
        self.some_rows(batch, Some(pairs))
    }

    /// The reference implementation of [`LossPass::rows_of_batch`], one row per pass with its own text; tests compare both.
    ///
    /// # Errors
    /// As [`LossPass::of_batches`].
    pub fn reference_losses(&self, batch: usize) -> Result<Tensor, MathError> {
        let device = self.unet.device();
        let (images, captions) =
            (self.params.images_of(batch, self.data.latents_len()), self.params.captions);
        let points = &self.points;
        let shape = self.data.latents(&[images.start], device)?.size();
        let noise = self.noise(&images, batch, &shape[1..]); // [rows, C, H, W]
        let (mut losses, mut row) = (Vec::new(), 0);
        for image in images.clone() {
            for caption in 0..captions {
                for point in points {
                    let rows = DenoisingRows {
                        latents: self.data.latents(&[image], device)?,
                        noise: noise.narrow(0, row, 1),
                        timesteps: self.timesteps_tensor(&[point.timestep]),
                        conditioning: self.unet.conditioning(self.data.texts(&[(image, caption)], device)?),
                    };
                    losses.push(rows.losses(self.unet, self.schedule).detach());
                    row += 1;
                }
            }
        }
        let shape = [images.len() as i64, captions as i64, points.len() as i64];
        Ok(Tensor::cat(&losses, 0).to_device(Device::Cpu).view(shape))
    }

    fn some_rows(&self, batch: usize, pairs: Option<Range<usize>>) -> Result<Tensor, MathError> {
        let images = self.params.images_of(batch, self.data.latents_len());
        let loaded = self.data.load(images, self.params.captions).map_err(MathError::Data)?;
        self.queue(batch, &loaded, pairs)?.read()
    }

    /// Queues the losses [images, captions, points] of a batch, or [pairs, 1, points] of some of its pairs: no value is read, so that
    /// the device never waits.
    fn queue(
        &self,
        batch: usize,
        loaded: &Loaded,
        pairs: Option<Range<usize>>,
    ) -> Result<Queued<'a>, MathError> {
        let device = self.unet.device();
        let (images, captions) =
            (self.params.images_of(batch, self.data.latents_len()), self.params.captions);
        let timesteps: Vec<i64> = self.points.iter().map(|point| point.timestep).collect();
        let (latents, texts) = (to_device(&loaded.latents, device), to_device(&loaded.texts, device));
        let noise = self.noise(&images, batch, &latents.size()[1..]); // [rows, C, H, W]
        let (all, times) = (images.len() * captions, timesteps.len());
        let some = pairs.clone().unwrap_or(0..all);
        let mut encoded: Option<(Range<usize>, EncodedConditioning)> = None;
        let parts = in_micro_batches(some.len() * times, self.micro_batch, |row, most| {
            let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
            let (pairs, some_times) = slice(row, most, some.len(), times);
            let pairs = some.start + pairs.start..some.start + pairs.end;
            // The slices of one pair are consecutive.
            let texts = match &encoded {
                Some((known, texts)) if *known == pairs => texts,
                _ => {
                    // Drop the old ones first, for memory may be short.
                    encoded = None;
                    let texts = self.unet.encode(&self.unet.conditioning(narrow(&texts, &pairs)));
                    &encoded.insert((pairs.clone(), texts)).1
                }
            };
            let (count, each) = (pairs.len() * some_times.len(), some_times.len() as i64);
            let first = pairs.start * times + some_times.start;
            let noise = narrow(&noise, &(first..first + count)); // [rows, C, H, W]
            let images: Vec<i64> = pairs.map(|pair| (pair / captions) as i64).collect();
            let images = Tensor::from_slice(&images).to_device(device);
            let latents = latents.index_select(0, &images).repeat_interleave_self_int(each, 0, None);
            let timesteps = self.timesteps_tensor(&timesteps[some_times]);
            let losses = losses(self.unet, self.schedule, [&latents, &noise], &timesteps, texts);
            Ok::<_, MathError>((count, losses))
        });
        let shape = if pairs.is_some() { [some.len(), 1] } else { [images.len(), captions] };
        let losses = Tensor::cat(&parts?, 0).view([shape[0] as i64, shape[1] as i64, times as i64]);
        let first = images.start * captions + some.start;
        Ok(Queued { losses, first, captions, timesteps, data: self.data })
    }

    pub(super) fn timesteps_tensor(&self, timesteps: &[i64]) -> Tensor {
        Tensor::from_slice(timesteps).to_device(self.unet.device())
    }

    /// The noise of all rows of some images, on the network's device.
    fn noise(&self, images: &Range<usize>, batch: usize, latent: &[i64]) -> Tensor {
        let (points, device, captions) = (&self.points, self.unet.device(), self.params.captions as i64);
        if self.params.noise.by_image() {
            let shape = [&[captions], latent].concat();
            let images: Vec<usize> = images.clone().map(|image| self.data.image_of(image)).collect();
            return self.image_noise().of(&images, points, &shape, device).flatten(0, 2);
        }
        let (seed, offset) = (self.params.seed.into(), self.params.objective.noise_offset);
        let rows = images.len() as i64 * captions * points.len() as i64;
        batch_noise(seed, batch, &[&[rows], latent].concat(), offset, device)
    }
}

/// Losses that the device may still compute.
struct Queued<'a> {
    /// [.., points], on the device.
    losses: Tensor,
    /// The first pair of latent and caption, the caption fastest.
    first: usize,
    captions: usize,
    timesteps: Vec<i64>,
    data: DataSet<'a>,
}

impl Queued<'_> {
    /// The losses, on the CPU.
    fn read(self) -> Result<Tensor, MathError> {
        let losses = self.losses.to_device(Device::Cpu);
        let times = self.timesteps.len();
        let place_of = |row: usize| ((self.first + row / times) / self.captions, self.timesteps[row % times]);
        check(&losses, place_of).map_err(|error| self.data.named(error))?;
        Ok(losses)
    }
}

fn narrow(x: &Tensor, rows: &Range<usize>) -> Tensor {
    x.narrow(0, rows.start as i64, rows.len() as i64)
}

/// The next slice from `row` on: pairs of image and caption, and which of their timesteps.
///
/// It holds whole pairs, which share a text, as long as one fits into `most` rows; else a part of one pair.
pub(super) fn slice(row: usize, most: usize, groups: usize, times: usize) -> (Range<usize>, Range<usize>) {
    let (group, time) = (row / times, row % times);
    if time == 0 && most >= times {
        (group..groups.min(group + most / times), 0..times)
    } else {
        (group..group + 1, time..times.min(time + most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(batch_size: usize, time_samples: usize, captions: usize) -> LossParams {
        let (noise, precision) = (Noise::PerBatch, Precision::Fp32);
        LossParams {
            batch_size: Some(batch_size),
            time_samples,
            captions,
            noise,
            precision,
            ..LossParams::default()
        }
    }

    #[test]
    fn batches_hold_every_image_once() {
        let params = params(24, 4, 2);
        for images in 0..12 {
            let found: Vec<usize> =
                (0..params.batches(images)).flat_map(|b| params.images_of(b, images)).collect();
            assert_eq!(found, (0..images).collect::<Vec<_>>());
        }
    }

    #[test]
    fn timesteps_start_at_zero_and_stay_below_the_end() {
        let timesteps = params(20, 20, 1).timesteps(&ScheduleConfig::default()).unwrap();
        assert_eq!((timesteps.len(), timesteps[0], timesteps[1], timesteps[19]), (20, 0, 50, 950));
    }

    #[test]
    fn slices_follow_each_other_and_never_split_several_texts() {
        for (most, groups, times) in [(1, 6, 4), (3, 6, 4), (4, 6, 4), (11, 6, 4), (100, 6, 4), (2, 5, 1)] {
            let mut row = 0;
            while row < groups * times {
                let (some, part) = slice(row, most, groups, times);
                assert_eq!(row, some.start * times + part.start);
                assert!(some.len() == 1 || part == (0..times));
                let count = some.len() * part.len();
                assert!(count > 0 && count <= most);
                row += count;
            }
            assert_eq!(row, groups * times);
        }
    }
}
