//! Gradients of each sample from one backward pass over a batch.
//!
//! For a layer with input x and gradient g at its output, the parameters' gradient of sample b depends on x_b and
//! g_b alone: for a linear map it is g_b^T x_b. Goodfellow 2015 (arXiv 1510.01799) for linear layers, Rochette et
//! al. 2019 (arXiv 1912.06015) for convolutions. Shapes: B samples, S tokens, P positions, I inputs, O outputs.

use std::convert::Infallible;

use tch::{Device, Kind, Tensor};

use crate::models::kernels::add_squares;
use crate::models::tape::{LayerRecord, Op};

/// Numbers that per-sample gradients may hold at once on a GPU, so that memory doesn't grow with the batch (768 MiB).
const AT_ONCE: usize = 1 << 26;

/// The same on a CPU (16 MiB): enough for products to be fast, few enough to be in the cache still when they are squared.
const AT_ONCE_CPU: usize = 1 << 22;

/// The gradients of a layer's chosen parameters, by full name: [B, ..] with the parameter's shape after B.
///
/// `grad` is the gradient at the record's output of the *sum* of the samples' losses. Input and output must have the
/// samples along their first dimension.
pub fn gradients(record: &LayerRecord, input: &Tensor, grad: &Tensor) -> Vec<(String, Tensor)> {
    let mut found = Vec::new();
    if record.weight {
        found.push((format!("{}.weight", record.layer), weight(record.op, input, grad)));
    }
    if record.bias {
        found.push((format!("{}.bias", record.layer), bias(record.op, grad)));
    }
    found
}

/// How many samples' gradients of so many numbers to hold at once.
pub(super) fn room(device: Device, numbers: usize) -> i64 {
    let room = if device == Device::Cpu { AT_ONCE_CPU } else { AT_ONCE };
    ((room / numbers.max(1)) as i64).max(1)
}

/// Calls `each` with the gradients of a few samples at once, by full name, and the place of the first of them. What is kept of them
/// is up to it: all samples' would take more memory than the network does.
///
/// # Errors
/// Those of `each`.
///
/// # Panics
/// Samples share an input: there are fewer inputs than gradients.
pub fn in_chunks<E>(
    record: &LayerRecord,
    grad: &Tensor,
    mut each: impl FnMut(i64, Vec<(String, Tensor)>) -> Result<(), E>,
) -> Result<(), E> {
    let samples = grad.size()[0];
    assert_eq!(record.input.size()[0], samples, "{}: each sample needs an input of its own", record.layer);
    let mut start = 0;
    // The first sample alone tells how large a gradient is.
    let mut at_once = 1;
    while start < samples {
        let count = at_once.min(samples - start);
        let found = gradients(record, &record.input.narrow(0, start, count), &grad.narrow(0, start, count));
        let size: usize = found.iter().map(|(_, gradient)| gradient.numel() / count as usize).sum();
        at_once = room(grad.device(), size);
        each(start, found)?;
        start += count;
    }
    Ok(())
}

/// The sums over samples of the squared gradients, in float64, by full name.
pub fn sums_of_squares(record: &LayerRecord, grad: &Tensor) -> Vec<(String, Tensor)> {
    let mut sums: Vec<(String, Tensor)> = Vec::new();
    let summed = in_chunks(record, grad, |_, found| {
        for (index, (name, gradient)) in found.into_iter().enumerate() {
            if sums.len() == index {
                sums.push((name, Tensor::zeros(&gradient.size()[1..], (Kind::Double, gradient.device()))));
            }
            add_squares(&gradient, &sums[index].1);
        }
        Ok::<_, Infallible>(())
    });
    match summed {
        Ok(()) => sums,
    }
}

/// The gradients of a layer's weight: [B, ..] with its shape after B; see [`gradients`].
pub(super) fn weight(op: Op, x: &Tensor, g: &Tensor) -> Tensor {
    match op {
        Op::Linear if g.dim() == 2 => g.unsqueeze(2) * x.unsqueeze(1), // [B, O, I]
        Op::Linear => g.transpose(1, 2).bmm(x),                        // [B, O, S] [B, S, I]
        Op::Pointwise => g.transpose(1, 2).bmm(x).unsqueeze(-1).unsqueeze(-1), // [B, O, I, 1, 1]
        Op::Conv2d { kernel, stride, padding } => {
            let windows = x.im2col([kernel; 2], [1, 1], [padding; 2], [stride; 2]); // [B, I*k*k, P]
            let gradient = g.flatten(2, 3).bmm(&windows.transpose(1, 2)); // [B, O, I*k*k]
            let (samples, outputs) = (g.size()[0], g.size()[1]);
            gradient.view([samples, outputs, x.size()[1], kernel, kernel])
        }
        Op::GroupNorm { groups, eps } => {
            let normal = x.group_norm(groups, None::<&Tensor>, None::<&Tensor>, eps, true); // [B, C, H, W]
            (g * normal).sum_dim_intlist([2i64, 3].as_slice(), false, None) // [B, C]
        }
        Op::LayerNorm { eps } => {
            let width = x.size()[x.dim() - 1];
            over_tokens(&(g * x.layer_norm([width], None::<&Tensor>, None::<&Tensor>, eps, true)))
        }
    }
}

/// The gradients of a layer's bias: [B, O].
pub(super) fn bias(op: Op, g: &Tensor) -> Tensor {
    match op {
        Op::Linear | Op::Pointwise | Op::LayerNorm { .. } => over_tokens(g),
        Op::Conv2d { .. } | Op::GroupNorm { .. } => g.sum_dim_intlist([2i64, 3].as_slice(), false, None),
    }
}

/// Inputs [B, S, I] and output gradients [B, S, O] of a layer that is a linear map of tokens or windows; none for a normalisation.
pub(super) fn tokens(op: Op, x: &Tensor, g: &Tensor) -> Option<[Tensor; 2]> {
    match op {
        Op::Linear if g.dim() == 2 => Some([x.unsqueeze(1), g.unsqueeze(1)]),
        Op::Linear | Op::Pointwise => Some([x.shallow_clone(), g.shallow_clone()]),
        Op::Conv2d { kernel, stride, padding } => {
            let windows = x.im2col([kernel; 2], [1, 1], [padding; 2], [stride; 2]); // [B, I*k*k, P]
            Some([windows.transpose(1, 2), g.flatten(2, 3).transpose(1, 2)])
        }
        Op::GroupNorm { .. } | Op::LayerNorm { .. } => None,
    }
}

/// Sums [B, S, O] over S; [B, O] stays.
fn over_tokens(g: &Tensor) -> Tensor {
    if g.dim() == 2 { g.shallow_clone() } else { g.sum_dim_intlist(1, false, None) }
}
