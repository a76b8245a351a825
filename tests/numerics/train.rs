//! Training: optimiser, gradients and draws against torch, and what leaving images out changes.

use std::collections::{BTreeMap, BTreeSet};

use attrflow::method::data::DataSet;
use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use attrflow::method::train::{
    AdamW, LrScheduler, SLICE, TrainParams, Training, TrainingData, average, learning_rate, mean_gradient,
};
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use tch::{Device, Tensor};

use crate::golden::{Tensors, assert_close, assert_within, load, path};

const IDS: [&str; 5] = ["3", "9", "27", "81", "243"];

fn params() -> TrainParams {
    TrainParams {
        steps: 20,
        batch_size: 7,
        lr: 2e-3,
        lr_scheduler: LrScheduler::Cosine,
        lr_warmup_steps: 5,
        lr_min: 0.1,
        adam_beta2: 0.99,
        ema_decay: Some(0.999),
        caption_dropout: 0.3,
        seed: 5,
        ..TrainParams::default()
    }
}

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig::default())
}

/// A network that can be trained.
fn network(folder: &str) -> UNet {
    UNet::load_files(&UNetFiles::new(&path(folder)), Device::Cpu, ModelMode::Gradients(Precision::Fp32))
        .unwrap()
}

#[test]
fn adamw_with_clipping_schedule_and_mean_is_torchs() {
    let golden = load("train/adamw");
    let names: Vec<String> = ["a.weight", "b.bias", "c.weight"].map(str::to_owned).into();
    let mut parameters: BTreeMap<String, Tensor> =
        names.iter().map(|name| (name.clone(), golden[&format!("before.{name}")].copy())).collect();
    let mut own = AdamW::default();
    let mut mean: Tensors = parameters.iter().map(|(name, tensor)| (name.clone(), tensor.copy())).collect();
    for step in 0..20 {
        let lr = learning_rate(&params(), step);
        assert!((lr / golden["rates"].double_value(&[step as i64]) - 1.0).abs() < 1e-6);
        let gradient: Tensors = names
            .iter()
            .map(|name| (name.clone(), golden[&format!("gradient.{name}")].get(step as i64)))
            .collect();
        let (moved, norm) = own.step(&params(), step, lr, &names, &parameters, &gradient);
        assert!((norm / golden["norms"].double_value(&[step as i64]) - 1.0).abs() < 1e-6);
        parameters = moved;
        average(&mut mean, &parameters, 0.999, step);
        if [0, 1, 19].contains(&step) {
            for name in &names {
                let expected = &golden[&format!("step{step}.{name}")];
                assert_within(&format!("{name} after step {step}"), &parameters[name], expected, 1e-6);
            }
        }
    }
    for name in &names {
        assert_within(&format!("the mean of {name}"), &mean[name], &golden[&format!("mean.{name}")], 1e-6);
    }
}

/// A step without a row moves nothing, and the next one is the first for the optimiser.
#[test]
fn a_skipped_step_is_none_of_the_optimisers() {
    let golden = load("train/adamw");
    let name = "b.bias".to_owned();
    let of = |key: &str| BTreeMap::from([(name.clone(), golden[key].copy())]);
    let gradient = BTreeMap::from([(name.clone(), golden["gradient.b.bias"].get(0))]);
    let moved = |step: usize, skipped: usize| {
        let mut own = AdamW { skipped, ..AdamW::default() };
        own.step(&params(), step, 1e-3, std::slice::from_ref(&name), &of("before.b.bias"), &gradient).0
    };
    assert_eq!(moved(0, 0)[&name], moved(3, 3)[&name]);
    assert_ne!(moved(0, 0)[&name], moved(3, 0)[&name]);
}

#[test]
fn one_step_of_the_demo_has_torchs_gradient() {
    let golden = load("train/one_step");
    let unet = network("data/demo/model/unet");
    let rows = |some: std::ops::Range<i64>| {
        let part = |name: &str| golden[name].narrow(0, some.start, 20.min(some.end) - some.start);
        let conditioning = part("text").into();
        let [latents, noise, timesteps] = ["x0", "noise", "timesteps"].map(part);
        Ok((
            DenoisingRows { latents, noise, timesteps, conditioning },
            some.map(|row| row as usize).collect(),
        ))
    };
    let chosen = Selection::All.of(unet.parameters().keys()).unwrap();
    let slices = [0..SLICE as i64, SLICE as i64..20].into_iter().map(rows);
    let (gradient, loss) = mean_gradient(&unet, &schedule(), &chosen, 20, slices).unwrap();
    assert!((loss / golden["loss"].double_value(&[]) - 1.0).abs() < 1e-5, "{loss}");
    for name in &chosen {
        let found = gradient[name].to_kind(tch::Kind::Double).norm().double_value(&[]);
        let expected = golden[&format!("norm.{name}")].double_value(&[]);
        assert!((found / expected - 1.0).abs() < 1e-5, "{name}: {found} {expected}");
        // A sign or a transposition changes this.
        let own = gradient[name].to_kind(tch::Kind::Double).flatten(0, -1);
        let fixed = Tensor::arange_start(1, own.numel() as i64 + 1, (tch::Kind::Double, Device::Cpu)).cos();
        let product = own.dot(&fixed).double_value(&[]);
        let off = (product - golden[&format!("product.{name}")].double_value(&[])).abs();
        // Relative to the norms of both factors: the product of large ones may cancel.
        let scale = expected * fixed.norm().double_value(&[]);
        assert!(off <= 1e-5 * scale / (own.numel() as f64).sqrt() * 4.0, "{name}: off by {off} of {scale}");
        if let Some(expected) = golden.get(&format!("gradient.{name}")) {
            assert_close(name, &gradient[name], expected);
        }
    }
}

