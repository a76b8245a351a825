//! Loops over channels that lie together, compiled for the widest vectors that the processor has.
//!
//! They are the steps between the products of a network, fused: each reads its input once and writes its output once.
//! A crate of its own, so that they are optimised in test builds too, where they would take longest.

pub mod philox;
pub mod winograd;

use multiversion::multiversion;
use rayon::prelude::*;

/// Values that are worth a task of their own where there are several threads.
const GRAIN: usize = 1 << 14;

/// Does something with blocks of whole rows of `out`, given a block's first row: side by side if `parallel`.
fn in_blocks(out: &mut [f32], len: usize, parallel: bool, what: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = (GRAIN / len.max(1)).max(1);
    let blocks = |(number, block): (usize, &mut [f32])| what(number * rows, block);
    if parallel {
        out.par_chunks_mut(len * rows).enumerate().for_each(blocks);
    } else {
        out.chunks_mut(len * rows).enumerate().for_each(blocks);
    }
}

/// What follows a normalisation: a factor and a summand a channel.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// [C].
    pub weight: &'a [f32],
    /// [C].
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// Images whose channels are those of `first` [B, S, C1], then those of `second` [B, S, C2].
#[derive(Clone, Copy, Debug)]
pub struct ConcatInput<'a> {
    /// The values and C1.
    pub first: (&'a [f32], usize),
    /// The values and C2, which may be none.
    pub second: (&'a [f32], usize),
}

/// `out` [B, S, C] becomes the norm of `x + shift` over groups of channels, with `silu` times its sigmoid.
///
/// `shift` is [K, C]; row b gets row b % K.
///
/// # Panics
/// If the lengths do not fit each other.
#[expect(clippy::too_many_arguments, reason = "the operands of one step")]
pub fn group_norm(
    x: ConcatInput<'_>,
    shift: Option<&[f32]>,
    affine: Affine<'_>,
    groups: usize,
    silu: bool,
    positions: usize,
    parallel: bool,
    out: &mut [f32],
) {
    let channels = affine.weight.len();
    let len = positions * channels;
    in_blocks(out, len, parallel, |start, block| {
        for (row, out) in (start..).zip(block.chunks_exact_mut(len)) {
            for ((values, width), at) in [(x.first, 0), (x.second, x.first.1)] {
                if width > 0 {
                    let from = &values[row * positions * width..(row + 1) * positions * width];
                    for (from, out) in from.chunks_exact(width).zip(out.chunks_exact_mut(channels)) {
                        out[at..at + width].copy_from_slice(from);
                    }
                }
            }
            let shift = shift.map(|shift| {
                let row = row % (shift.len() / channels);
                &shift[row * channels..(row + 1) * channels]
            });
            normalise_groups(out, shift, affine, groups, silu);
        }
    });
}

/// One image [S, C], in place: mean and variance by group in two passes, as exact as they can be had.
#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
fn normalise_groups<'a>(
    image: &mut [f32],
    shift: Option<&'a [f32]>,
    affine: Affine<'a>,
    groups: usize,
    silu: bool,
) {
    let channels = affine.weight.len();
    let (each, count) = (channels / groups, (image.len() / groups) as f32);
    // Sums by channel, then by group; at the end scale and zero by channel.
    let (mut sums, mut center) = (vec![0.0f32; channels], vec![0.0f32; channels]);
    let by_group = |sums: &[f32], out: &mut [f32], last: &dyn Fn(f32) -> f32| {
        for (sums, out) in sums.chunks_exact(each).zip(out.chunks_exact_mut(each)) {
            out.fill(last(sums.iter().sum::<f32>() / count));
        }
    };
    for position in image.chunks_exact_mut(channels) {
        if let Some(shift) = shift {
            for (x, shift) in position.iter_mut().zip(shift) {
                *x += shift;
            }
        }
        for (sum, x) in sums.iter_mut().zip(&*position) {
            *sum += x;
        }
    }
    by_group(&sums, &mut center, &|mean| mean);
    sums.fill(0.0);
    for position in image.chunks_exact(channels) {
        for ((sum, x), center) in sums.iter_mut().zip(position).zip(&center) {
            *sum += (x - center) * (x - center);
        }
    }
    let mut scale = vec![0.0f32; channels];
    by_group(&sums, &mut scale, &|variance| 1.0 / (variance + affine.eps).sqrt());
    for (((scale, center), weight), bias) in
        scale.iter_mut().zip(&mut center).zip(affine.weight).zip(affine.bias)
    {
        *scale *= weight;
        *center = bias - *center * *scale;
    }
    for position in image.chunks_exact_mut(channels) {
        if silu {
            for ((x, scale), zero) in position.iter_mut().zip(&scale).zip(&center) {
                let y = *x * scale + zero;
                *x = y / (1.0 + exp(-y));
            }
        } else {
            for ((x, scale), zero) in position.iter_mut().zip(&scale).zip(&center) {
                *x = *x * scale + zero;
            }
        }
    }
}

/// `out` [R, C] becomes the norm of each row of `x`.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn layer_norm(x: &[f32], affine: Affine<'_>, parallel: bool, out: &mut [f32]) {
    let channels = affine.weight.len();
    in_blocks(out, channels, parallel, |start, block| {
        let at = start * channels;
        normalise_rows(&x[at..at + block.len()], affine, block);
    });
}

