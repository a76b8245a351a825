//! The fused steps on a CPU, in float32: tensors as the slices that the loops take.

use attrflow_kernels as kernels;
use attrflow_kernels::Affine;
use tch::Tensor;

/// The values of a tensor on the CPU that is float32 and dense.
pub(super) fn values(tensor: &Tensor) -> &[f32] {
    // SAFETY: callers have checked type, device and density; the tensor keeps the memory while it is borrowed.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// The same, to be written.
#[expect(
    clippy::mut_from_ref,
    reason = "a tensor is a handle: what it leads to is written through any of them"
)]
pub(super) fn values_mut(tensor: &Tensor) -> &mut [f32] {
    // SAFETY: as above; callers hold no other slice of this tensor.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

/// Whether this process may use several threads.
fn parallel() -> bool {
    tch::get_num_threads() > 1
}

fn affine<'a>(weight: &'a Tensor, bias: &'a Tensor, eps: f64) -> Affine<'a> {
    Affine { weight: values(weight), bias: values(bias), eps: eps as f32 }
}

/// See [`super::group_norm`].
pub(super) fn group_norm(norm: &super::GroupNorm<'_>, x: &super::ConcatInput<'_>, out: &Tensor) {
    let part = |part: &'_ Tensor| part.size()[1] as usize;
    let joined = kernels::ConcatInput {
        first: (values(x.first), part(x.first)),
        second: x.second.map_or((&[], 0), |second| (values(second), part(second))),
    };
    let positions = x.first.size()[2..].iter().product::<i64>() as usize;
    let affine = affine(norm.weight, norm.bias, norm.eps);
    let (shift, groups) = (norm.shift.map(values), norm.groups as usize);
    kernels::group_norm(joined, shift, affine, groups, norm.silu, positions, parallel(), values_mut(out));
}

/// See [`super::layer_norm`].
pub(super) fn layer_norm(norm: &super::LayerNorm<'_>, x: &Tensor, branch: Option<&Tensor>, out: &Tensor) {
    if let Some(branch) = branch {
        kernels::add(values(branch), norm.branch_bias.map(values), parallel(), values_mut(x));
    }
    kernels::layer_norm(values(x), affine(norm.weight, norm.bias, norm.eps), parallel(), values_mut(out));
}

/// See [`super::gated_gelu`].
pub(super) fn gated_gelu(both: &Tensor, out: &Tensor) {
    let width = *out.size().last().expect("it has a last dimension") as usize;
    kernels::gated_gelu(values(both), width, parallel(), values_mut(out));
}

/// See [`super::add_squares`].
pub(super) fn add_squares(values_of: &Tensor, sums: &Tensor) {
    // SAFETY: the caller has checked type, device and density; nobody else holds the sums.
    let sums = unsafe { std::slice::from_raw_parts_mut(sums.data_ptr().cast(), sums.numel()) };
    kernels::add_squares(values(values_of), parallel(), sums);
}

/// See [`super::philox_normals`].
pub(super) fn philox_normals(key: [u32; 2], places: &[super::Place], out: &Tensor) {
    kernels::philox::normals(key, places, parallel(), values_mut(out));
}

/// See [`super::add`].
pub(super) fn add(x: &Tensor, bias: &Tensor, y: &Tensor) {
    kernels::add(values(x), Some(values(bias)), parallel(), values_mut(y));
}
