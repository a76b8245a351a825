//! One backward pass over rows: for each chosen layer, its input and the gradient at its output of every row by itself.
//!
//! Per-sample gradients of its parameters are contractions of the two (`per_sample`). Shapes: B rows, K conditions.

use tch::{Kind, Tensor};

use super::diffusion_loss::{DenoisingRows, check};
use super::error::MathError;
use super::schedule::NoiseSchedule;
use super::selection::Selection;
use crate::models::tape::LayerRecord;
use crate::models::unet::UNet;

/// What is differentiated: one number for each row.
pub enum Quantity<'a> {
    /// The row's loss.
    Loss,
    /// The mean over C, H, W of the squared prediction, which D-TRAK (Zheng et al. 2024) takes in place of the loss.
    Output,
    /// The prediction times given numbers [B, C, H, W], standard normal ones, scaled so that the mean of the squared gradients is
    /// the diagonal of the Gauss-Newton matrix of the losses: a loss w mean(r^2) of d errors r has the Hessian 2 w / d in them.
    Sampled(&'a Tensor),
}

impl Quantity<'_> {
    /// [B].
    fn of(&self, unet: &UNet, schedule: &NoiseSchedule, rows: &DenoisingRows) -> Tensor {
        let mean = |x: &Tensor| x.mean_dim([1i64, 2, 3].as_slice(), false, None);
        match self {
            Quantity::Loss => rows.losses(unet, schedule),
            Quantity::Output => mean(&rows.predictions(unet, schedule).square()),
            Quantity::Sampled(draws) => {
                let values = rows.predictions(unet, schedule); // [B, C, H, W]
                let count = (values.numel() / rows.len()) as f64;
                // The mean over the d errors, times sqrt(2 d w): sqrt(2 w / d) for each.
                let weights =
                    schedule.weigh(rows.timesteps.ones_like().to_kind(Kind::Float), &rows.timesteps);
                mean(&(values * *draws)) * (weights * 2.0 * count).sqrt()
            }
        }
    }
}

/// The chosen layers' records, and the gradients at their outputs of the sum of the rows' quantities.
///
/// A row's own gradient is in its own place of a layer's output, [B, ..]. Where the keys and values of K < B conditions are shared by
/// rows, theirs are [K, ..]: the sum over the rows of each condition. `place` tells a row's image and timestep, for an error.
///
/// # Errors
/// A quantity is not finite.
pub fn layer_gradients(
    unet: &UNet,
    schedule: &NoiseSchedule,
    rows: &DenoisingRows,
    selection: &Selection,
    quantity: &Quantity<'_>,
    place: impl Fn(usize) -> (usize, i64),
) -> Result<Vec<(LayerRecord, Tensor)>, MathError> {
    let chosen = selection.clone();
    unet.tape().record(move |name| chosen.matches(name));
    let values = tch::with_grad(|| quantity.of(unet, schedule, rows)); // [B]
    let records = unet.tape().take();
    check(&values, place)?;
    let outputs: Vec<&Tensor> = records.iter().map(|record| &record.output).collect();
    // Each row's output depends on that row alone, so the gradient of the sum holds every row's own.
    let gradients = Tensor::run_backward(&[values.sum(Kind::Float)], &outputs, false, false);
    Ok(records.into_iter().zip(gradients).collect())
}
