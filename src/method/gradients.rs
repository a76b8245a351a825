//! The gradient of each training image: a mean over captions and timesteps, with the rows and the noise of the loss pass.
//!
//! What baselines compare: TracIn (Pruthi et al. 2020, arXiv 2002.08484), TRAK (Park et al. 2023, arXiv 2303.14186) and D-TRAK
//! (Zheng et al. 2024, arXiv 2311.00500). All is linear in the gradients at the layers' outputs, so rows are summed before they are
//! projected. Shapes: B rows, T points, P pairs of image and caption.

use attrflow_engine::config::param::Validate;
use attrflow_engine::{choice, params};
use serde_json::Value as Json;
use tch::{Device, Tensor};

use super::diffusion_loss::DenoisingRows;
use super::error::MathError;
use super::identity::hashed;
use super::layer_gradients::{Quantity, layer_gradients};
use super::loss::{LossParams, LossPass, slice};
use super::micro_batches::in_micro_batches;
use super::noise::{Noise, Point};
use super::projection::{Group, Projection, Projector};
use super::selection::Selection;
use crate::models::unet::Precision;

choice! {
    /// Which number of a row is differentiated.
    pub enum GradientOf {
        /// Its loss.
        Loss = "loss",
        /// The mean of its squared prediction, as D-TRAK does (arXiv 2311.00500).
        Output = "output",
    }
}

params! {
    /// Parameters of `gradients`.
    pub struct GradientsParams {
        /// Timesteps, captions and noise, as for a loss; needs `noise = "per_image"` and `precision = "fp32"`. A query is image 0 of
        /// its own array, so with the same seed it would share the noise of training image 0: give the stage of the queries another
        /// `seed` in this table, or both `shared_noise`.
        loss: LossParams,
        /// `loss`: gradients of the loss; `output`: of the mean of the squared prediction, for the baseline `d-trak`.
        of: GradientOf = GradientOf::Loss,
        /// The weights whose gradients are kept. As for all keys below, the same for training images and queries.
        select: Selection = Selection::CrossAttnKv,
        /// `none` keeps whole gradients; `kronecker` projects each matrix by a Kronecker product of two random ones, and never makes
        /// the gradient; `dense` by one random matrix for each weight, which needs 4 x `projection_dim` bytes of memory for each
        /// number of an average weight; `eigen` onto the leading eigenvectors of the input `eigenbasis` (LoGra, Choe et al. 2024, arXiv
        /// 2405.13954), for weights of linear layers without biases.
        projection: Projection = Projection::Kronecker,
        /// Numbers to keep of a gradient, at most: as many of each selected weight. Unused with `projection = "none"`.
        projection_dim: usize [1..=1_048_576] = 4096,
        /// Seed of the random matrices. Unused with `projection = "none"` and `"eigen"`.
        seed: u32 = 0,
        /// Only this timestep in place of `loss.time_samples`, which then is 1; `loss.draws` says how many draws of noise it has. For the
        /// query of the baseline `journey-trak`, whose latents `generate` made with `denoised_at`.
        timestep: Option<usize> = None,
        /// One draw of noise for each timestep, the same for all images, captions and queries, as D-TRAK publishes. By default each
        /// image has its own, as in the loss pass.
        shared_noise: bool = false,
    }
}

impl Validate for GradientsParams {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let (noise, precision) = (self.loss.noise, self.loss.precision);
        let message = match (noise, precision) {
            (Noise::PerBatch, _) => {
                "`loss` has `noise = \"per_batch\"`, expected `\"per_image\"`: with noise by the batch, an image's gradient would depend \
                 on its neighbours"
            }
            (_, Precision::Tf32 | Precision::Bf16) => {
                "`loss` has another `precision` than \"fp32\", in which gradients are computed: remove it"
            }
            (_, Precision::Fp32) if self.timestep.is_some() && self.loss.time_samples > 1 => {
                "`loss` has more than one of `time_samples`, and `timestep` is the only one: set `time_samples = 1`"
            }
            (_, Precision::Fp32) => return Vec::new(),
        };
        vec![("loss", message.to_owned())]
    }
}

impl GradientsParams {
    /// What is hashed: not how many numbers would be kept, and by which matrices, where all are.
    pub fn identity(&self) -> Json {
        let whole = self.projection == Projection::None;
        let drawn = !whole && self.projection != Projection::Eigen;
        let unread = [("projection_dim", whole), ("seed", !drawn), ("timestep", self.timestep.is_none())];
        let mut hashed = hashed(self, &unread);
        hashed["loss"] = self.loss.identity();
        hashed
    }
}

