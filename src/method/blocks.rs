//! The loss pass with noise per image: any latents at any points, whatever others are computed.

use std::collections::BTreeMap;

use tch::{Device, Tensor};

use super::diffusion_loss::{check, losses};
use super::error::MathError;
use super::loss::{LossParams, LossPass};
use super::micro_batches::in_micro_batches;
use super::noise::{ImageNoise, Noise, Point};

/// A block of images as any number of models see it: read and drawn once, kept on the CPU.
pub struct Block {
    /// Its latents among all, in any order.
    pub(super) images: Vec<usize>,
    /// Each latent once for every caption: [pairs, C, H, W].
    pub(super) latents: Tensor,
    /// [pairs, L, D].
    pub(super) texts: Tensor,
    /// By point, [pairs, C, H, W].
    pub(super) noise: BTreeMap<Point, Tensor>,
}

impl Block {
    /// Its first images alone.
    pub fn first(&self, images: usize) -> Block {
        let count = images.min(self.images.len());
        let pairs = self.latents.size()[0] / self.images.len() as i64 * count as i64;
        let some = |x: &Tensor| x.narrow(0, 0, pairs);
        Block {
            images: self.images[..count].to_vec(),
            latents: some(&self.latents),
            texts: some(&self.texts),
            noise: self.noise.iter().map(|(point, noise)| (*point, some(noise))).collect(),
        }
    }
}

/// Images that are read and drawn at once where any number is asked for, so that memory does not grow with it.
const AT_ONCE: usize = 128;

impl LossPass<'_> {
    /// How noise by image is drawn.
    pub(super) fn image_noise(&self) -> ImageNoise {
        let LossParams { noise, seed, objective, .. } = self.params;
        ImageNoise { noise: *noise, seed: (*seed).into(), offset: objective.noise_offset }
    }

    /// Reads a block of images and draws its noise at some points, for any number of models, with noise per image.
    ///
    /// # Errors
    /// The data can't be read; or the noise is drawn by the batch.
    pub fn block(&self, images: &[usize], points: &[impl Copy + Into<Point>]) -> Result<Block, MathError> {
        if !self.params.noise.by_image() {
            let rule = "must be \"per_image\" for losses at single timesteps";
            return Err(MathError::parameter("noise", "\"per_batch\"", rule));
        }
        let captions = self.params.captions;
        let pairs: Vec<_> = images.iter().flat_map(|&row| (0..captions).map(move |c| (row, c))).collect();
        let latents = self.data.latents(images, Device::Cpu)?; // [images, C, H, W]
        let shape = [&[captions as i64], &latents.size()[1..]].concat();
        let (own, drawn) = (self.image_noise(), images.iter().map(|&row| self.data.image_of(row)));
        let drawn: Vec<usize> = drawn.collect();
        // A GPU draws where it computes.
        let device = if own.noise == Noise::PerImagePhilox { self.unet.device() } else { Device::Cpu };
        let noise = points.iter().map(|&point| {
            let point: Point = point.into();
            (point, own.of(&drawn, &[point], &shape, device).squeeze_dim(2).flatten(0, 1)) // [pairs, C, H, W]
        });
        Ok(Block {
            noise: noise.collect(),
            latents: latents.repeat_interleave_self_int(captions as i64, 0, None), // [pairs, C, H, W]
            texts: self.data.texts(&pairs, Device::Cpu)?,                          // [pairs, L, D]
            images: images.to_vec(),
        })
    }

    /// The losses [images, captions, points] of a block at some of its points, on the CPU.
    ///
    /// A pass through the network holds rows of one timestep, so that with the same micro batch neither the choice of points
    /// nor what other models are measured changes a bit. `progress` hears of which point (its place) how many images are done.
    ///
    /// # Errors
    /// A loss is not finite.
    pub fn losses_at(
        &self,
        block: &Block,
        points: &[impl Copy + Into<Point>],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Tensor, MathError> {
        let (device, captions) = (self.unet.device(), self.params.captions);
        let pairs = block.images.len() * captions;
        let parts = in_micro_batches(pairs, self.micro_batch, |pair, most| {
            let _guard = tch::no_grad_guard(); // unlike `no_grad`, it ends when memory runs out inside
            let some = |x: &Tensor| x.narrow(0, pair as i64, most as i64).to_device(device);
            // What depends on the texts alone is the same at all timesteps.
            let (latents, texts) =
                (some(&block.latents), self.unet.encode(&self.unet.conditioning(some(&block.texts))));
            let mut at_each = Vec::new();
            for (place, &point) in points.iter().enumerate() {
                let point: Point = point.into();
                let (noise, timesteps) =
                    (some(&block.noise[&point]), self.timesteps_tensor(&[point.timestep]));
                at_each.push(losses(self.unet, self.schedule, [&latents, &noise], &timesteps, &texts)); // [most]
                progress(place, (pair + most) / captions);
            }
            // No value is read before all points are queued, so that the device never waits.
            let losses = Tensor::stack(&at_each, 1).to_device(Device::Cpu); // [most, points]
            check(&losses, |at| {
                let (row, point) = (at / points.len(), points[at % points.len()].into());
                (block.images[(pair + row) / captions], point.timestep)
            })?;
            Ok::<_, MathError>((most, losses))
        });
        let parts = parts.map_err(|error| self.data.named(error))?;
        let shape = [block.images.len() as i64, captions as i64, points.len() as i64];
        Ok(Tensor::cat(&parts, 0).view(shape))
    }

    /// The losses [images, captions, points] of any images in any order at any points, with noise per image, on the CPU.
    ///
    /// `progress` hears how many pairs of image and point are done.
    ///
    /// # Errors
    /// As [`LossPass::block`] and [`LossPass::losses_at`].
    pub fn rows_of_images(
        &self,
        images: &[usize],
        points: &[impl Copy + Into<Point>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<Tensor, MathError> {
        let (mut parts, mut done) = (Vec::new(), 0);
        for some in images.chunks(AT_ONCE) {
            let block = self.block(some, points)?;
            let mut at_each = vec![0; points.len()];
            let mut heard = |place: usize, images: usize| {
                at_each[place] = images;
                progress(done + at_each.iter().sum::<usize>());
            };
            parts.push(self.losses_at(&block, points, &mut heard)?);
            done += some.len() * points.len();
        }
        Ok(Tensor::cat(&parts, 0))
    }
}
