//! Convolutions of 3 x 3 on a CPU with a quarter of the products; see [`attrflow_kernels::winograd`].

use std::cell::RefCell;
use std::rc::Rc;

use attrflow_kernels::winograd;
use tch::{Device, Kind, Tensor};

use super::cpu::{values, values_mut};
use super::{channels_last, plain};
use crate::models::autograd::with_gradient;

/// Places where a tile and a filter meet.
const PLACES: i64 = (winograd::POINTS * winograd::POINTS) as i64;

/// Numbers of a layer's transformed filters at most (32 MiB). They are four times those of the filters: of the widest layers of Stable
/// Diffusion they would take more memory than the network.
const NUMBERS: usize = 1 << 23;

/// Tiles at once: few enough that their transforms stay in the cache, enough for products to be fast.
const TILES: usize = 256;

/// Tiles of all images below which it is not worth it: the transformed filters are read for too few of them.
const FEWEST: usize = 64;

/// A convolution's filters, transformed when they are first needed.
#[derive(Default)]
pub struct Filters {
    /// Those of the convolution.
    own: Transformed,
    /// Those of the convolution that takes a gradient back from the outputs to the inputs.
    back: Rc<Transformed>,
}

/// Matrices [36, I, O], and the version of the filters that they are of.
#[derive(Default)]
struct Transformed(RefCell<Option<(u64, Tensor)>>);

impl Filters {
    /// The convolution of x [B, I, H, W] with `weight` [O, I, 3, 3], a border of zeros and a bias [O]: [B, O, H, W]. Where x wants a
    /// gradient, it gets one that is computed in the same way.
    ///
    /// `version` is another number whenever the weight has changed. `None` for what is not served.
    pub fn convolve(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, version: u64) -> Option<Tensor> {
        let images = x.detach();
        if !serves(&images, weight) || !plain(&[Some(&images), Some(weight)], &[Some(bias)]) {
            return None;
        }
        let y = self.own.apply(&images, bias, version, || transform(weight));
        let (back, weight) = (self.back.clone(), weight.shallow_clone());
        Some(with_gradient(x, y, move |gradient| {
            let none = Tensor::zeros([weight.size()[1]], (Kind::Float, Device::Cpu));
            let turned = || transform(&weight.flip([2, 3]).transpose(0, 1));
            back.apply(&channels_last(gradient), &none, version, turned)
        }))
    }
}

/// Whether tiles of these images [B, I, H, W] pay with filters [O, I, 3, 3].
fn serves(x: &Tensor, weight: &Tensor) -> bool {
    let Ok((rows, inputs, height, width)) = x.size4() else { return false };
    let [rows, h, w, i, o] = [rows, height, width, inputs, weight.size()[0]].map(|size| size as usize);
    // One thread: libtorch splits its own convolutions over several better than this would.
    x.device() == Device::Cpu
        && x.kind() == Kind::Float
        && tch::get_num_threads() == 1
        && rows * h * w >= FEWEST * winograd::TILE.pow(2)
        && PLACES as usize * i * o <= NUMBERS
        && winograd::fits(h, w, i, o)
}

impl Transformed {
    /// The convolution of images [B, I, H, W] plus a bias [O], by the matrices that `transform` makes when the version is new.
    fn apply(&self, x: &Tensor, bias: &Tensor, version: u64, transform: impl Fn() -> Tensor) -> Tensor {
        let [rows, inputs, height, width] = [0, 1, 2, 3].map(|axis| x.size()[axis]);
        let outputs = bias.size()[0];
        let [h, w, i, o] = [height, width, inputs, outputs].map(|size| size as usize);
        let mut kept = self.0.borrow_mut();
        let filters = match &*kept {
            Some((known, filters)) if *known == version => filters,
            _ => &kept.insert((version, transform())).1,
        };
        let out = super::empty_image([rows, outputs, height, width], x);
        let tiles = h / winograd::TILE * (w / winograd::TILE);
        let at_once = TILES.div_ceil(tiles).min(rows as usize);
        let room = |channels: i64| {
            Tensor::empty([PLACES, (at_once * tiles) as i64, channels], (Kind::Float, Device::Cpu))
        };
        let (mut cut, mut products) = (room(inputs), room(outputs));
        let (from, to) =
            (values(x).chunks(at_once * h * w * i), values_mut(&out).chunks_mut(at_once * h * w * o));
        for (from, to) in from.zip(to) {
            let count = (from.len() / i / winograd::TILE.pow(2)) as i64;
            if cut.size()[1] != count {
                // The last ones are fewer.
                (cut, products) =
                    (cut.narrow(1, 0, count).empty_like(), products.narrow(1, 0, count).empty_like());
            }
            winograd::cut(from, [h, w, i], values_mut(&cut));
            let _ = cut.bmm_out(&products, filters); // [36, tiles, O]
            winograd::join(values(&products), values(bias), [h, w], to);
        }
        out
    }
}

/// Filters [O, I, 3, 3] as matrices [36, I, O] for the places of a tile, computed in float64.
fn transform(weight: &Tensor) -> Tensor {
    let g = Tensor::from_slice(winograd::filter_transform().as_flattened()).view([-1, 3]);
    let tiles = g.matmul(&weight.to_kind(Kind::Double)).matmul(&g.transpose(0, 1)); // [O, I, 6, 6]
    let [outputs, inputs] = [weight.size()[0], weight.size()[1]];
    tiles.permute([2, 3, 1, 0]).to_kind(Kind::Float).contiguous().view([PLACES, inputs, outputs])
}
