//! The loss pass: every training image's loss, averaged over timesteps and captions.
//!
//! A row is (image, caption, timestep), the timestep fastest. Pretrained and unlearned model must see the same
//! noise, so both passes take the same [`LossSpec`].

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::data::DataSet;
use super::denoise::{DenoisingRows, check};
use super::error::MathError;
use super::memory::in_slices;
use super::noise::{NoiseMode, batch_noise, image_noise};
use super::schedule::NoiseSchedule;
use crate::nn::unet::UNet;

/// What the numbers of a loss pass depend on, besides model and data.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LossSpec {
    /// Rows (images x captions x timesteps) that share a draw of noise. In image mode it changes no number.
    pub batch_size: usize,
    /// Timesteps an image, evenly spaced from 0.
    pub time_samples: usize,
    /// Captions an image.
    pub captions: usize,
    /// Seed of the noise.
    pub seed: i64,
    /// Where the noise comes from.
    pub noise: NoiseMode,
}

impl LossSpec {
    /// Checks the numbers against each other and a model of `train_timesteps` timesteps.
    ///
    /// # Errors
    /// The first rule that is broken. Each stands for a silent mistake: a timestep too many, a batch of another
    /// size than was asked for, or of no image at all.
    pub fn validate(&self, train_timesteps: i64) -> Result<(), MathError> {
        let zero = |key| Err(MathError::parameter(key, 0, "must be at least 1"));
        if self.time_samples == 0 {
            return zero("time_samples");
        }
        if self.captions == 0 {
            return zero("captions");
        }
        if train_timesteps % self.time_samples as i64 != 0 {
            let rule = format!(
                "must divide the model's {train_timesteps} timesteps, or there would be one too many"
            );
            return Err(MathError::parameter("time_samples", self.time_samples, rule));
        }
        let an_image = self.captions * self.time_samples;
        let rule = format!(
            "must be a multiple of captions x time_samples = {} x {} = {an_image} rows, those of an image",
            self.captions, self.time_samples
        );
        if self.batch_size == 0 || !self.batch_size.is_multiple_of(an_image) {
            return Err(MathError::parameter("batch_size", self.batch_size, rule));
        }
        Ok(())
    }

    /// Images that share a batch.
    pub fn images_per_batch(&self) -> usize {
        self.batch_size / self.captions / self.time_samples
    }

    /// How many batches `images` fill, the last one perhaps not whole.
    pub fn batches(&self, images: usize) -> usize {
        images.div_ceil(self.images_per_batch())
    }

    /// The images of a batch.
    pub fn images_of(&self, batch: usize, images: usize) -> Range<usize> {
        let size = self.images_per_batch();
        (batch * size).min(images)..((batch + 1) * size).min(images)
    }

    /// The timesteps: 0, s, 2s, ...
    pub fn timesteps(&self, train_timesteps: i64) -> Vec<i64> {
        let samples = self.time_samples as i64;
        (0..samples).map(|i| i * (train_timesteps / samples)).collect()
    }
}

/// A block of images as any number of models see it: read and drawn once, kept on the CPU.
pub struct Block {
    /// Its latents among all.
    images: Range<usize>,
    /// Each latent once for every caption: [pairs, C, H, W].
    latents: Tensor,
    /// [pairs, L, D].
    texts: Tensor,
    /// By timestep, [pairs, C, H, W].
    noise: BTreeMap<i64, Tensor>,
}

/// A model about to be measured on a data set.
pub struct LossPass<'a> {
    unet: &'a UNet,
    schedule: &'a NoiseSchedule,
    data: DataSet<'a>,
    spec: &'a LossSpec,
    micro_batch: usize,
}

