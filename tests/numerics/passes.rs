//! The long computations: loss pass, Fisher diagonal, unlearning.

use std::collections::BTreeMap;

use attrflow::method::data::DataSet;
use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::fisher::{
    FisherParams, FisherPass, FisherSum, FisherType, Weighting, squared_gradients, squares,
};
use attrflow::method::loss::{LossParams, LossPass};
use attrflow::method::noise::{Noise, Point};
use attrflow::method::per_sample::gradients;
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use attrflow::method::unlearn::{UnlearnParams, Unlearning};
use attrflow_engine::config::param::Param;
use tch::{Device, Kind, Tensor};

use crate::golden::{
    Tensors, assert_close, assert_within, diagonal, load, loss_params, text, tiny, unlearn_params,
};

/// Latents [10, 4, 8, 8] and texts [15, 5, 12]: five images with three captions each.
fn data() -> (Tensor, Tensor) {
    let golden = load("method/losses");
    (golden["latents"].shallow_clone(), golden["texts"].flatten(0, 1))
}

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig::default())
}

fn ignore(_: usize) {}

fn pass_params(noise: Noise) -> LossParams {
    let seed = if noise == Noise::PerBatch { 30 } else { 7 };
    loss_params(noise, 24, [2, 4], seed)
}

fn losses(params: &LossParams, micro_batch: usize) -> Tensor {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let pass = LossPass::new(&unet, &schedule, data, params, micro_batch).unwrap();
    let mut seen = Vec::new();
    let losses = pass.of_batches(0..params.batches(10), &mut |images| seen.push(images)).unwrap();
    assert_eq!(seen.last(), Some(&10));
    Tensor::from_slice(&losses)
}

#[test]
fn losses_with_noise_per_batch() {
    assert_close(
        "losses",
        &losses(&pass_params(Noise::PerBatch), 24),
        &load("method/losses")["batch_losses"],
    );
}

#[test]
fn losses_with_noise_per_image() {
    assert_close(
        "losses",
        &losses(&pass_params(Noise::PerImage), 24),
        &load("method/losses")["image_losses"],
    );
}

#[test]
fn every_row_of_every_batch() {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    for (name, noise) in [("batch_rows", Noise::PerBatch), ("image_rows", Noise::PerImage)] {
        let params = pass_params(noise);
        let pass = LossPass::new(&unet, &schedule, data, &params, 24).unwrap();
        let rows: Vec<Tensor> =
            (0..params.batches(10)).map(|batch| pass.rows_of_batch(batch).unwrap()).collect();
        // With noise per batch the second one straddles the flip boundary, the last one holds one image.
        let sizes: &[i64] = if noise == Noise::PerBatch { &[3, 3, 3, 1] } else { &[10] };
        assert_eq!(rows.iter().map(|rows| rows.size()[0]).collect::<Vec<_>>(), sizes);
        assert_close(name, &Tensor::cat(&rows, 0), &load("method/losses")[name]);
    }
}

#[test]
fn the_micro_batch_changes_nothing() {
    let params = pass_params(Noise::PerBatch);
    let whole = losses(&params, 24);
    // One row; a part of the four timesteps; one pair of image and caption; pairs across images; more than there is.
    for micro_batch in [1, 3, 4, 12, 1000] {
        assert_within(&format!("{micro_batch} rows"), &losses(&params, micro_batch), &whole, 1e-6);
    }
}

#[test]
fn ranges_of_batches_add_up() {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let params = pass_params(Noise::PerBatch);
    let pass = LossPass::new(&unet, &schedule, data, &params, 24).unwrap();
    let mut parts = pass.of_batches(0..1, &mut ignore).unwrap();
    parts.extend(pass.of_batches(1..4, &mut ignore).unwrap());
    assert_eq!(Tensor::from_slice(&parts), losses(&params, 24));
}

