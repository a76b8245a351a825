//! Convolutions with a window of 3 x 3 by Winograd's minimal filtering, F(2 x 2, 3 x 3).
//!
//! A tile of 2 x 2 outputs takes 16 products a pair of channels instead of 36 (Lavin and Gray 2015, arXiv 1509.09308). The tiles'
//! transforms are here; the products between them are 16 ordinary ones of matrices, for which there are libraries. Rounding
//! is that of float32 sums in another order.

use multiversion::multiversion;

/// Channels that are transformed at once: a vector of the widest kind.
const LANES: usize = 16;

type Lane = [f32; LANES];

/// Whether images of these sizes can be cut into tiles.
pub fn fits(height: usize, width: usize, inputs: usize, outputs: usize) -> bool {
    height.is_multiple_of(2)
        && width.is_multiple_of(2)
        && inputs.is_multiple_of(LANES)
        && outputs.is_multiple_of(LANES)
}

/// Images [n, H, W, C] with a border of zeros as the transforms of their tiles [16, n * H/2 * W/2, C].
///
/// # Panics
/// If the lengths do not fit each other.
#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
pub fn cut(images: &[f32], [height, width, channels]: [usize; 3], out: &mut [f32]) {
    let tiles = images.len() / channels / 4;
    assert_eq!(out.len(), 16 * tiles * channels, "room for the tiles");
    let (across, down) = (width / 2, height / 2);
    for tile in 0..tiles {
        let (image, y, x) = (tile / (across * down), tile / across % down * 2, tile % across * 2);
        for c in (0..channels).step_by(LANES) {
            let mut d = [[0.0; LANES]; 16];
            for i in 0..4 {
                for j in 0..4 {
                    // The tile begins a row and a column before its outputs; beyond the image are zeros.
                    let (y, x) = (y + i, x + j);
                    if (1..=height).contains(&y) && (1..=width).contains(&x) {
                        let at = ((image * height + y - 1) * width + x - 1) * channels + c;
                        d[4 * i + j].copy_from_slice(&images[at..at + LANES]);
                    }
                }
            }
            let mut t = [[0.0; LANES]; 16];
            for j in 0..4 {
                let column = input([d[j], d[4 + j], d[8 + j], d[12 + j]]);
                for (i, value) in column.into_iter().enumerate() {
                    t[4 * i + j] = value;
                }
            }
            for i in 0..4 {
                let row = input([t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]]);
                for (j, value) in row.iter().enumerate() {
                    let at = ((4 * i + j) * tiles + tile) * channels + c;
                    out[at..at + LANES].copy_from_slice(value);
                }
            }
        }
    }
}

/// The products of transforms [16, tiles, C] as images [n, H, W, C], with a bias a channel.
///
/// # Panics
/// If the lengths do not fit each other.
#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
pub fn join(products: &[f32], bias: &[f32], [height, width]: [usize; 2], out: &mut [f32]) {
    let channels = bias.len();
    let tiles = products.len() / channels / 16;
    assert_eq!(out.len(), 4 * tiles * channels, "room for the images");
    let (across, down) = (width / 2, height / 2);
    for tile in 0..tiles {
        let (image, y, x) = (tile / (across * down), tile / across % down * 2, tile % across * 2);
        for c in (0..channels).step_by(LANES) {
            let mut m = [[0.0; LANES]; 16];
            for (place, m) in m.iter_mut().enumerate() {
                let at = (place * tiles + tile) * channels + c;
                m.copy_from_slice(&products[at..at + LANES]);
            }
            let mut t = [[0.0; LANES]; 8];
            for j in 0..4 {
                [t[j], t[4 + j]] = output([m[j], m[4 + j], m[8 + j], m[12 + j]]);
            }
            for i in 0..2 {
                let row = output([t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]]);
                for (j, value) in row.iter().enumerate() {
                    let at = ((image * height + y + i) * width + x + j) * channels + c;
                    for ((out, value), bias) in
                        out[at..at + LANES].iter_mut().zip(value).zip(&bias[c..c + LANES])
                    {
                        *out = value + bias;
                    }
                }
            }
        }
    }
}

/// Four inputs to the four places where they meet the filter.
#[inline(always)]
fn input([a, b, c, d]: [Lane; 4]) -> [Lane; 4] {
    [minus(a, c), plus(b, c), minus(c, b), minus(b, d)]
}

/// Four products to the two outputs.
#[inline(always)]
fn output([a, b, c, d]: [Lane; 4]) -> [Lane; 2] {
    [plus(plus(a, b), c), minus(minus(b, c), d)]
}

#[inline(always)]
fn plus(mut a: Lane, b: Lane) -> Lane {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
    a
}

#[inline(always)]
fn minus(mut a: Lane, b: Lane) -> Lane {
    for (a, b) in a.iter_mut().zip(b) {
        *a -= b;
    }
    a
}
