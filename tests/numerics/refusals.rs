//! Values that are not finite: each computation stops at the first one and names its place.
//!
//! The traps of the published scripts' parameters are in `passes.rs`.

use attrflow::method::data::DataSet;
use attrflow::method::fisher::{FisherParams, FisherPass, squares};
use attrflow::method::loss::LossPass;
use attrflow::method::noise::{Generator, Noise};
use attrflow::method::sample::sample;
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::unlearn::{UnlearnParams, Unlearning};
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, diagonal, load, loss_params, sample_params, text, tiny, unlearn_params};

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig::default())
}

fn ignore(_: usize) {}

/// Latents [10, 4, 8, 8] and texts [15, 5, 12], of five images with mirror images and three captions.
fn data() -> (Tensor, Tensor) {
    let golden = load("method/losses");
    (golden["latents"].shallow_clone(), golden["texts"].flatten(0, 1))
}

fn draw(cond: &Tensor, steps: usize) -> String {
    let uncond = Tensor::zeros([1, 5, 12], (Kind::Float, Device::Cpu));
    let params = sample_params(steps, 7.5, 3);
    let (unet, schedule, mut draws) = (tiny(), schedule(), Generator::seeded(0));
    let found = sample(
        &unet,
        &schedule,
        &cond.shallow_clone().into(),
        &uncond.into(),
        &params,
        &mut draws,
        2,
        &mut ignore,
    );
    found.err().unwrap().to_string()
}

#[test]
fn generation_stops_at_the_step_that_is_not_finite() {
    let cond = Tensor::zeros([3, 5, 12], (Kind::Float, Device::Cpu));
    let _ = cond.get(1).fill_(f64::NAN);
    insta::assert_snapshot!(draw(&cond, 4), @"the latents of row 1 are not finite after the step at timestep 750");
    let four = Tensor::zeros([4, 5, 12], (Kind::Float, Device::Cpu));
    insta::assert_snapshot!(draw(&four, 4), @"texts has 4 rows, expected at most the batch size 3");
    insta::assert_snapshot!(draw(&cond, 1001), @"`steps` is 1001: must be from 1 to 1000");
}

#[test]
fn a_loss_pass_names_image_mirror_image_and_timestep() {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    // Every caption of image 3; its mirror image comes later.
    let _ = texts.narrow(0, 9, 3).fill_(f64::INFINITY);
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    for (noise, micro_batch) in [(Noise::PerBatch, 24), (Noise::PerBatch, 3), (Noise::PerImage, 24)] {
        let params = loss_params(noise, 24, [2, 4], 30);
        let pass = LossPass::new(&unet, &schedule, data, &params, micro_batch).unwrap();
        let error = |batches| pass.of_batches(batches, &mut ignore).unwrap_err().to_string();
        let batches = params.batches(10);
        assert_eq!(error(0..batches), "the loss of image 3 at timestep 0 is NaN");
        if noise == Noise::PerBatch {
            assert_eq!(error(2..batches), "the loss of image 3 (mirrored) at timestep 0 is NaN");
        }
    }
}

#[test]
fn more_captions_than_the_data_has_are_refused() {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let params = loss_params(Noise::PerBatch, 32, [4, 4], 30);
    let error = LossPass::new(&unet, &schedule, data, &params, 24).err().unwrap().to_string();
    insta::assert_snapshot!(error, @"`captions` is 4: the data has 3 captions an image");
}

fn fisher(latents: &Tensor, texts: &Tensor, micro_batch: usize) -> String {
    let (unet, schedule) = (tiny(), schedule());
    let data = DataSet::new(latents, texts, 3).unwrap();
    let params = FisherParams { epochs: 1, batch_size: 4, seed: 3, ..FisherParams::default() };
    let pass = FisherPass { unet: &unet, schedule: &schedule, data, params: &params, micro_batch, joined: 1 };
    let found = pass.sum(0..3, &squares, &mut ignore);
    found.err().unwrap().to_string()
}

#[test]
fn a_fisher_diagonal_stops_at_the_row_that_is_not_finite() {
    let (latents, texts) = data();
    let _ = latents.get(6).fill_(f64::NAN);
    for micro_batch in [1, 4] {
        let error = fisher(&latents, &texts, micro_batch);
        assert!(error.starts_with("the loss of image 1 (mirrored) at timestep "), "{error}");
        assert!(error.ends_with(" is NaN"), "{error}");
    }
}

/// The error of unlearning with one of query, Fisher diagonal and learning rate changed.
fn unlearn(change: impl Fn(&mut Tensor, &mut Tensors, &mut UnlearnParams)) -> String {
    let (golden, mut fisher, mut unet, schedule) =
        (load("method/unlearned"), load("method/fisher"), tiny(), schedule());
    let mut params = unlearn_params(1, 1, 5, 1e-4);
    let mut query = golden["query"].copy();
    change(&mut query, &mut fisher, &mut params);
    let unlearning = Unlearning::new(&mut unet, &schedule, &query, &text(&golden), &params, 5);
    unlearning
        .and_then(|mut unlearning| unlearning.run(&diagonal(&fisher), 5, &mut ignore))
        .err()
        .unwrap()
        .to_string()
}

#[test]
fn unlearning_stops_at_what_is_not_finite() {
    const NAME: &str = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let error = unlearn(|query, _, _| drop(query.fill_(f64::NAN)));
    assert!(error.starts_with("the loss of image 0 at timestep ") && error.ends_with(" is NaN"), "{error}");
    let error = unlearn(|_, fisher, _| drop(fisher.get_mut(NAME).unwrap().get(0).fill_(f64::NAN)));
    insta::assert_snapshot!(error, @"the Fisher information of `mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight` is NaN at [0, 0], expected means of squares: finite, and not negative");
    let error = unlearn(|_, fisher, _| drop(fisher.get_mut(NAME).unwrap().get(2).fill_(-0.5)));
    insta::assert_snapshot!(error, @"the Fisher information of `mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight` is -0.5 at [2, 0], expected means of squares: finite, and not negative");
    let error = unlearn(|_, fisher, _| {
        drop(fisher.insert(NAME.into(), Tensor::ones([2, 2], (Kind::Double, Device::Cpu))))
    });
    insta::assert_snapshot!(error, @"the Fisher information of `mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight` has the shape [2, 2], the parameter has [16, 12]");
    let error = unlearn(|_, _, params| params.lr = Some(1e60));
    assert!(error.ends_with("` holds values that are not finite: after the step"), "{error}");
    let error = unlearn(|_, _, params| params.lr = Some(f64::NAN));
    assert!(error.ends_with("` holds values that are not finite: after the step"), "{error}");
}
