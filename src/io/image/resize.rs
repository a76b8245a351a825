//! Antialiased resizing, equal to Pillow's byte for byte.
//!
//! The published latents were made from images that Pillow resized, and a pixel off by one is another
//! input to the VAE. So, as in Pillow, the filter's weights are rounded to fixed point, and the image is
//! rounded to 8 bits between the horizontal and the vertical pass.
//! Source: Pillow, `Image.resize` with `Resampling.BILINEAR` (triangle filter, support 1) and `Resampling.BICUBIC` (Keys'
//! filter with a = -0.5, support 2). Compared with Pillow 10, which always resizes rows before columns; Pillow 13 swaps the passes for some shapes, so that
//! a pixel may differ by one level.

use image::RgbImage;

/// Fraction bits of a weight: an accumulator of 32 bits holds 8 bits of pixel and 2 of headroom.
const PRECISION: u32 = 32 - 8 - 2;

/// How the pixels near a place are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The triangle.
    Bilinear,
    /// Keys' cubic.
    Bicubic,
}

impl Filter {
    /// How far it reaches, in pixels of the smaller image.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The weight at a distance within the support.
    fn weight(self, distance: f64) -> f64 {
        const A: f64 = -0.5;
        let x = distance.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

/// Resizes to exactly `width` x `height`.
pub fn resize(rgb: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let transposed_pass = |rgb: &RgbImage, width| transposed_pass(rgb, width, filter);
    let horizontal = if rgb.width() == width { rgb.clone() } else { transposed_pass(rgb, width) };
    // Each pass transposes the image.
    match (rgb.width() == width, rgb.height() == height) {
        (true, true) => horizontal,
        (false, true) => transpose(&horizontal),
        (true, false) => transposed_pass(&transpose(&horizontal), height),
        (false, false) => transposed_pass(&horizontal, height),
    }
}

/// The picture with its longer side at most so long.
pub fn fitted(rgb: RgbImage, longest: u32) -> RgbImage {
    let (width, height) = rgb.dimensions();
    let side = width.max(height);
    if side <= longest {
        return rgb;
    }
    let scaled = |length: u32| (u64::from(length) * u64::from(longest)).div_ceil(side.into()).max(1) as u32;
    resize(&rgb, scaled(width), scaled(height), Filter::Bicubic)
}

/// Resizes so that the shorter side is `size`; the longer one is truncated to an integer, as in torchvision.
pub fn shorter_side(rgb: &RgbImage, size: u32, filter: Filter) -> RgbImage {
    let (width, height) = rgb.dimensions();
    let longer = |long: u32, short: u32| (u64::from(size) * u64::from(long) / u64::from(short)) as u32;
    if width <= height {
        resize(rgb, size, longer(height, width), filter)
    } else {
        resize(rgb, longer(width, height), size, filter)
    }
}

/// The input pixels of one output pixel: the first of them, and their weights in fixed point.
struct Taps {
    start: usize,
    weights: Vec<i32>,
}

fn taps(from: u32, to: u32, filter: Filter) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    // Shrinking widens the filter so that every input pixel contributes; enlarging interpolates.
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    let tap = |i: u32| {
        let center = (f64::from(i) + 0.5) * scale;
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from as usize);
        let weight = |x: usize| filter.weight((x as f64 - center + 0.5) / widening);
        let total: f64 = (start..end).map(weight).sum();
        let fixed = |weight: f64| (0.5_f64.copysign(weight) + weight * f64::from(1 << PRECISION)) as i32;
        Taps { start, weights: (start..end).map(|x| fixed(weight(x) / total)).collect() }
    };
    (0..to).map(tap).collect()
}

/// Resizes each row to `width` and writes it as a column.
fn transposed_pass(rgb: &RgbImage, width: u32, filter: Filter) -> RgbImage {
    let taps = taps(rgb.width(), width, filter);
    let mut out = RgbImage::new(rgb.height(), width);
    for (y, row) in rgb.as_raw().chunks_exact(3 * rgb.width() as usize).enumerate() {
        for (x, tap) in taps.iter().enumerate() {
            let mut sum = [1i32 << (PRECISION - 1); 3]; // half, so that the shift rounds
            for (pixel, weight) in row[3 * tap.start..].chunks_exact(3).zip(&tap.weights) {
                for (sum, &value) in sum.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * weight;
                }
            }
            out[(y as u32, x as u32)].0 = sum.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8);
        }
    }
    out
}

fn transpose(rgb: &RgbImage) -> RgbImage {
    RgbImage::from_fn(rgb.height(), rgb.width(), |x, y| rgb[(y, x)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn a_constant_image_stays_constant() {
        let rgb = RgbImage::from_pixel(13, 9, Rgb([7, 128, 255]));
        for (width, height) in [(1, 1), (13, 4), (40, 9), (29, 31)] {
            for filter in [Filter::Bilinear, Filter::Bicubic] {
                let out = resize(&rgb, width, height, filter);
                assert_eq!(out.dimensions(), (width, height));
                assert!(out.pixels().all(|pixel| pixel.0 == [7, 128, 255]));
            }
        }
    }

    #[test]
    fn weights_sum_to_one() {
        for (from, to) in [(640, 171), (3, 17), (500, 128), (5, 5)] {
            for tap in
                [Filter::Bilinear, Filter::Bicubic].into_iter().flat_map(|filter| taps(from, to, filter))
            {
                let sum: i32 = tap.weights.iter().sum();
                assert!((sum - (1 << PRECISION)).unsigned_abs() as usize <= tap.weights.len());
            }
        }
    }

    #[test]
    fn the_longer_side_is_truncated_not_rounded() {
        let size = |w, h| shorter_side(&RgbImage::new(w, h), 128, Filter::Bilinear).dimensions();
        assert_eq!(size(640, 480), (170, 128)); // 170.67
        assert_eq!(size(480, 640), (128, 170));
        assert_eq!(size(64, 64), (128, 128));
    }
}
