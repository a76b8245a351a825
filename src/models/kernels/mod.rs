//! Fused kernels for the operations between matrix products: each reads its input once and writes its output once.
//!
//! With libtorch's own operations a normalisation with its activation reads and writes memory five times, and on a
//! GPU channels-last images are copied to another layout and back. These kernels work on the CPU in float32 and on CUDA
//! in float32 and bfloat16, without gradients but for [`Filters`]. Everything else falls back to libtorch's operations; tests compare both.
//!
//! Images are [B, C, H, W] in channels-last memory format.

mod cpu;
mod cuda;
mod dense;
mod linear;
#[cfg(test)]
mod tests;
mod winograd;

use super::profile::{Part, span};
use tch::{Device, Kind, Tensor};

pub use attrflow_kernels::philox::Place;
pub use dense::Matrix;
pub use linear::linear;
pub use winograd::Filters;

/// One image, or two that are concatenated along the channels.
#[derive(Clone, Copy)]
pub struct ConcatInput<'a> {
    /// [B, C1, H, W].
    pub first: &'a Tensor,
    /// [B, C2, H, W].
    pub second: Option<&'a Tensor>,
}

impl ConcatInput<'_> {
    /// The channels of both.
    pub fn channels(&self) -> i64 {
        self.first.size()[1] + self.second.map_or(0, |second| second.size()[1])
    }

    /// Both as one tensor [B, C1 + C2, H, W].
    pub fn cat(&self) -> Tensor {
        match self.second {
            Some(second) => Tensor::cat(&[self.first, second], 1),
            None => self.first.shallow_clone(),
        }
    }
}

/// `act(norm(x + shift))` over groups of channels.
pub struct GroupNorm<'a> {
    /// [C], float32.
    pub weight: &'a Tensor,
    /// [C], float32.
    pub bias: &'a Tensor,
    /// Groups of channels.
    pub groups: i64,
    /// Added to the variance.
    pub eps: f64,
    /// [K, C], of x's type: row b gets row b % K.
    pub shift: Option<&'a Tensor>,
    /// Whether x * sigmoid(x) follows.
    pub silu: bool,
}

/// Normalisation over the last dimension.
pub struct LayerNorm<'a> {
    /// [C], float32.
    pub weight: &'a Tensor,
    /// [C], float32.
    pub bias: &'a Tensor,
    /// Added to the variance.
    pub eps: f64,
    /// [C], float32: added together with the branch.
    pub branch_bias: Option<&'a Tensor>,
}

/// Whether activations are channels-last, nothing requires a gradient, activations have one type and parameters are
/// float32, and all are on one device.
fn plain<'a>(activations: &[Option<&'a Tensor>], parameters: &[Option<&'a Tensor>]) -> bool {
    let (activations, parameters) = (activations.iter().flatten(), parameters.iter().flatten());
    let Some(first) = activations.clone().next() else { return false };
    let one_type = activations.clone().all(|tensor| tensor.kind() == first.kind())
        && parameters.clone().all(|tensor| tensor.kind() == Kind::Float);
    one_type
        && activations.chain(parameters).all(|tensor| {
            let served = match tensor.device() {
                Device::Cpu => tensor.kind() == Kind::Float,
                Device::Cuda(_) => matches!(tensor.kind(), Kind::Float | Kind::BFloat16),
                _ => false,
            };
            served && tensor.device() == first.device() && !tensor.requires_grad() && lies_together(tensor)
        })
}

fn lies_together(tensor: &Tensor) -> bool {
    match tensor.dim() {
        4 => tensor.permute([0, 2, 3, 1]).is_contiguous(),
        _ => tensor.is_contiguous(),
    }
}

/// The normalised image [B, C, H, W]; `None` for cases without a kernel.
pub fn group_norm(norm: &GroupNorm<'_>, x: &ConcatInput<'_>) -> Option<Tensor> {
    if !plain(&[Some(x.first), x.second, norm.shift], &[Some(norm.weight), Some(norm.bias)]) {
        return None;
    }
    let (rows, _, height, width) = x.first.size4().ok()?;
    let channels = x.channels();
    let beside = x
        .second
        .is_none_or(|second| second.size4().is_ok_and(|(r, _, h, w)| (r, h, w) == (rows, height, width)));
    let fits = [norm.weight, norm.bias].iter().all(|tensor| tensor.size() == [channels])
        && norm.shift.is_none_or(|shift| shift.dim() == 2 && shift.size()[1] == channels);
    assert!(
        beside && fits && channels % norm.groups == 0,
        "a group norm of tensors that do not fit each other"
    );
    let out = empty_image([rows, x.channels(), height, width], x.first);
    span(Part::GroupNorm, x.first.device(), || match x.first.device() {
        Device::Cpu => {
            cpu::group_norm(norm, x, &out);
            Some(())
        }
        _ => cuda::group_norm(norm, x, &out),
    })?;
    Some(out)
}