/// The training set of the golden numbers, for a network of the same.
struct Set {
    golden: Tensors,
    ids: Vec<String>,
    texts: Tensor,
}

impl Set {
    fn new() -> Self {
        let golden = load("train/training");
        let texts = golden["texts"].flatten(0, 1);
        Self { golden, ids: IDS.map(str::to_owned).into(), texts }
    }

    fn data<'a>(&'a self, left_out: &'a BTreeSet<String>) -> TrainingData<'a> {
        let moments = DataSet::new(&self.golden["moments"], &self.texts, 3).unwrap();
        TrainingData { moments, empty: self.golden["empty"].copy(), ids: &self.ids, left_out }
    }
}

fn left_out(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

#[test]
fn the_losses_of_twenty_steps_are_torchs() {
    let (set, schedule, params, out) = (Set::new(), schedule(), params(), left_out(&["27"]));
    let mut training =
        Training::new(network("tests/golden/unet/conv"), &schedule, set.data(&out), &params, None).unwrap();
    let mut largest: f64 = 0.0;
    for step in 0..20 {
        let report = training.step(step).unwrap();
        assert_eq!(report.rows as i64, set.golden["counts"].int64_value(&[step as i64]));
        let expected = set.golden["losses"].double_value(&[step as i64]);
        largest = largest.max((report.loss.unwrap() / expected - 1.0).abs());
    }
    // Found: 4e-7 where the file was made.
    assert!(largest < 1e-3, "{largest}");
    let result = training.state().ema.unwrap();
    for (name, expected) in set.golden.iter().filter_map(|(name, x)| Some((name.strip_prefix("mean.")?, x))) {
        assert_within(name, &result[name], expected, 1e-3);
    }
}

#[test]
fn two_halves_give_the_bytes_of_the_whole() {
    let (set, schedule, params, none) = (Set::new(), schedule(), params(), left_out(&[]));
    let begin = |state| {
        Training::new(network("tests/golden/unet/conv"), &schedule, set.data(&none), &params, state).unwrap()
    };
    let mut whole = begin(None);
    (0..6).for_each(|step| _ = whole.step(step).unwrap());
    let mut first = begin(None);
    (0..3).for_each(|step| _ = first.step(step).unwrap());
    let mut second = begin(Some(first.state()));
    (3..6).for_each(|step| _ = second.step(step).unwrap());
    let (whole, halves) = (whole.state(), second.state());
    let equal = |a: &Tensors, b: &Tensors| a.iter().all(|(name, weights)| weights.equal(&b[name]));
    assert!(equal(&whole.weights, &halves.weights) && equal(&whole.ema.unwrap(), &halves.ema.unwrap()));
}

#[test]
fn leaving_an_image_out_takes_its_rows_away_and_changes_no_other() {
    let (set, schedule, params) = (Set::new(), schedule(), params());
    let sums = |out: &BTreeSet<String>, step| {
        let training =
            Training::new(network("tests/golden/unet/conv"), &schedule, set.data(out), &params, None)
                .unwrap();
        let (gradient, rows, _) = training.gradient(step).unwrap();
        let double = |(name, sum): (String, Tensor)| (name, sum.to_kind(tch::Kind::Double) * rows as f64);
        (gradient.into_iter().map(double).collect::<Tensors>(), rows)
    };
    let others: Vec<&str> = IDS.into_iter().filter(|id| *id != "27").collect();
    for step in 0..4 {
        let (all, count) = sums(&left_out(&[]), step);
        let (without, fewer) = sums(&left_out(&["27"]), step);
        let (alone, dropped) = sums(&left_out(&others), step);
        assert_eq!(count, fewer + dropped);
        for (name, sum) in &all {
            let alone = alone.get(name).map_or_else(|| sum.zeros_like(), Tensor::shallow_clone);
            assert_within(name, &(&without[name] + alone), sum, 1e-5);
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_names_its_image() {
    let (set, schedule, params, none) = (Set::new(), schedule(), params(), left_out(&[]));
    let mut unet = network("tests/golden/unet/conv");
    let name = "conv_in.bias";
    let nan = unet.parameters()[name].full_like(f64::NAN);
    unet.update(name, &nan);
    let mut training = Training::new(unet, &schedule, set.data(&none), &params, None).unwrap();
    let error = training.step(0).unwrap_err().to_string();
    assert!(error.starts_with("the loss of image ") && error.ends_with(" is NaN"), "{error}");
}
