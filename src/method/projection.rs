//! Random projections of per-sample gradients, without making the gradient where the projection allows it.
//!
//! For a linear map with inputs X [S, I] and output gradients D [S, O], the gradient is G = D^T X. A Kronecker product of two small
//! matrices keeps (P_O kron P_I) vec(G) = P_O G P_I^T = (D P_O^T)^T (X P_I^T), as in LoGra (Choe et al. 2024, arXiv 2405.13954),
//! with random matrices or, as there, with leading eigenvectors. With entries N(0, 1/k), inner products are kept on average.
//! Shapes: S tokens or positions, I inputs, O outputs, k what is kept of a parameter, M parameters.

use std::collections::BTreeMap;
use std::ops::Range;

use attrflow_engine::choice;
use tch::{Device, Tensor};

use super::ekfac::Eigenbasis;
use super::error::MathError;
use super::noise::{Generator, derived_seed};
use super::per_sample;
use crate::models::tape::LayerRecord;

choice! {
    /// What is kept of a gradient.
    pub enum Projection {
        /// All of it.
        None = "none",
        /// Its product with a Kronecker product of two random matrices for each parameter. The gradient is never made.
        Kronecker = "kronecker",
        /// Its product with one random matrix for each parameter.
        Dense = "dense",
        /// As `kronecker`, with the leading eigenvectors of the layer's covariances in place of random matrices.
        Eigen = "eigen",
    }
}

/// How a parameter's gradient is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// As it is: so many numbers.
    Whole(usize),
    /// k_O x k_I numbers.
    Kronecker(usize, usize),
    /// k numbers.
    Dense(usize),
}

impl Kept {
    /// How many numbers are kept.
    pub fn width(self) -> usize {
        match self {
            Kept::Whole(width) | Kept::Dense(width) => width,
            Kept::Kronecker(outputs, inputs) => outputs * inputs,
        }
    }
}

/// How each parameter's gradient is kept, from the parameters' shapes: `dim` numbers in all, as many of each.
///
/// A parameter without two axes (a bias, a normalisation) gets a dense projection of its own where others get a Kronecker product.
///
/// # Errors
/// There are fewer than one number for each parameter.
pub fn kept(shapes: &[Vec<usize>], projection: Projection, dim: usize) -> Result<Vec<Kept>, MathError> {
    let each = dim / shapes.len().max(1);
    if each == 0 && projection != Projection::None {
        let rule = format!("expected at least {}, one for each of the selected weights", shapes.len());
        return Err(MathError::parameter("projection_dim", dim, rule));
    }
    let of = |shape: &Vec<usize>| match projection {
        Projection::None => Kept::Whole(shape.iter().product()),
        Projection::Kronecker | Projection::Eigen if shape.len() > 1 => {
            let (outputs, inputs) = factors(each);
            // A matrix has no more eigenvectors; of random ones, more only make less noise.
            match projection {
                Projection::Eigen => {
                    Kept::Kronecker(outputs.min(shape[0]), inputs.min(shape[1..].iter().product()))
                }
                _ => Kept::Kronecker(outputs, inputs),
            }
        }
        Projection::Kronecker | Projection::Eigen | Projection::Dense => Kept::Dense(each),
    };
    Ok(shapes.iter().map(of).collect())
}

/// Two numbers with the largest product up to `most` of those of which one is at most twice the other; the smaller one first.
fn factors(most: usize) -> (usize, usize) {
    let pairs = (1..=most.isqrt()).map(|small| (small, (most / small).min(2 * small)));
    pairs.max_by_key(|(small, large)| (small * large, *small)).unwrap_or((1, 1))
}

/// The matrices of a projection of one parameter's gradient.
#[derive(Debug)]
pub enum Map {
    /// None: the gradient as it is.
    Whole,
    /// P_O [k_O, O] and P_I [k_I, I]; for a convolution, I counts the numbers in a window.
    Kronecker(Tensor, Tensor),
    /// [k, numbers in the parameter].
    Dense(Tensor),
}

/// Consecutive rows of a pass through the network, as many for each of some consecutive images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The images, by their rows in the result.
    pub images: Range<usize>,
    /// Their pairs of image and caption, by their places in the pass.
    pub pairs: Range<usize>,
}

/// Numbers of whole gradients that are made at once (256 MiB).
const AT_ONCE: usize = 1 << 26;

/// Projects the gradients of chosen parameters into one row for each image.
pub struct Projector {
    /// By parameter: its matrices, and where its numbers stand in a row.
    maps: BTreeMap<String, (Map, Range<usize>)>,
    width: usize,
}