#[test]
fn per_image_noise_depends_on_nothing_else() {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let params = pass_params(Noise::PerImage);
    let pass = LossPass::new(&unet, &schedule, data, &params, 24).unwrap();
    let at = |images: std::ops::Range<usize>, timesteps: &[i64]| {
        let block = pass.block(&images.collect::<Vec<_>>(), timesteps).unwrap();
        pass.losses_at(&block, timesteps, &mut |_, _| {}).unwrap() // [images, captions, timesteps]
    };
    let all = at(0..10, &[0, 250, 500, 750]);
    assert_close("all", &all, &load("method/losses")["image_rows"]);
    assert_within("row by row", &all, &pass.rows_of_batch(0).unwrap(), 1e-6);
    // Some images across the flip boundary at one timestep.
    assert_close("some", &at(4..7, &[500]), &all.narrow(0, 4, 3).narrow(2, 2, 1));
    // Whatever timesteps are computed with it, the bits are the same.
    for (place, timestep) in [0, 250, 500, 750].into_iter().enumerate() {
        assert_eq!(at(0..10, &[timestep]), all.narrow(2, place as i64, 1), "{timestep}");
    }
    assert_eq!(at(0..10, &[750, 250]), Tensor::stack(&[all.select(2, 3), all.select(2, 1)], 2));
    // Any of them, in any order: the same bits as a block of them, whose neighbours change no more than rounding does.
    let mut heard = Vec::new();
    let picked = pass.rows_of_images(&[7, 2, 9], &[750, 0], &mut |done| heard.push(done)).unwrap(); // [3, 2, 2]
    let each = all.index_select(0, &Tensor::from_slice(&[7_i64, 2, 9]));
    assert_close("picked", &picked, &each.index_select(2, &Tensor::from_slice(&[3_i64, 0])));
    assert_eq!(heard.last(), Some(&6));
    let images: Vec<usize> = (0..10).collect();
    assert_eq!(pass.rows_of_images(&images, &[0, 250, 500, 750], &mut ignore).unwrap(), all);
    let batch = pass_params(Noise::PerBatch);
    let pass = LossPass::new(&unet, &schedule, data, &batch, 24).unwrap();
    assert!(pass.block(&[0], &[0]).is_err());
    // By a generator that counts: other noise, the same rows in both ways to compute them.
    let counted = pass_params(Noise::PerImagePhilox);
    let pass = LossPass::new(&unet, &schedule, data, &counted, 24).unwrap();
    let block = pass.block(&images, &[0, 250, 500, 750]).unwrap();
    let found = pass.losses_at(&block, &[0, 250, 500, 750], &mut |_, _| {}).unwrap();
    assert_within("row by row", &found, &pass.rows_of_batch(0).unwrap(), 1e-6);
    assert!((found - all).abs().max().double_value(&[]) > 1e-3);
}

#[test]
fn the_loss_is_the_mean_of_all_draws() {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let params = LossParams { draws: 2, ..pass_params(Noise::PerImage) };
    let pass = LossPass::new(&unet, &schedule, data, &params, 24).unwrap();
    let images: Vec<usize> = (0..10).collect();
    let points = params.points(&[0, 250, 500, 750]);
    let rows = pass.rows_of_images(&images, &points, &mut ignore).unwrap(); // [images, captions, points]
    let draw = |draw: i64| rows.view([10, 2, 4, 2]).select(3, draw); // [images, captions, timesteps]
    // The first draw is that of a pass with one.
    assert_close("first", &draw(0), &load("method/losses")["image_rows"]);
    assert!(crate::golden::error(&draw(1), &draw(0)) > 0.1);
    // Another draw alone has the same bits.
    let alone = pass.rows_of_images(&images, &[Point { timestep: 500, draw: 1 }], &mut ignore).unwrap();
    assert_eq!(alone.squeeze_dim(2), draw(1).select(2, 2));
    let mean = rows.mean_dim(2, false, None).mean_dim(1, false, None);
    assert_within("mean", &losses(&params, 24), &mean, 1e-6);
}

