//! AdamW with clipped gradients, in float32 and in the order of torch's operations.
//!
//! Loshchilov and Hutter 2019 (arXiv 1711.05101); clipping and defaults as in diffusers' training scripts.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use tch::{Kind, Tensor};

use super::{LrScheduler, TrainParams};

/// Means of gradients and of squared gradients, by parameter.
pub type Moments = BTreeMap<String, [Tensor; 2]>;

/// The optimiser.
#[derive(Default)]
pub struct AdamW {
    /// Empty before the first step.
    pub moments: Moments,
    /// Steps without a row, which moved nothing.
    pub skipped: usize,
}

impl AdamW {
    /// One step; returns the moved parameters, and the norm of the gradient before it is scaled.
    pub fn step(
        &mut self,
        params: &TrainParams,
        step: usize,
        lr: f64,
        names: &[String],
        parameters: &BTreeMap<String, Tensor>,
        gradient: &BTreeMap<String, Tensor>,
    ) -> (BTreeMap<String, Tensor>, f64) {
        let TrainParams { adam_beta1: beta1, adam_beta2: beta2, adam_epsilon, adam_weight_decay, .. } =
            params;
        let norms: Vec<Tensor> = names.iter().map(|name| gradient[name].norm()).collect();
        let norm = Tensor::stack(&norms, 0).norm();
        let scale = (params.max_grad_norm / (&norm + 1e-6)).clamp_max(1.0);
        let count = (step + 1 - self.skipped) as f64;
        let (bias1, bias2) = (1.0 - beta1.powf(count), 1.0 - beta2.powf(count));
        let moved = names.iter().map(|name| {
            let grad = &gradient[name] * &scale;
            let [mean, square] =
                self.moments.entry(name.clone()).or_insert_with(|| [grad.zeros_like(), grad.zeros_like()]);
            let _ = mean.lerp_(&grad, 1.0 - beta1);
            *square *= *beta2;
            *square += &grad * (1.0 - beta2) * &grad;
            let root = square.sqrt() / bias2.sqrt() + *adam_epsilon;
            let kept = &parameters[name] * (1.0 - lr * adam_weight_decay);
            (name.clone(), kept - &*mean * (lr / bias1) / root)
        });
        (moved.collect(), norm.to_kind(Kind::Double).double_value(&[]))
    }

    /// A copy of what it knows.
    pub fn copy(&self) -> Moments {
        let copy = |[mean, square]: &[Tensor; 2]| [mean.copy(), square.copy()];
        self.moments.iter().map(|(name, moments)| (name.clone(), copy(moments))).collect()
    }
}

/// Moves the mean of weights towards the weights after update `count`, from 0: by at least one part in `1 / (1 - most)`, and by more
/// in the beginning.
pub fn average(
    mean: &mut BTreeMap<String, Tensor>,
    weights: &BTreeMap<String, Tensor>,
    most: f64,
    count: usize,
) {
    let decay = most.min((1 + count) as f64 / (10 + count) as f64);
    for (name, mean) in mean {
        *mean += (&weights[name] - &*mean) * (1.0 - decay);
    }
}

/// The learning rate of a step, from 0.
pub fn learning_rate(params: &TrainParams, step: usize) -> f64 {
    let warm = match params.lr_warmup_steps {
        0 => 1.0,
        steps => ((step + 1) as f64 / steps as f64).min(1.0),
    };
    let rest = match params.lr_scheduler {
        LrScheduler::Constant => 1.0,
        LrScheduler::Cosine => {
            let done = step as f64 / params.steps as f64;
            (0.5 * (1.0 + (PI * done).cos())).max(params.lr_min)
        }
    };
    params.lr * warm * rest
}
