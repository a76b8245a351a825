//! What encoders of pictures share: CLIP's and DINO's.
//!
//! Shapes: B pictures, S x S pixels in patches of P x P, D width.

use std::path::Path;

use tch::{Kind, Tensor};

use super::weights::config::{self, ModelError};
use crate::io::image::RgbImage;
use crate::io::image::resize::Filter;

/// From a picture to one vector, by whose cosine pictures are compared.
pub trait PictureEncoder {
    /// A picture as the encoder takes it, [3, S, S] on the CPU.
    fn prepare(&self, picture: &RgbImage) -> Tensor;

    /// Prepared pictures [B, 3, S, S] to vectors [B, E].
    fn forward(&self, pictures: &Tensor) -> Tensor;
}

/// Refuses a configuration whose heads do not divide the width, or whose patches do not fill the picture.
pub(super) fn expect_sizes(
    file: &Path,
    heads: i64,
    width: i64,
    patch: i64,
    side: i64,
) -> Result<(), ModelError> {
    config::expect_divides(file, ("num_attention_heads", heads), ("hidden_size", &[width]))?;
    config::expect_divides(file, ("patch_size", patch), ("image_size", &[side]))
}

/// The filter with Pillow's number in the file of a picture's preprocessing.
pub(super) fn filter(file: &Path, resample: u8) -> Result<Filter, ModelError> {
    match resample {
        2 => Ok(Filter::Bilinear),
        3 => Ok(Filter::Bicubic),
        other => Err(config::unsupported(file, "resample", other, "2, 3")),
    }
}

/// A square picture as numbers [3, S, S], less the mean and over the standard deviation of each channel.
pub(super) fn normalised(square: &RgbImage, [mean, std]: [[f32; 3]; 2]) -> Tensor {
    let [mean, std] = [mean, std].map(|values| Tensor::from_slice(&values).view([3, 1, 1]));
    let side = i64::from(square.width());
    let bytes = Tensor::from_slice(square.as_raw()).view([side, side, 3]).permute([2, 0, 1]);
    (bytes.to_kind(Kind::Float) / 255.0 - mean) / std
}

/// Pictures as tokens [B, 1 + patches, D], the class token first: `weight` is [D, 3, P, P], `class` any shape of D numbers.
pub(super) fn tokens(pictures: &Tensor, weight: &Tensor, bias: Option<&Tensor>, class: &Tensor) -> Tensor {
    let [width, patch] = [weight.size()[0], weight.size()[3]];
    let patches = pictures.conv2d(weight, bias, [patch; 2], [0, 0], [1, 1], 1);
    let patches = patches.flatten(2, 3).transpose(1, 2); // [B, patches, D]
    let class = class.view([1, 1, width]).expand([patches.size()[0], 1, width], false);
    Tensor::cat(&[class, patches], 1)
}