/// Rows [R, C], each normalised by itself.
#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
fn normalise_rows<'a>(x: &'a [f32], affine: Affine<'a>, out: &mut [f32]) {
    let channels = affine.weight.len();
    for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
        let mean = sum(x.iter().copied()) / channels as f32;
        let variance = sum(x.iter().map(|x| (x - mean) * (x - mean))) / channels as f32;
        let scale = 1.0 / (variance + affine.eps).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(affine.weight).zip(affine.bias) {
            *out = (x - mean) * scale * weight + bias;
        }
    }
}

/// A sum in sixteen parts, which the compiler may keep in vectors; one part alone would fix the order of all additions.
#[inline(always)]
fn sum(values: impl ExactSizeIterator<Item = f32>) -> f32 {
    let mut parts = [0.0f32; 16];
    for (index, value) in values.enumerate() {
        parts[index % 16] += value;
    }
    parts.iter().sum()
}

/// `out` [R, W] becomes the first half of each row of `both` [R, 2W] times the gelu of the second.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn gated_gelu(both: &[f32], width: usize, parallel: bool, out: &mut [f32]) {
    in_blocks(out, width, parallel, |start, block| {
        let at = 2 * start * width;
        gate_rows(&both[at..at + 2 * block.len()], block, width);
    });
}

#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
fn gate_rows(both: &[f32], out: &mut [f32], width: usize) {
    for (both, out) in both.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
        let (values, gates) = both.split_at(width);
        for ((out, value), gate) in out.iter_mut().zip(values).zip(gates) {
            *out = value * (0.5 * gate * (1.0 + erf(gate * std::f32::consts::FRAC_1_SQRT_2)));
        }
    }
}

/// `y += x + bias` for rows of as many values as the bias has; without one for all.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn add(x: &[f32], bias: Option<&[f32]>, parallel: bool, y: &mut [f32]) {
    in_blocks(y, bias.map_or(GRAIN, <[f32]>::len), parallel, |start, block| {
        let at = start * bias.map_or(GRAIN, <[f32]>::len);
        let x = &x[at..at + block.len()];
        match bias {
            None => sum_into(x, block),
            Some(bias) => sum_with_bias_into(x, bias, block),
        }
    });
}

/// `sums` [P] grows by the squares of all samples' `values` [n, P].
///
/// # Panics
/// If the lengths do not fit each other.
pub fn add_squares(values: &[f32], parallel: bool, sums: &mut [f64]) {
    let len = sums.len();
    // A stretch of the sums stays in the nearest cache while all samples are added to it.
    const STRETCH: usize = 2048;
    let stretch = |(number, sums): (usize, &mut [f64])| {
        let at = number * STRETCH;
        for sample in values.chunks_exact(len) {
            squares_into(&sample[at..at + sums.len()], sums);
        }
    };
    if parallel {
        sums.par_chunks_mut(STRETCH).enumerate().for_each(stretch);
    } else {
        sums.chunks_mut(STRETCH).enumerate().for_each(stretch);
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
fn squares_into(values: &[f32], sums: &mut [f64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        let value = f64::from(*value);
        *sum += value * value;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
fn sum_into(x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
fn sum_with_bias_into(x: &[f32], bias: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks_exact(bias.len()).zip(y.chunks_exact_mut(bias.len())) {
        for ((y, x), bias) in y.iter_mut().zip(x).zip(bias) {
            *y += x + bias;
        }
    }
}

/// e^x to a rounding or two, 0 and infinity beyond the range: 2^n times a polynomial of what is left of x.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and taking away this rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = x.clamp(-87.3, 88.7);
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    // Taylor's series: r is at most ln(2) / 2, so the first term left out is 1e-8 of the sum.
    let p = 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    p * f32::from_bits(((n as i32 + 127) as u32) << 23)
}

/// The error function, by the minimax rational approximation that is usual in float32 (odd over even, |x| up to 4).
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let y = x * x;
    let p = -2.726_142_3e-10;
    let p = p * y + 2.770_681_4e-8;
    let p = p * y - 2.101_024e-6;
    let p = p * y - 5.692_506_5e-5;
    let p = p * y - 7.349_906_3e-4;
    let p = p * y - 2.954_6e-3;
    let p = p * y - 1.609_603_3e-2;
    let q = -1.456_607_2e-5;
    let q = q * y - 2.133_740_6e-4;
    let q = q * y - 1.682_827e-3;
    let q = q * y - 7.373_329_2e-3;
    let q = q * y - 1.426_474e-2;
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_and_erf_are_right_to_rounding() {
        for i in -2000..2000 {
            let x = i as f32 / 25.0;
            let (found, expected) = (exp(x), x.exp());
            assert!((found - expected).abs() <= 3e-7 * expected, "exp({x}) = {found}, expected {expected}");
            let x = i as f32 / 400.0;
            let (found, expected) = (erf(x), erf_by_series(x.into()) as f32);
            assert!((found - expected).abs() <= 4e-7, "erf({x}) = {found}, expected {expected}");
        }
    }

    /// Taylor's series in float64, good for |x| < 5.
    fn erf_by_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }
}