#[test]
fn traps_of_the_loss_pass_are_refused() {
    let error = |params: &LossParams| params.faults().remove(0);
    let params = pass_params(Noise::PerBatch);
    let uneven = LossParams { time_samples: 3, batch_size: Some(24), ..params.clone() };
    assert!(uneven.faults().is_empty());
    insta::assert_snapshot!(uneven.timesteps(&ScheduleConfig::default()).unwrap_err(), @"`time_samples` is 3: must divide the model's 1000 timesteps: set 2 or 4");
    insta::assert_snapshot!(error(&LossParams { batch_size: Some(20), ..params.clone() }), @"`batch_size` is 20, expected a multiple of 8, the 2 captions x 4 timesteps of an image");
    insta::assert_snapshot!(error(&LossParams { batch_size: Some(4), ..params.clone() }), @"`batch_size` is 4, expected a multiple of 8, the 2 captions x 4 timesteps of an image");
    insta::assert_snapshot!(error(&LossParams { batch_size: None, ..params.clone() }), @r#"`batch_size` is missing: with noise = "per_batch" it is the number of rows that share a draw, 8000 as published"#);
    insta::assert_snapshot!(error(&LossParams { noise: Noise::PerImage, ..params.clone() }), @r#"`batch_size` has no effect with noise = "per_image": remove it"#);
    insta::assert_snapshot!(error(&LossParams { captions: 0, ..params.clone() }), @"`captions` is 0, expected from 1 to 1000");
    insta::assert_snapshot!(error(&LossParams { draws: 2, ..params.clone() }), @r#"`draws` is 2: more than one draw per image needs `noise = "per_image"`; with `"per_batch"` all images of a batch share one"#);
    let published = LossParams { batch_size: Some(8000), time_samples: 20, captions: 5, ..params };
    assert_eq!(published.images_per_batch(), 80);
}

#[test]
fn a_loss_that_is_not_finite_names_image_and_timestep() {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let _ = latents.get(7).fill_(f64::NAN);
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let params = pass_params(Noise::PerBatch);
    let pass = LossPass::new(&unet, &schedule, data, &params, 24).unwrap();
    let error = pass.of_batches(0..4, &mut ignore).unwrap_err().to_string();
    assert_eq!(error, "the loss of image 2 (mirrored) at timestep 0 is NaN");
}

#[test]
fn data_that_does_not_fit_is_refused() {
    let (latents, texts) = data();
    let error =
        |latents: &Tensor, captions| DataSet::new(latents, &texts, captions).err().unwrap().to_string();
    insta::assert_snapshot!(error(&latents.narrow(0, 0, 7), 3), @"latents has 7 rows, expected 5 (images with captions) or 10 (with their mirror images)");
    insta::assert_snapshot!(error(&latents, 4), @"text embeddings has 15 rows, expected a multiple of the 4 captions an image");
}

fn gradient_rows(golden: &Tensors) -> DenoisingRows {
    let tensor = |name: &str| golden[name].shallow_clone();
    DenoisingRows {
        latents: tensor("x0"),
        noise: tensor("noise"),
        timesteps: tensor("timesteps"),
        conditioning: tensor("text").into(),
    }
}

#[test]
fn per_sample_gradients_of_every_kind_of_parameter() {
    let (unet, golden) = (tiny(), load("method/gradients"));
    unet.tape().record(|_| true);
    let losses = gradient_rows(&golden).losses(&unet, &schedule());
    let records = unet.tape().take();
    let outputs: Vec<&Tensor> = records.iter().map(|record| &record.output).collect();
    let grads = Tensor::run_backward(&[losses.sum(Kind::Float)], &outputs, false, false);
    let of_record = |(record, grad)| tch::no_grad(|| gradients(record, &record.input, grad));
    let found: BTreeMap<String, Tensor> = records.iter().zip(&grads).flat_map(of_record).collect();
    assert!(found.keys().eq(unet.parameters().keys()), "every parameter has a gradient");
    let mut checked = 0;
    for (name, expected) in golden.iter().filter_map(|(name, x)| Some((name.strip_prefix("gradient.")?, x))) {
        assert_close(name, &found[name], expected);
        checked += 1;
    }
    assert!(checked > 100);
}

#[test]
fn sums_of_squared_gradients() {
    let (unet, golden) = (tiny(), load("method/gradients"));
    let found = squared_gradients(&unet, &schedule(), &gradient_rows(&golden), &Selection::All, 0).unwrap();
    for (name, sum) in &found {
        assert_close(name, sum, &golden[&format!("squares.{name}")]);
    }
    assert_eq!(found.len(), unet.parameters().len());
}

fn fisher_params() -> FisherParams {
    FisherParams { epochs: 2, batch_size: 4, seed: 3, ..FisherParams::default() }
}

fn fisher(
    params: &FisherParams,
    ranges: &[std::ops::Range<usize>],
    micro_batch: usize,
) -> BTreeMap<String, Tensor> {
    fisher_joined(params, ranges, micro_batch, 1)
}

fn fisher_joined(
    params: &FisherParams,
    ranges: &[std::ops::Range<usize>],
    micro_batch: usize,
    joined: usize,
) -> BTreeMap<String, Tensor> {
    let (unet, schedule, (latents, texts)) = (tiny(), schedule(), data());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let mut sum = FisherSum::default();
    for range in ranges {
        let (range, mut progress) = (range.clone(), ignore);
        let pass = FisherPass { unet: &unet, schedule: &schedule, data, params, micro_batch, joined };
        sum.add(pass.sum(range, &squares, &mut progress).unwrap());
    }
    sum.mean()
}

#[test]
fn the_fisher_diagonal() {
    assert_eq!(fisher_params().batches(10), 6);
    let golden = load("method/fisher");
    for (name, found) in fisher(&fisher_params(), &[0..6], 4) {
        assert_close(&name, &found, &golden[&name]);
    }
}

#[test]
fn batches_that_are_computed_together_have_their_own_weights() {
    for weighting in [Weighting::Batch, Weighting::Row] {
        for fisher_type in [FisherType::Empirical, FisherType::Sampled] {
            let params = FisherParams { weighting, fisher_type, ..fisher_params() };
            let whole = fisher(&params, &[0..6], 4);
            // Batches of 4, 4 and 2 images, twice.
            for (name, found) in fisher_joined(&params, &[0..6], 100, 3) {
                assert_within(&name, &found, &whole[&name], 1e-5);
            }
        }
    }
    let params = fisher_params();
    assert_eq!([8, 100].map(|rows| params.joined(Device::Cuda(0), rows)), [2, 16]);
    assert_eq!(params.joined(Device::Cpu, 100), 1);
}

#[test]
fn ranges_and_micro_batches_of_the_fisher_diagonal_add_up() {
    let whole = fisher(&fisher_params(), &[0..6], 4);
    for (name, found) in fisher(&fisher_params(), &[0..1, 1..4, 4..6], 3) {
        assert_within(&name, &found, &whole[&name], 1e-5);
    }
}

#[test]
fn weighing_rows_differs_from_weighing_batches_only_for_short_batches() {
    let rows = FisherParams { weighting: Weighting::Row, ..fisher_params() };
    // Batches 0 and 1 are full.
    let (a, b) = (fisher(&fisher_params(), &[0..2], 4), fisher(&rows, &[0..2], 4));
    assert_within("full", &b["conv_in.bias"], &a["conv_in.bias"], 1e-6);
    let (a, b) = (fisher(&fisher_params(), &[0..3], 4), fisher(&rows, &[0..3], 4));
    assert!(crate::golden::error(&b["conv_in.bias"], &a["conv_in.bias"]) > 1e-3);
}

fn query_params() -> UnlearnParams {
    unlearn_params(2, 3, 5, 1e-4)
}

#[test]
fn unlearning_step_by_step() {
    let (golden, fisher, mut unet, schedule) =
        (load("method/unlearned"), load("method/fisher"), tiny(), schedule());
    let params = query_params();
    let mut unlearning =
        Unlearning::new(&mut unet, &schedule, &golden["query"], &text(&golden), &params, 5).unwrap();
    let mut before = unlearning.changed();
    for step in 0..2 {
        let gradient = unlearning.gradient(step, 0..3, &mut ignore).unwrap();
        unlearning.apply(&gradient, &diagonal(&fisher), 5).unwrap();
        for (name, found) in unlearning.changed() {
            let expected = &golden[&format!("step{step}.{name}")];
            assert_close(&name, &found, expected);
            // The step itself, with the rounding of the parameters that it is the difference of.
            assert_within(&name, &(&found - &before[&name]), &(expected - &before[&name]), 1e-4);
            before.insert(name, found);
        }
    }
}

#[test]
fn a_run_of_unlearning_changes_the_selected_parameters_only() {
    let (golden, fisher, mut unet, schedule) =
        (load("method/unlearned"), load("method/fisher"), tiny(), schedule());
    let params = query_params();
    let mut unlearning =
        Unlearning::new(&mut unet, &schedule, &golden["query"], &text(&golden), &params, 2).unwrap();
    let mut seen = Vec::new();
    let changed = unlearning.run(&diagonal(&fisher), 5, &mut |batches| seen.push(batches)).unwrap();
    assert_eq!(seen, [1, 2, 3, 4, 5, 6]);
    for (name, found) in &changed {
        assert_close(name, found, &golden[&format!("step1.{name}")]);
    }
    let fresh = tiny();
    for (name, parameter) in unet.parameters() {
        assert_eq!(parameter == &fresh.parameters()[name], !changed.contains_key(name), "{name}");
        assert!(!parameter.requires_grad());
    }
}

#[test]
fn ranges_of_gradients_add_up() {
    let (golden, mut unet, schedule, params) = (load("method/unlearned"), tiny(), schedule(), query_params());
    let unlearning =
        Unlearning::new(&mut unet, &schedule, &golden["query"], &text(&golden), &params, 5).unwrap();
    let span = |batches| unlearning.gradient(0, batches, &mut ignore).unwrap();
    let (whole, first, rest) = (span(0..3), span(0..1), span(1..3));
    for (name, gradient) in whole {
        assert_within(&name, &(&first[&name] + &rest[&name]), &gradient, 1e-12);
    }
}

#[test]
fn a_loss_rises_when_unlearned() {
    let (golden, fisher, mut unet, schedule) =
        (load("method/unlearned"), load("method/fisher"), tiny(), schedule());
    let params = UnlearnParams { steps: 1, lr: Some(1e-6), ..query_params() };
    let mut unlearning =
        Unlearning::new(&mut unet, &schedule, &golden["query"], &text(&golden), &params, 5).unwrap();
    let rows = unlearning.draw(0, 0);
    unlearning.run(&diagonal(&fisher), 5, &mut ignore).unwrap();
    let loss = |unet| tch::no_grad(|| rows.losses(unet, &schedule).mean(None).double_value(&[]));
    let (before, after) = (loss(&tiny()), loss(&unet));
    assert!(after > before, "{before} {after}");
}

#[test]
fn zeros_in_the_fisher_diagonal_are_refused_unless_damped() {
    let (golden, mut unet, schedule) = (load("method/unlearned"), tiny(), schedule());
    let mut fisher = load("method/fisher");
    let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let _ = fisher.get_mut(name).unwrap().narrow(0, 0, 1).fill_(0.0);
    let mut run = |params: &UnlearnParams, fisher: &Tensors| {
        let mut unlearning =
            Unlearning::new(&mut unet, &schedule, &golden["query"], &text(&golden), params, 5).unwrap();
        unlearning.run(&diagonal(fisher), 5, &mut ignore).map(|_| ()).map_err(|error| error.to_string())
    };
    insta::assert_snapshot!(run(&query_params(), &fisher).unwrap_err(), @"the Fisher information of `mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight` is zero in 12 of 192 places, so that the step there is not finite; set `damping` or `relative_damping` to continue");
    run(&UnlearnParams { damping: 1e-3, ..query_params() }, &fisher).unwrap();
    fisher.remove(name);
    insta::assert_snapshot!(run(&query_params(), &fisher).unwrap_err(), @"the Fisher information has no `mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight`, which `select` names: compute it with a `select` that holds it");
}

#[test]
fn parameters_of_unlearning_out_of_range_are_refused() {
    let (golden, mut unet) = (load("method/unlearned"), tiny());
    let many = UnlearnParams { batch_size: 1001, ..query_params() };
    let error =
        Unlearning::new(&mut unet, &schedule(), &golden["query"], &text(&golden), &many, 5).err().unwrap();
    insta::assert_snapshot!(error, @"`batch_size` is 1001: its timesteps are distinct, and the model has 1000");
    let error = |params: UnlearnParams| params.faults().remove(0);
    insta::assert_snapshot!(error(UnlearnParams { damping: -1.0, ..query_params() }), @"`damping` is -1, expected a number of at least 0");
    insta::assert_snapshot!(error(UnlearnParams { steps: 0, ..query_params() }), @"`steps` is 0, expected from 1 to 10000");
}