impl LossPass<'_> {
    /// The projected gradients of some images (latents, in any order), means over captions and points: [images, width], on the
    /// network's device.
    ///
    /// The pass must be one with noise per image. With `shared_noise`, every row of a point has the noise of image 0.
    ///
    /// # Errors
    /// The data can't be read; a loss, an output or a gradient is not finite.
    pub fn mean_gradients(
        &self,
        images: &[usize],
        params: &GradientsParams,
        projector: &Projector,
    ) -> Result<Tensor, MathError> {
        let (device, captions) = (self.unet.device(), self.params.captions);
        let at_one = params.timestep.map(|timestep| self.params.points(&[timestep as i64]));
        let points = at_one.as_ref().unwrap_or(&self.points).as_slice();
        let own: &[Point] = if params.shared_noise { &[] } else { points };
        let block = self.block(images, own)?;
        let latent = block.latents.size()[1..].to_vec(); // [C, H, W]
        let pairs = images.len() * captions;
        let noise = if params.shared_noise {
            let shape = [&[1], latent.as_slice()].concat();
            self.image_noise().of(&[0], points, &shape, Device::Cpu).squeeze_dim(0) // [1, T, C, H, W]
        } else {
            Tensor::stack(&points.iter().map(|point| &block.noise[point]).collect::<Vec<_>>(), 1)
        };
        let noise = noise.expand([&[pairs as i64, -1], latent.as_slice()].concat(), true); // [P, T, C, H, W]
        let timesteps: Vec<i64> = points.iter().map(|point| point.timestep).collect();
        let quantity = match params.of {
            GradientOf::Loss => Quantity::Loss,
            GradientOf::Output => Quantity::Output,
        };
        let (rows, width) = (pairs * points.len(), projector.width() as i64);
        let mut sum = Tensor::zeros([images.len() as i64, width], (tch::Kind::Float, device));
        let done = in_micro_batches(rows, self.micro_batch, |row, most| {
            let (some, times) = slice(row, most, pairs, points.len());
            let (first, count) = (some.start as i64, some.len() as i64);
            let each = times.len() as i64;
            let texts = block.texts.narrow(0, first, count).to_device(device);
            let latents = block.latents.narrow(0, first, count).to_device(device);
            let noise = noise.narrow(0, first, count).narrow(1, times.start as i64, each);
            let rows = DenoisingRows {
                latents: latents.repeat_interleave_self_int(each, 0, None),
                noise: noise.flatten(0, 1).to_device(device), // [count each, C, H, W]
                timesteps: self.timesteps_tensor(&timesteps[times.clone()]).repeat([count]),
                conditioning: self.unet.conditioning(texts),
            };
            let place = |row: usize| {
                let pair = some.start + row / times.len();
                (images[pair / captions], timesteps[times.start + row % times.len()])
            };
            let found = layer_gradients(self.unet, self.schedule, &rows, &params.select, &quantity, place)?;
            let part = tch::no_grad(|| {
                let groups = groups(&some, captions);
                let part = sum.zeros_like();
                for (record, gradient) in &found {
                    projector.add(record, gradient, &groups, some.len(), &part);
                }
                part
            });
            // The last thing, so that a slice that runs out of memory has changed nothing.
            sum += part;
            Ok::<_, MathError>((count as usize * each as usize, ()))
        });
        done.map_err(|error| self.data.named(error))?;
        let mean = sum / rows_of_image(captions, points.len());
        self.finite(images, &mean)?;
        Ok(mean)
    }

    fn finite(&self, images: &[usize], gradients: &Tensor) -> Result<(), MathError> {
        let wrong = gradients.isfinite().all_dim(1, false).logical_not().nonzero();
        if wrong.size()[0] == 0 {
            return Ok(());
        }
        let latent = images[wrong.int64_value(&[0, 0]) as usize];
        let image = self.data.image_of(latent);
        Err(MathError::GradientNotFinite { image, mirrored: latent >= self.data.images() })
    }
}

fn rows_of_image(captions: usize, points: usize) -> f64 {
    (captions * points) as f64
}

/// Pairs as groups of images with all their captions, and the images at both ends with some of theirs.
fn groups(pairs: &std::ops::Range<usize>, captions: usize) -> Vec<Group> {
    let (mut groups, mut start) = (Vec::new(), pairs.start);
    while start < pairs.end {
        let image = start / captions;
        let whole = start.is_multiple_of(captions) && pairs.end - start >= captions;
        let count = if whole { (pairs.end - start) / captions } else { 1 };
        let end = pairs.end.min((image + count) * captions);
        groups.push(Group { images: image..image + count, pairs: start - pairs.start..end - pairs.start });
        start = end;
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_every_pair_once_and_as_many_of_each_image() {
        let group = |images, pairs| Group { images, pairs };
        let found = groups(&(1..11), 3);
        assert_eq!(found, [group(0..1, 0..2), group(1..3, 2..8), group(3..4, 8..10)]);
        assert_eq!(groups(&(4..5), 3), [group(1..2, 0..1)]);
        assert_eq!(groups(&(0..6), 3), [group(0..2, 0..6)]);
    }
}
