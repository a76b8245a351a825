//! The method at the size of the published experiment: a UNet of 57.37 M parameters with texts of 77 x 1024, and
//! random weights, against diffusers and torch (`tests/golden/make_real.py`).
//!
//! Weights and texts are drawn on both sides by one rule; the golden file holds digests (see [`Report::digest`]).

use std::collections::BTreeMap;

use attrflow::method::data::DataSet;
use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::fisher::{CaptionDraw, FisherParams, FisherPass, Weighting, squares};
use attrflow::method::influence::{Flips, influence, per_image, rank};
use attrflow::method::loss::LossPass;
use attrflow::method::noise::{Generator, Noise};
use attrflow::method::per_sample::gradients;
use attrflow::method::sample::sample;
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use attrflow::method::unlearn::Unlearning;
use attrflow::models::unet::UNet;
use attrflow::models::weights::Weights;
use tch::{Kind, Tensor};

use crate::golden::{Tensors, diagonal, error, load, loss_params, path, sample_params, unlearn_params};
use crate::ruled::{Report, check_weights, normal, weights};

pub const IMAGES: i64 = 3;
/// Images of the ranks alone, of which three say little.
const RANKED: i64 = 16;
pub const CAPTIONS: i64 = 5;
pub const TEXT: [i64; 2] = [77, 1024];
pub const LATENT: [i64; 3] = [4, 16, 16];
/// A step that no single weight's share of hides the others'.
pub const LR: f64 = 5e-9;
/// A step so large that the losses' rounding decides no rank.
const RANKED_LR: f64 = 8e-8;
/// Rows at once: fewer than the batches hold, so that these are cut.
const MICRO_BATCH: usize = 16;

/// `[first, rest..]`.
pub fn shape(first: &[i64], rest: &[i64]) -> Vec<i64> {
    [first, rest].concat()
}

/// The network, and the golden numbers.
pub fn network() -> (UNet, Tensors) {
    // Tests run beside each other: threads of several that share the cores mostly wait for each other.
    tch::set_num_threads(1);
    let (folder, expected) = (path("tests/golden/real"), load("real/expected"));
    let weights = weights(&folder);
    check_weights(&weights, &expected);
    let unet = UNet::new(&folder.join("config.json"), Weights::new(weights)).unwrap();
    assert_eq!(unet.parameters().values().map(Tensor::numel).sum::<usize>(), 57_373_316);
    (unet, expected)
}

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig::default())
}

pub fn data() -> (Tensor, Tensor) {
    let latents = normal(&shape(&[2 * IMAGES], &LATENT), 1);
    (latents, normal(&shape(&[IMAGES, CAPTIONS], &TEXT), 2).flatten(0, 1))
}

fn ignore(_: usize) {}

/// Every row's loss, [2N, captions, timesteps], and the images' means.
fn losses(unet: &UNet, noise: Noise) -> (Tensor, Vec<f32>) {
    let (schedule, (latents, texts)) = (schedule(), data());
    let data = DataSet::new(&latents, &texts, CAPTIONS as usize).unwrap();
    let seed = if noise == Noise::PerBatch { 30 } else { 7 };
    let params = loss_params(noise, 32, [2, 4], seed);
    let pass = LossPass::new(unet, &schedule, data, &params, MICRO_BATCH).unwrap();
    let batches = 0..params.batches(2 * IMAGES as usize);
    let rows: Vec<Tensor> = batches.map(|batch| pass.rows_of_batch(batch).unwrap()).collect();
    // With noise per batch the first one reaches over the flip boundary (after row 2), the second is not full.
    let sizes: &[i64] = if noise == Noise::PerBatch { &[4, 2] } else { &[6] };
    assert_eq!(rows.iter().map(|rows| rows.size()[0]).collect::<Vec<_>>(), sizes);
    let rows = Tensor::cat(&rows, 0);
    let means = rows.mean_dim(2, false, None).mean_dim(1, false, None);
    (rows, Vec::try_from(means).unwrap())
}