impl Projector {
    /// Draws the matrices for parameters of these names and shapes, each from a seed of its own, by `seed` and name.
    ///
    /// The numbers of a row are those of the parameters by ascending name.
    ///
    /// # Errors
    /// As [`kept`].
    pub fn drawn(
        parameters: &BTreeMap<String, Vec<usize>>,
        projection: Projection,
        dim: usize,
        seed: u32,
        device: Device,
    ) -> Result<Projector, MathError> {
        let shapes: Vec<Vec<usize>> = parameters.values().cloned().collect();
        let of = |((name, shape), kept): ((&String, &Vec<usize>), Kept)| {
            let draw = |side: i64, [rows, columns]: [usize; 2]| {
                let seed = derived_seed(&format!("projection of {name}"), &[seed.into(), side]);
                let drawn = Generator::seeded(seed).normal(&[rows as i64, columns as i64], Device::Cpu);
                (drawn / (rows as f64).sqrt()).to_device(device)
            };
            let map = match kept {
                Kept::Whole(_) => Map::Whole,
                Kept::Kronecker(outputs, inputs) => Map::Kronecker(
                    draw(0, [outputs, shape[0]]),
                    draw(1, [inputs, shape[1..].iter().product()]),
                ),
                Kept::Dense(width) => Map::Dense(draw(0, [width, shape.iter().product()])),
            };
            (name.clone(), (map, kept.width()))
        };
        let kept = kept(&shapes, projection, dim)?;
        Ok(Self::new(parameters.iter().zip(kept).map(of).collect()))
    }

    /// Projects onto the leading eigenvectors of each layer, from the basis of EK-FAC.
    ///
    /// # Errors
    /// As [`kept`]; or a parameter is no weight of a linear layer, or its layer has no eigenvectors, or those of other sizes.
    pub fn leading(
        parameters: &BTreeMap<String, Vec<usize>>,
        dim: usize,
        basis: &Eigenbasis,
    ) -> Result<Projector, MathError> {
        let shapes: Vec<Vec<usize>> = parameters.values().cloned().collect();
        let mut maps = BTreeMap::new();
        for ((name, shape), kept) in parameters.iter().zip(kept(&shapes, Projection::Eigen, dim)?) {
            let found = name.strip_suffix(".weight").and_then(|layer| basis.of(layer));
            let (Kept::Kronecker(outputs, inputs), Some([activation, gradient])) = (kept, found) else {
                return Err(MathError::NoFisher { parameter: name.clone() });
            };
            let widths = [activation, gradient].map(|vectors| vectors.size()[0] as usize);
            let expected = [shape[1..].iter().product(), shape[0]];
            if widths != expected {
                let [found, expected] =
                    [widths, expected].map(|sizes| sizes.map(|size| size as i64).to_vec());
                return Err(MathError::FisherShape { parameter: name.clone(), found, expected });
            }
            let first = |vectors: &Tensor, count: usize| vectors.narrow(1, 0, count as i64).tr();
            let map = Map::Kronecker(first(gradient, outputs), first(activation, inputs));
            maps.insert(name.clone(), (map, kept.width()));
        }
        Ok(Self::new(maps))
    }

    /// A projection by given matrices, each with the number of values that it keeps.
    pub fn new(maps: BTreeMap<String, (Map, usize)>) -> Projector {
        let mut end = 0;
        let mut placed = BTreeMap::new();
        for (name, (map, width)) in maps {
            placed.insert(name, (map, end..end + width));
            end += width;
        }
        Projector { maps: placed, width: end }
    }

    /// The numbers in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Adds the projected gradients of a layer's chosen parameters, of the groups of a pass, to the rows of `sum` [images, width].
    ///
    /// The pass has `pairs` conditions. `gradient` is that at the layer's output, [B, ..] or, where rows share keys and values,
    /// [pairs, ..]: summed over the rows of a condition.
    pub fn add(&self, record: &LayerRecord, gradient: &Tensor, groups: &[Group], pairs: usize, sum: &Tensor) {
        let rows = gradient.size()[0] as usize / pairs; // of each pair
        for group in groups {
            let most = self.images_at_once(record, group.images.len());
            let each = group.pairs.len() / group.images.len();
            for start in group.images.clone().step_by(most) {
                let images = start..group.images.end.min(start + most);
                let first = group.pairs.start + (start - group.images.start) * each;
                let [input, gradient] = [&record.input, gradient]
                    .map(|x| x.narrow(0, (first * rows) as i64, (images.len() * each * rows) as i64));
                let images = [images.start as i64, images.len() as i64];
                self.add_images(record, [&input, &gradient], images, sum);
            }
        }
    }