impl<'a> LossPass<'a> {
    /// `micro_batch` rows go through the network at once; it changes no number beyond rounding.
    ///
    /// # Errors
    /// The numbers of `spec` don't fit the model's timesteps or the data's captions.
    pub fn new(
        unet: &'a UNet,
        schedule: &'a NoiseSchedule,
        data: DataSet<'a>,
        spec: &'a LossSpec,
        micro_batch: usize,
    ) -> Result<LossPass<'a>, MathError> {
        spec.validate(schedule.train_timesteps())?;
        if spec.captions > data.captions() {
            let rule = format!("the data has {} captions an image", data.captions());
            return Err(MathError::parameter("captions", spec.captions, rule));
        }
        Ok(LossPass { unet, schedule, data, spec, micro_batch })
    }

    /// The losses of the images of a range of batches: a mean over timesteps, then over captions.
    ///
    /// `progress` hears how many images are done after each batch.
    ///
    /// # Errors
    /// The data can't be read, or a loss is not finite.
    pub fn of_batches(
        &self,
        batches: Range<usize>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>, MathError> {
        let (mut losses, first) =
            (Vec::new(), self.spec.images_of(batches.start, self.data.latents_len()).start);
        for batch in batches {
            let rows = self.rows_of_batch(batch)?; // [images, captions, timesteps]
            let means = rows.mean_dim(2, false, None).mean_dim(1, false, None); // [images]
            losses.extend(Vec::<f32>::try_from(means).expect("a vector of float32"));
            progress(self.spec.images_of(batch, self.data.latents_len()).end - first);
        }
        Ok(losses)
    }

    /// The losses [images, captions, timesteps] of the images of a batch, on the CPU.
    ///
    /// # Errors
    /// As [`LossPass::of_batches`].
    pub fn rows_of_batch(&self, batch: usize) -> Result<Tensor, MathError> {
        let timesteps = self.spec.timesteps(self.schedule.train_timesteps());
        self.rows(self.spec.images_of(batch, self.data.latents_len()), &timesteps, batch)
    }

    /// Reads a block of images and draws its noise at some timesteps, for any number of models, in image mode.
    ///
    /// # Errors
    /// The data can't be read; or the noise is drawn by the batch.
    pub fn block(&self, images: Range<usize>, timesteps: &[i64]) -> Result<Block, MathError> {
        if self.spec.noise != NoiseMode::Image {
            let rule = "must be \"image\" for losses at single timesteps";
            return Err(MathError::parameter("noise", "\"batch\"", rule));
        }
        let (rows, captions) = (images.clone().collect::<Vec<_>>(), self.spec.captions);
        let pairs: Vec<_> = rows.iter().flat_map(|&row| (0..captions).map(move |c| (row, c))).collect();
        let latents = self.data.latents(&rows, Device::Cpu)?; // [images, C, H, W]
        let shape = [&[captions as i64], &latents.size()[1..]].concat();
        let noise = timesteps.iter().map(|timestep| {
            let draw = |&row: &usize| {
                let image = self.data.original(row);
                image_noise(self.spec.seed, image, &[*timestep], &shape, Device::Cpu).squeeze_dim(1)
            };
            (*timestep, Tensor::cat(&rows.iter().map(draw).collect::<Vec<_>>(), 0)) // [pairs, C, H, W]
        });
        Ok(Block {
            noise: noise.collect(),
            latents: latents.repeat_interleave_self_int(captions as i64, 0, None), // [pairs, C, H, W]
            texts: self.data.texts(&pairs, Device::Cpu)?,                          // [pairs, L, D]
            images,
        })
    }

    /// The losses [images, captions, timesteps] of a block at some of its timesteps, on the CPU.
    ///
    /// A pass through the network holds rows of one timestep, so that neither the choice of timesteps nor what other
    /// models are measured changes a bit. `progress` hears of which timestep (its place) how many images are done.
    ///
    /// # Errors
    /// A loss is not finite.
    pub fn of_units(
        &self,
        block: &Block,
        timesteps: &[i64],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Tensor, MathError> {
        let (device, captions) = (self.unet.device(), self.spec.captions);
        let pairs = block.images.len() * captions;
        let parts = in_slices(pairs, self.micro_batch, |pair, most| {
            let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
            let some = |x: &Tensor| x.narrow(0, pair as i64, most as i64).to_device(device);
            // What depends on the texts alone is the same at all timesteps.
            let (latents, texts) = (some(&block.latents), some(&block.texts));
            let mut at_each = Vec::new();
            for (place, &timestep) in timesteps.iter().enumerate() {
                let rows = DenoisingRows {
                    latents: latents.shallow_clone(),
                    noise: some(&block.noise[&timestep]),
                    timesteps: Tensor::full([most as i64], timestep, (Kind::Int64, device)),
                    texts: texts.shallow_clone(),
                };
                let losses = rows.losses(self.unet, self.schedule).to_device(Device::Cpu); // [most]
                check(&losses, |row| (block.images.start + (pair + row) / captions, timestep))?;
                at_each.push(losses);
                progress(place, (pair + most) / captions);
            }
            Ok::<_, MathError>((most, Tensor::stack(&at_each, 1))) // [most, timesteps]
        });
        let parts = parts.map_err(|error| self.data.named(error))?;
        let shape = [block.images.len() as i64, captions as i64, timesteps.len() as i64];
        Ok(Tensor::cat(&parts, 0).view(shape))
    }

    /// The losses [images, captions, timesteps] on the CPU, with the noise of `batch` (or of each image).
    fn rows(&self, images: Range<usize>, timesteps: &[i64], batch: usize) -> Result<Tensor, MathError> {
        let (device, captions, times) = (self.unet.device(), self.spec.captions, timesteps.len());
        let latents = self.data.latents(&images.clone().collect::<Vec<_>>(), device)?; // [images, C, H, W]
        let noise = self.noise(&images, timesteps, batch, &latents.size()[1..]); // [rows, C, H, W]
        let count = images.len() * captions * times;
        let parts = in_slices(count, self.micro_batch, |row, most| {
            let (groups, some_times) = slice(row, most, images.len() * captions, times);
            let rows = self.denoising(&images, &latents, &groups, &timesteps[some_times], &noise, row)?;
            let losses = {
                let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
                rows.losses(self.unet, self.schedule).to_device(Device::Cpu)
            };
            check(&losses, |r| (images.start + (row + r) / times / captions, timesteps[(row + r) % times]))?;
            Ok::<_, MathError>((rows.len(), losses))
        });
        let parts = parts.map_err(|error| self.data.named(error))?;
        Ok(Tensor::cat(&parts, 0).view([images.len() as i64, captions as i64, times as i64]))
    }

    /// The noise of all rows of some images, on the network's device.
    fn noise(&self, images: &Range<usize>, timesteps: &[i64], batch: usize, latent: &[i64]) -> Tensor {
        let (seed, device, captions) = (self.spec.seed, self.unet.device(), self.spec.captions as i64);
        match self.spec.noise {
            NoiseMode::Batch => {
                let rows = images.len() as i64 * captions * timesteps.len() as i64;
                batch_noise(seed, batch, &[&[rows], latent].concat(), device)
            }
            NoiseMode::Image => {
                let shape = [&[captions], latent].concat();
                let draw = |image| image_noise(seed, self.data.original(image), timesteps, &shape, device);
                let noise: Vec<Tensor> = images.clone().map(draw).collect(); // each [captions, timesteps, C, H, W]
                Tensor::cat(&noise, 0).flatten(0, 1)
            }
        }
    }

    /// The rows of `groups` (pairs of image and caption) at `timesteps`; the first one is row `first` of `noise`.
    fn denoising(
        &self,
        images: &Range<usize>,
        latents: &Tensor,
        groups: &Range<usize>,
        timesteps: &[i64],
        noise: &Tensor,
        first: usize,
    ) -> Result<DenoisingRows, MathError> {
        let (captions, times, device) = (self.spec.captions, timesteps.len() as i64, latents.device());
        let pairs: Vec<_> =
            groups.clone().map(|group| (images.start + group / captions, group % captions)).collect();
        let images: Vec<i64> = groups.clone().map(|group| (group / captions) as i64).collect();
        let count = groups.len() as i64;
        Ok(DenoisingRows {
            latents: latents
                .index_select(0, &Tensor::from_slice(&images).to_device(device))
                .repeat_interleave_self_int(times, 0, None), // [groups * times, C, H, W]
            noise: noise.narrow(0, first as i64, count * times),
            timesteps: Tensor::from_slice(timesteps).to_device(device).repeat([count]),
            texts: self.data.texts(&pairs, device)?, // [groups, L, D]
        })
    }
}

/// The next slice from `row` on: pairs of image and caption, and which of their timesteps.
///
/// It holds whole pairs, which share a text, as long as one fits into `most` rows; else a part of one pair.
fn slice(row: usize, most: usize, groups: usize, times: usize) -> (Range<usize>, Range<usize>) {
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

    #[test]
    fn batches_hold_every_image_once() {
        let spec =
            LossSpec { batch_size: 24, time_samples: 4, captions: 2, seed: 0, noise: NoiseMode::Batch };
        for images in 0..12 {
            let found: Vec<usize> =
                (0..spec.batches(images)).flat_map(|b| spec.images_of(b, images)).collect();
            assert_eq!(found, (0..images).collect::<Vec<_>>());
        }
    }

    #[test]
    fn timesteps_start_at_zero_and_stay_below_the_end() {
        let spec =
            LossSpec { batch_size: 20, time_samples: 20, captions: 1, seed: 0, noise: NoiseMode::Batch };
        let timesteps = spec.timesteps(1000);
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