/// The gradients of two rows' losses by all parameters, each row's for itself.
fn row_gradients(unet: &UNet) -> [Tensors; 2] {
    let rows = DenoisingRows {
        latents: normal(&shape(&[2], &LATENT), 40),
        noise: normal(&shape(&[2], &LATENT), 41),
        timesteps: Tensor::from_slice(&[12i64, 700]),
        conditioning: normal(&shape(&[2], &TEXT), 42).into(),
    };
    unet.tape().record(|_| true);
    let losses = rows.losses(unet, &schedule());
    let records = unet.tape().take();
    let outputs: Vec<&Tensor> = records.iter().map(|record| &record.output).collect();
    let grads = Tensor::run_backward(&[losses.sum(Kind::Float)], &outputs, false, false);
    let of_record = |(record, grad)| tch::no_grad(|| gradients(record, &record.input, grad));
    let both: Tensors = records.iter().zip(&grads).flat_map(of_record).collect();
    [0, 1].map(|row| both.iter().map(|(name, both)| (name.clone(), both.get(row))).collect())
}

pub fn fisher(unet: &UNet, select: Selection) -> BTreeMap<String, Tensor> {
    let (schedule, (latents, texts)) = (schedule(), data());
    let data = DataSet::new(&latents, &texts, CAPTIONS as usize).unwrap();
    let (caption_draw, weighting) = (CaptionDraw::Batch, Weighting::Batch);
    let params = FisherParams {
        epochs: 1,
        batch_size: 4,
        seed: 3,
        caption_draw,
        weighting,
        select,
        ..FisherParams::default()
    };
    let pass =
        FisherPass { unet, schedule: &schedule, data, params: &params, micro_batch: MICRO_BATCH, joined: 1 };
    pass.sum(0..2, &squares, &mut ignore).unwrap().mean()
}

/// The ranked images' losses: batches of 12, 12 and 8 images, one caption, timestep 0.
fn ranked_losses(unet: &UNet) -> Vec<f32> {
    let latents = normal(&shape(&[2 * RANKED], &LATENT), 70);
    let texts = normal(&shape(&[RANKED], &TEXT), 71);
    let (schedule, data) = (schedule(), DataSet::new(&latents, &texts, 1).unwrap());
    let params = loss_params(Noise::PerBatch, 12, [1, 1], 80);
    let pass = LossPass::new(unet, &schedule, data, &params, MICRO_BATCH).unwrap();
    let rows = [0, 1, 2].map(|batch| pass.rows_of_batch(batch).unwrap().flatten(0, -1));
    Vec::try_from(Tensor::cat(&rows, 0)).unwrap()
}

/// The ranks after a large step. The golden script made sure that no rounding decides them.
fn ranks(unlearned: &[f32], pretrained: &[f32], expected: &Tensors, report: &mut Report) {
    for (key, losses) in [("ranked_pretrained", pretrained), ("ranked_unlearned", unlearned)] {
        report.tensor(key, &Tensor::from_slice(losses), &expected[key], 1e-5);
    }
    let rise = influence(unlearned, pretrained).unwrap();
    let (plain, flipped) = rise.split_at(RANKED as usize);
    let wins = plain.iter().zip(flipped).filter(|(plain, flipped)| plain > flipped).count();
    assert!((4..=12).contains(&wins), "the plain image wins {wins} times of 16, the mirror image the others");
    let found = per_image(&rise, RANKED as usize, Flips::Max).unwrap();
    assert_eq!(rank(&found).unwrap(), Vec::<i64>::try_from(&expected["ranked_rank"]).unwrap());
    // A difference of two losses 200 times as large, each rounded to float32.
    report.tensor("ranked_influence", &Tensor::from_slice(&found), &expected["ranked_influence"], 2e-4);
}

/// One step along `gradient`, larger than those of [`unlearn`].
fn large_step(unet: &mut UNet, gradient: &Tensors, fisher: &Tensors) {
    let (query, text, schedule) = (normal(&LATENT, 3), normal(&shape(&[1], &TEXT), 4).into(), schedule());
    let params = unlearn_params(2, 2, 4, RANKED_LR);
    let mut unlearning = Unlearning::new(unet, &schedule, &query, &text, &params, MICRO_BATCH).unwrap();
    unlearning.apply(gradient, &diagonal(fisher), IMAGES as usize).unwrap();
}