    /// How many images' gradients of a layer may be made at once.
    fn images_at_once(&self, record: &LayerRecord, images: usize) -> usize {
        let numbers = match self.maps.get(&format!("{}.weight", record.layer)) {
            Some((Map::Whole, place)) => place.len(),
            Some((Map::Dense(matrix), _)) => matrix.size()[1] as usize,
            Some((Map::Kronecker(..), _)) | None => return images,
        };
        (AT_ONCE / numbers.max(1)).clamp(1, images)
    }

    /// The same for images with as many rows each, whose rows are all that is given.
    fn add_images(
        &self,
        record: &LayerRecord,
        [input, gradient]: [&Tensor; 2],
        [first, images]: [i64; 2],
        sum: &Tensor,
    ) {
        let put = |name: String, of: &dyn Fn(&Map) -> Tensor| {
            let Some((map, place)) = self.maps.get(&name) else { return };
            let mut own = sum.narrow(0, first, images).narrow(1, place.start as i64, place.len() as i64);
            own += of(map).reshape([images, -1]);
        };
        if record.weight {
            put(format!("{}.weight", record.layer), &|map| {
                let tokens = per_sample::tokens(record.op, input, gradient);
                match (tokens, map) {
                    (Some([x, d]), Map::Kronecker(outputs, inputs)) => {
                        let (x, d) = (x.matmul(&inputs.tr()), d.matmul(&outputs.tr()));
                        grouped(&d, images).transpose(1, 2).bmm(&grouped(&x, images)) // [images, k_O, k_I]
                    }
                    (Some([x, d]), map) => {
                        dense(map, &grouped(&d, images).transpose(1, 2).bmm(&grouped(&x, images)))
                    }
                    (None, map) => {
                        let each = per_sample::weight(record.op, input, gradient);
                        dense(map, &summed(&each, images))
                    }
                }
            });
        }
        if record.bias {
            let each = per_sample::bias(record.op, gradient);
            put(format!("{}.bias", record.layer), &|map| dense(map, &summed(&each, images)));
        }
    }
}

/// A map's product with whole gradients [images, ..]: [images, k].
fn dense(map: &Map, gradients: &Tensor) -> Tensor {
    let flat = gradients.flatten(1, -1);
    match map {
        Map::Whole => flat,
        Map::Dense(matrix) => flat.matmul(&matrix.tr()),
        Map::Kronecker(outputs, inputs) => {
            let matrices = flat.reshape([-1, outputs.size()[1], inputs.size()[1]]);
            outputs.matmul(&matrices).matmul(&inputs.tr())
        }
    }
}

/// The tokens [B, S, ·] of each image's rows as those of one: [images, B/images S, ·].
fn grouped(x: &Tensor, images: i64) -> Tensor {
    x.reshape([images, -1, x.size()[2]])
}

/// The sum of [B, ..] over the rows of each image: [images, ..].
fn summed(x: &Tensor, images: i64) -> Tensor {
    let shape = [&[images, -1], &x.size()[1..]].concat();
    x.reshape(shape.as_slice()).sum_dim_intlist(1, false, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_factors_fill_what_a_matrix_gets() {
        assert_eq!(
            [128, 127, 1, 2, 3, 292].map(factors),
            [(8, 16), (9, 14), (1, 1), (1, 2), (1, 2), (17, 17)]
        );
        for most in 1..2000 {
            let (small, large) = factors(most);
            assert!(small <= large && large <= 2 * small && small * large <= most);
            assert!(5 * small * large >= 3 * most, "{most}: {small} x {large}");
        }
    }

    #[test]
    fn each_parameter_keeps_as_many_numbers() {
        let shapes = [vec![64, 48], vec![64], vec![8, 4, 3, 3]];
        let of = |projection, dim| kept(&shapes, projection, dim);
        let widths = |kept: Vec<Kept>| kept.into_iter().map(Kept::width).collect::<Vec<_>>();
        assert_eq!(widths(of(Projection::None, 1).unwrap()), [3072, 64, 288]);
        let kronecker = of(Projection::Kronecker, 384).unwrap();
        assert_eq!(kronecker, [Kept::Kronecker(8, 16), Kept::Dense(128), Kept::Kronecker(8, 16)]);
        assert_eq!(widths(of(Projection::Dense, 300).unwrap()), [100, 100, 100]);
        let error = of(Projection::Dense, 2).unwrap_err().to_string();
        assert_eq!(error, "`projection_dim` is 2: expected at least 3, one for each of the selected weights");
    }
}