/// `x += branch + bias` in place, where a branch is given, and the normalised sum [.., C]; `None` for cases without
/// a kernel, with x unchanged.
pub fn layer_norm(norm: &LayerNorm<'_>, x: &Tensor, branch: Option<&Tensor>) -> Option<Tensor> {
    if !plain(&[Some(x), branch], &[norm.branch_bias, Some(norm.weight), Some(norm.bias)]) {
        return None;
    }
    let width = x.size().last().copied();
    let fits = [Some(norm.weight), Some(norm.bias), norm.branch_bias]
        .iter()
        .flatten()
        .all(|tensor| tensor.dim() == 1 && Some(tensor.size()[0]) == width);
    let beside = branch.is_none_or(|branch| branch.size() == x.size() && branch.data_ptr() != x.data_ptr());
    assert!(fits && beside, "a layer norm of tensors that do not fit each other");
    let out = x.empty_like();
    span(Part::LayerNorm, x.device(), || match x.device() {
        Device::Cpu => {
            cpu::layer_norm(norm, x, branch, &out);
            Some(())
        }
        _ => cuda::layer_norm(norm, x, branch, &out),
    })?;
    Some(out)
}

/// The first half [.., W] of `both` [.., 2W] times the gelu of the second; `None` for cases without a kernel.
pub fn gated_gelu(both: &Tensor) -> Option<Tensor> {
    if !plain(&[Some(both)], &[]) {
        return None;
    }
    let mut size = both.size();
    *size.last_mut()? /= 2;
    let out = Tensor::empty(&size, (both.kind(), both.device()));
    span(Part::GatedGelu, both.device(), || match both.device() {
        Device::Cpu => {
            cpu::gated_gelu(both, &out);
            Some(())
        }
        _ => cuda::gated_gelu(both, &out),
    })?;
    Some(out)
}

/// `y += x + bias` in place for images [B, C, H, W] and a bias [C]; `None`, with y unchanged, for cases without a kernel.
pub fn add(x: &Tensor, bias: &Tensor, y: &Tensor) -> Option<()> {
    if !plain(&[Some(x), Some(y)], &[Some(bias)]) {
        return None;
    }
    let fits = x.size() == y.size() && x.size().get(1) == bias.size().first() && x.data_ptr() != y.data_ptr();
    assert!(fits, "a sum of tensors that do not fit each other");
    span(Part::Sum, y.device(), || match y.device() {
        Device::Cpu => {
            cpu::add(x, bias, y);
            Some(())
        }
        _ => cuda::add(x, bias, y),
    })
}

/// Normal numbers by place, float32 [places, count] on `device`: the same bits on every device. See [`attrflow_kernels::philox`].
pub fn philox_normals(key: [u32; 2], places: &[Place], count: usize, device: Device) -> Tensor {
    let shape = [places.len() as i64, count as i64];
    if device.is_cuda() {
        let out = Tensor::empty(shape, (Kind::Float, device));
        if cuda::philox_normals(key, places, &out).is_some() {
            return out;
        }
    }
    let out = Tensor::empty(shape, (Kind::Float, Device::Cpu));
    cpu::philox_normals(key, places, &out);
    out.to_device(device)
}

/// `sums` [..] (float64) grows by the squares of `values` [n, ..], sample by sample.
pub fn add_squares(values: &Tensor, sums: &Tensor) {
    let fits = sums.kind() == Kind::Double && sums.is_contiguous() && values.is_contiguous();
    if values.device() == Device::Cpu && values.kind() == Kind::Float && fits {
        cpu::add_squares(values, sums);
    } else {
        // Converted as it is added: converting first would be a copy of twice the size.
        let mut sums = sums.shallow_clone();
        sums += values.square().sum_dim_intlist(0, false, Kind::Double);
    }
}

/// Images [B, C, H, W] in channels-last memory format: the same memory if they are.
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// An uninitialised channels-last image of this shape, with the type and device of another.
fn empty_image([rows, channels, height, width]: [i64; 4], like: &Tensor) -> Tensor {
    Tensor::empty([rows, height, width, channels], (like.kind(), like.device())).permute([0, 3, 1, 2])
}