/// Two steps; after each the query's gradient, the change and the weights. Returns the last gradient.
fn unlearn(unet: &mut UNet, fisher: &Tensors, expected: &Tensors, report: &mut Report) -> Tensors {
    let (query, text, schedule) = (normal(&LATENT, 3), normal(&shape(&[1], &TEXT), 4).into(), schedule());
    let params = unlearn_params(2, 2, 4, LR);
    let mut unlearning = Unlearning::new(unet, &schedule, &query, &text, &params, MICRO_BATCH).unwrap();
    let (mut before, mut last) = (unlearning.changed(), Tensors::new());
    for step in 0..2 {
        let gradient = unlearning.gradient(step, 0..2, &mut ignore).unwrap();
        unlearning.apply(&gradient, &diagonal(fisher), IMAGES as usize).unwrap();
        let after = unlearning.changed();
        let change = after.iter().map(|(name, after)| (name.clone(), after - &before[name])).collect();
        report.digest(&format!("query_gradient{step}"), &gradient, expected, 1e-4);
        // The weights hide a wrong step, which is small beside them; so the change is held for itself. It is
        // a quotient of two gradients, where the smallest values of the Fisher information weigh most.
        report.digest(&format!("change{step}"), &change, expected, 1e-3);
        report.digest(&format!("weights{step}"), &after, expected, 1e-5);
        (before, last) = (after, gradient);
    }
    last
}

#[test]
fn losses_gradients_fisher_unlearning_and_influence() {
    let ((mut unet, expected), mut report) = (network(), Report::default());
    let (rows, pretrained) = losses(&unet, Noise::PerBatch);
    report.tensor("batch_rows", &rows, &expected["batch_rows"], 1e-5);
    report.tensor("image_rows", &losses(&unet, Noise::PerImage).0, &expected["image_rows"], 1e-5);

    for (row, gradients) in row_gradients(&unet).iter().enumerate() {
        report.digest(&format!("gradient{row}"), gradients, &expected, 1e-4);
    }
    let all = fisher(&unet, Selection::All);
    report.digest("fisher", &all, &expected, 1e-4);
    let keys_and_values = fisher(&unet, Selection::CrossAttnKv);
    assert_eq!(keys_and_values.len(), 32);
    for (name, found) in &keys_and_values {
        assert!(error(found, &all[name]) < 1e-6, "{name}: the selection changes the Fisher information");
    }

    let ranked_pretrained = ranked_losses(&unet);
    let gradient = unlearn(&mut unet, &keys_and_values, &expected, &mut report);
    let (_, unlearned) = losses(&unet, Noise::PerBatch);
    report.tensor("pretrained", &Tensor::from_slice(&pretrained), &expected["pretrained"], 1e-5);
    report.tensor("unlearned", &Tensor::from_slice(&unlearned), &expected["unlearned"], 1e-5);
    let rise = influence(&unlearned, &pretrained).unwrap();
    let found = per_image(&rise, IMAGES as usize, Flips::Max).unwrap();
    assert_eq!(rank(&found).unwrap(), Vec::<i64>::try_from(&expected["rank"]).unwrap());
    // A difference of two losses 3000 times as large, each rounded to float32.
    report.tensor("influence", &Tensor::from_slice(&found), &expected["influence"], 2e-3);

    large_step(&mut unet, &gradient, &keys_and_values);
    ranks(&ranked_losses(&unet), &ranked_pretrained, &expected, &mut report);
    report.finish();
}

#[test]
fn fifty_steps_of_generation_in_a_partial_batch() {
    let ((unet, expected), mut report) = (network(), Report::default());
    let (cond, uncond) = (normal(&shape(&[2], &TEXT), 60), normal(&shape(&[1], &TEXT), 61));
    let params = sample_params(50, 7.5, 3);
    let mut draws = Generator::seeded(0);
    let found = sample(&unet, &schedule(), &cond.into(), &uncond.into(), &params, &mut draws, 2, &mut ignore)
        .unwrap();
    report.tensor("drawing", &found, &expected["drawing"], 1e-4);
    report.finish();
}
