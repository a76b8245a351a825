//! Convolutions with a window of 3 x 3 by Winograd's minimal filtering, F(4 x 4, 3 x 3).
//!
//! A tile of 4 x 4 outputs takes 36 products a pair of channels instead of 144 (Lavin and Gray 2015, arXiv 1509.09308). The tiles'
//! transforms are here; the products between them are 36 ordinary ones of matrices, for which there are libraries.
//!
//! The filter and the tile are polynomials that meet at six points: 0, the positive and negative of `P` and `Q`, and infinity. With the
//! usual 1/2, 1 and 2, rounding errors are twice as large; with these they are two or three times those of a direct convolution.

use multiversion::multiversion;

/// Channels that are transformed at once: a vector of the widest kind.
const LANES: usize = 16;

/// Outputs of a tile along each side.
pub const TILE: usize = 4;
/// Points along each side, and inputs of a tile.
pub const POINTS: usize = 6;

const P: f32 = 0.7;
const Q: f32 = 1.5;

type Lane = [f32; LANES];

/// Whether images of these sizes can be cut into tiles.
pub fn fits(height: usize, width: usize, inputs: usize, outputs: usize) -> bool {
    height.is_multiple_of(TILE)
        && width.is_multiple_of(TILE)
        && inputs.is_multiple_of(LANES)
        && outputs.is_multiple_of(LANES)
}

/// The matrix [6, 3] that takes a filter's rows, or columns, to the six points.
pub fn filter_transform() -> [[f64; 3]; POINTS] {
    let (p, q) = (f64::from(P), f64::from(Q));
    let [pp, qq] = [p * p, q * q];
    let at = |x: f64, others: f64| [1.0, x, x * x].map(|power| power / others);
    let (of_p, of_q) = (2.0 * pp * (pp - qq), 2.0 * qq * (qq - pp));
    [at(0.0, pp * qq), at(p, of_p), at(-p, of_p), at(q, of_q), at(-q, of_q), [0.0, 0.0, 1.0]]
}

/// Images [n, H, W, C] with a border of zeros as the transforms of their tiles [36, n * H/4 * W/4, C].
///
/// # Panics
/// If the lengths do not fit each other.
#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
pub fn cut(images: &[f32], [height, width, channels]: [usize; 3], out: &mut [f32]) {
    let tiles = images.len() / channels / (TILE * TILE);
    assert_eq!(out.len(), POINTS * POINTS * tiles * channels, "room for the tiles");
    let (across, down) = (width / TILE, height / TILE);
    for tile in 0..tiles {
        let (image, y, x) = (tile / (across * down), tile / across % down * TILE, tile % across * TILE);
        for c in (0..channels).step_by(LANES) {
            let mut t = [[0.0; LANES]; POINTS * POINTS];
            for j in 0..POINTS {
                let mut column = [[0.0; LANES]; POINTS];
                // The tile begins a row and a column before its outputs; beyond the image are zeros.
                if (1..=width).contains(&(x + j)) {
                    for (i, d) in column.iter_mut().enumerate() {
                        if (1..=height).contains(&(y + i)) {
                            let at = ((image * height + y + i - 1) * width + x + j - 1) * channels + c;
                            d.copy_from_slice(&images[at..at + LANES]);
                        }
                    }
                }
                for (i, value) in input(column).into_iter().enumerate() {
                    t[POINTS * i + j] = value;
                }
            }
            for i in 0..POINTS {
                let row = input(std::array::from_fn(|j| t[POINTS * i + j]));
                for (j, value) in row.iter().enumerate() {
                    let at = ((POINTS * i + j) * tiles + tile) * channels + c;
                    out[at..at + LANES].copy_from_slice(value);
                }
            }
        }
    }
}

/// The products of transforms [36, tiles, C] as images [n, H, W, C], with a bias a channel.
///
/// # Panics
/// If the lengths do not fit each other.
#[multiversion(targets("x86_64+avx512f+avx512dq+fma", "x86_64+avx2+fma"))]
pub fn join(products: &[f32], bias: &[f32], [height, width]: [usize; 2], out: &mut [f32]) {
    let channels = bias.len();
    let tiles = products.len() / channels / (POINTS * POINTS);
    assert_eq!(out.len(), TILE * TILE * tiles * channels, "room for the images");
    let (across, down) = (width / TILE, height / TILE);
    for tile in 0..tiles {
        let (image, y, x) = (tile / (across * down), tile / across % down * TILE, tile % across * TILE);
        for c in (0..channels).step_by(LANES) {
            let mut t = [[0.0; LANES]; TILE * POINTS];
            for j in 0..POINTS {
                let mut column = [[0.0; LANES]; POINTS];
                for (i, m) in column.iter_mut().enumerate() {
                    let at = ((POINTS * i + j) * tiles + tile) * channels + c;
                    m.copy_from_slice(&products[at..at + LANES]);
                }
                for (i, value) in output(column).into_iter().enumerate() {
                    t[POINTS * i + j] = value;
                }
            }
            for i in 0..TILE {
                let row = output(std::array::from_fn(|j| t[POINTS * i + j]));
                for (j, value) in row.iter().enumerate() {
                    let at = ((image * height + y + i) * width + x + j) * channels + c;
                    let place = out[at..at + LANES].iter_mut();
                    for ((out, value), bias) in place.zip(value).zip(&bias[c..c + LANES]) {
                        *out = value + bias;
                    }
                }
            }
        }
    }
}

