//! Low-rank adapters (LoRA) kept as layers of their own: a layer's output plus `s B A x`.
//!
//! Hu et al. 2021 (arXiv 2106.09685), with the names of the PEFT library. Shapes: I inputs, O outputs, rank r.

use tch::Tensor;

use super::tape::{Op, Place, Tape};
use super::weights::Scope;

/// The two maps of low rank beside a layer.
pub(super) struct Adapter {
    /// A [r, I] or [r, I, k, k], and its place.
    down: (Tensor, Place),
    /// B [O, r] or [O, r, 1, 1], and its place.
    up: (Tensor, Place),
    scale: f64,
}

impl Adapter {
    /// Takes `lora_A.weight` and `lora_B.weight` of the layer at `scope`, if it has them.
    pub fn new(scope: &Scope<'_>, tape: &Tape) -> Option<Adapter> {
        let scale = scope.adapter_scale()?;
        let of = |name| {
            let scope = scope.sub(name);
            (scope.take_any("weight"), Place::new(&scope, tape, false))
        };
        Some(Adapter { down: of("lora_A"), up: of("lora_B"), scale })
    }

    /// A layer's output and what its adapter, if it has one, adds.
    pub fn add(adapter: Option<&Adapter>, output: Tensor, added: impl FnOnce(&Adapter) -> Tensor) -> Tensor {
        match adapter {
            Some(adapter) => output + added(adapter) * adapter.scale,
            None => output,
        }
    }

    /// [.., I] to [.., O], for a linear map or a 1x1 convolution of tokens.
    pub fn linear(&self, op: Op, x: &Tensor) -> Tensor {
        [&self.down, &self.up].into_iter().fold(x.shallow_clone(), |x, (weight, place)| {
            let op = if weight.dim() == 4 { Op::Pointwise } else { op };
            place.observe(op, &x, x.linear(&weight.flatten(1, -1), None::<&Tensor>))
        })
    }

    /// [B, I, H, W] to [B, O, H', W'], for the convolution `op`.
    pub fn conv2d(&self, op: Op, x: &Tensor) -> Tensor {
        const POINT: Op = Op::Conv2d { kernel: 1, stride: 1, padding: 0 };
        [(&self.down, op), (&self.up, POINT)].into_iter().fold(
            x.shallow_clone(),
            |x, ((weight, place), op)| {
                let Op::Conv2d { stride, padding, .. } = op else { unreachable!("{op:?} is no convolution") };
                let y = x.conv2d(weight, None::<&Tensor>, [stride; 2], [padding; 2], [1, 1], 1);
                place.observe(op, &x, y)
            },
        )
    }
}
