//! Steps between products, fused: each reads its input once and writes its output once.
//!
//! Built of libtorch's own operations, a normalisation with its activation goes through memory five times, and on a
//! GPU images whose channels lie together are copied to another layout and back. Here are kernels for exactly these steps:
//! on the CPU for float32, on CUDA for float32 and bfloat16. They keep no graph, so what needs a gradient, is recorded,
//! or has a form that they do not know, goes the way of libtorch's operations, which is also what tests hold them to.
//!
//! Images are [B, C, H, W] with the channels lying together in memory (channels-last).

mod cpu;
mod cuda;
mod winograd;

use tch::{Device, Kind, Tensor};

pub use winograd::Filters;

/// One image, or two whose channels follow each other.
#[derive(Clone, Copy)]
pub struct Joined<'a> {
    /// [B, C1, H, W].
    pub first: &'a Tensor,
    /// [B, C2, H, W].
    pub second: Option<&'a Tensor>,
}

impl Joined<'_> {
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

/// Whether the tensors' channels lie together and nothing asks for their gradients.
fn plain<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    tensors.into_iter().all(|tensor| {
        let served = match tensor.device() {
            Device::Cpu => tensor.kind() == Kind::Float,
            Device::Cuda(_) => matches!(tensor.kind(), Kind::Float | Kind::BFloat16),
            _ => false,
        };
        served && !tensor.requires_grad() && lies_together(tensor)
    })
}

fn lies_together(tensor: &Tensor) -> bool {
    match tensor.dim() {
        4 => tensor.permute([0, 2, 3, 1]).is_contiguous(),
        _ => tensor.is_contiguous(),
    }
}

/// The normalised image [B, C, H, W]; `None` for what the kernels do not do.
pub fn group_norm(norm: &GroupNorm<'_>, x: &Joined<'_>) -> Option<Tensor> {
    let given = [Some(x.first), x.second, norm.shift, Some(norm.weight), Some(norm.bias)];
    if !plain(given.into_iter().flatten()) {
        return None;
    }
    let (rows, _, height, width) = x.first.size4().ok()?;
    let out = empty_image([rows, x.channels(), height, width], x.first);
    match x.first.device() {
        Device::Cpu => cpu::group_norm(norm, x, &out),
        _ => cuda::group_norm(norm, x, &out)?,
    }
    Some(out)
}

/// `x += branch + bias` in place, where a branch is given, and the normalised sum [.., C]; `None` for what the kernels do not
/// do, with x as it was.
pub fn layer_norm(norm: &LayerNorm<'_>, x: &Tensor, branch: Option<&Tensor>) -> Option<Tensor> {
    let given = [Some(x), branch, norm.branch_bias, Some(norm.weight), Some(norm.bias)];
    if !plain(given.into_iter().flatten()) {
        return None;
    }
    let out = x.empty_like();
    match x.device() {
        Device::Cpu => cpu::layer_norm(norm, x, branch, &out),
        _ => cuda::layer_norm(norm, x, branch, &out)?,
    }
    Some(out)
}

/// The first half [.., W] of `both` [.., 2W] times the gelu of the second; `None` for what the kernels do not do.
pub fn gated_gelu(both: &Tensor) -> Option<Tensor> {
    if !plain([both]) {
        return None;
    }
    let mut size = both.size();
    *size.last_mut()? /= 2;
    let out = Tensor::empty(&size, (both.kind(), both.device()));
    match both.device() {
        Device::Cpu => cpu::gated_gelu(both, &out),
        _ => cuda::gated_gelu(both, &out)?,
    }
    Some(out)
}

/// `y += x + bias` in place for images [B, C, H, W] and a bias [C]; `None`, with y as it was, for what the kernels do not do.
pub fn add(x: &Tensor, bias: &Tensor, y: &Tensor) -> Option<()> {
    if !plain([x, bias, y]) {
        return None;
    }
    match y.device() {
        Device::Cpu => cpu::add(x, bias, y),
        _ => cuda::add(x, bias, y)?,
    }
    Some(())
}

/// `sums` [..] (float64) grows by the squares of `values` [n, ..], sample by sample.
pub fn add_squares(values: &Tensor, sums: &Tensor) {
    let fits = sums.kind() == Kind::Double && sums.is_contiguous() && values.is_contiguous();
    if values.device() == Device::Cpu && values.kind() == Kind::Float && fits {
        cpu::add_squares(values, sums);
    } else {
        // Widened as it is added, not before: that would be a copy of twice the size.
        let mut sums = sums.shallow_clone();
        sums += values.square().sum_dim_intlist(0, false, Kind::Double);
    }
}

/// Room for an image of this shape, its channels lying together, of the type and device of another.
fn empty_image([rows, channels, height, width]: [i64; 4], like: &Tensor) -> Tensor {
    Tensor::empty([rows, height, width, channels], (like.kind(), like.device())).permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests;