/// Six inputs to the six points where they meet the filter.
#[inline(always)]
fn input(d: [Lane; POINTS]) -> [Lane; POINTS] {
    const PP: f32 = P * P;
    const QQ: f32 = Q * Q;
    let mut out = [[0.0; LANES]; POINTS];
    for l in 0..LANES {
        let [a, b, c, d, e, f] = [d[0][l], d[1][l], d[2][l], d[3][l], d[4][l], d[5][l]];
        let (even_p, odd_p) = (e - QQ * c, P * (d - QQ * b));
        let (even_q, odd_q) = (e - PP * c, Q * (d - PP * b));
        out[0][l] = PP * QQ * a - (PP + QQ) * c + e;
        out[1][l] = even_p + odd_p;
        out[2][l] = even_p - odd_p;
        out[3][l] = even_q + odd_q;
        out[4][l] = even_q - odd_q;
        out[5][l] = PP * QQ * b - (PP + QQ) * d + f;
    }
    out
}

/// Six products to the four outputs.
#[inline(always)]
fn output(m: [Lane; POINTS]) -> [Lane; TILE] {
    let mut out = [[0.0; LANES]; TILE];
    for l in 0..LANES {
        let (plus_p, minus_p) = (m[1][l] + m[2][l], m[1][l] - m[2][l]);
        let (plus_q, minus_q) = (m[3][l] + m[4][l], m[3][l] - m[4][l]);
        out[0][l] = m[0][l] + plus_p + plus_q;
        out[1][l] = P * minus_p + Q * minus_q;
        out[2][l] = P * P * plus_p + Q * Q * plus_q;
        out[3][l] = P * P * P * minus_p + Q * Q * Q * minus_q + m[5][l];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a direct convolution in float64, at the border and between tiles.
    #[test]
    fn tiles_are_a_convolution() {
        let (n, height, width, inputs, outputs) = (2, 8, 12, 32, 16);
        assert!(fits(height, width, inputs, outputs) && !fits(10, width, inputs, outputs));
        let numbers = |count: usize, salt: f64| -> Vec<f32> {
            (0..count).map(|i| ((i as f64 * (0.7 + salt)).sin() + (i as f64 * 0.013).cos()) as f32).collect()
        };
        let images = numbers(n * height * width * inputs, 0.1);
        let (weight, bias) = (numbers(outputs * inputs * 9, 0.2), numbers(outputs, 0.3));
        let g = filter_transform();
        let tiles = n * height / TILE * width / TILE;
        let mut transformed = vec![0.0; POINTS * POINTS * tiles * inputs];
        cut(&images, [height, width, inputs], &mut transformed);
        let mut products = vec![0.0; POINTS * POINTS * tiles * outputs];
        for place in 0..POINTS * POINTS {
            let filter = |o: usize, i: usize| -> f64 {
                let tap = |y: usize, x: usize| {
                    g[place / POINTS][y]
                        * g[place % POINTS][x]
                        * f64::from(weight[((o * inputs + i) * 3 + y) * 3 + x])
                };
                (0..9).map(|at| tap(at / 3, at % 3)).sum()
            };
            for o in 0..outputs {
                let column: Vec<f64> = (0..inputs).map(|i| filter(o, i)).collect();
                for tile in 0..tiles {
                    let row = &transformed[(place * tiles + tile) * inputs..][..inputs];
                    let sum: f64 = row.iter().zip(&column).map(|(x, w)| f64::from(*x) * w).sum();
                    products[(place * tiles + tile) * outputs + o] = sum as f32;
                }
            }
        }
        let mut found = vec![0.0; n * height * width * outputs];
        join(&products, &bias, [height, width], &mut found);
        let (mut worst, mut largest) = (0.0f64, 0.0f64);
        for (at, found) in found.iter().enumerate() {
            let (o, x, y, image) = (
                at % outputs,
                at / outputs % width,
                at / outputs / width % height,
                at / outputs / width / height,
            );
            let mut expected = f64::from(bias[o]);
            for (dy, dx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
                let (yy, xx) = (y + dy, x + dx);
                if (1..=height).contains(&yy) && (1..=width).contains(&xx) {
                    for i in 0..inputs {
                        let value = images[((image * height + yy - 1) * width + xx - 1) * inputs + i];
                        expected +=
                            f64::from(value) * f64::from(weight[((o * inputs + i) * 3 + dy) * 3 + dx]);
                    }
                }
            }
            worst = worst.max((f64::from(*found) - expected).abs());
            largest = largest.max(expected.abs());
        }
        assert!(worst <= 2e-6 * largest, "{worst} of {largest}");
    }
}
