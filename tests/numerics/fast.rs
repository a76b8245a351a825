//! Everything fast against the simple way, row by row.
//!
//! The fast way sends rows through the network together, reads a text's keys and values once, and uses fused kernels. The
//! simple way is one row at a time with a text of its own, through libtorch's own operations: wanted gradients of all
//! parameters keep the kernels out.

use std::collections::BTreeMap;

use attrflow::io::npy::Npy;
use attrflow::io::npy::writer;
use attrflow::kinds::NpyRows;
use attrflow::method::data::DataSet;
use attrflow::method::fisher::squared_gradients;
use attrflow::method::loss::LossPass;
use attrflow::method::noise::Noise;
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use attrflow::method::unlearn::{UnlearnParams, Unlearning};
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use tch::{Device, Kind, Tensor};

use crate::golden::{
    TOLERANCE, assert_close, assert_within, demo, load, loss_params, path, text, tiny, unlearn_params,
};

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig::default())
}

/// Numbers without a pattern that a layer could be blind to.
fn numbers(size: &[i64], salt: f64) -> Tensor {
    let count = size.iter().product::<i64>();
    let steps = Tensor::arange(count, (Kind::Double, Device::Cpu)) * (0.731 + salt);
    ((&steps * 1.3).sin() + (steps * 0.117).cos() * 1.1).to_kind(Kind::Float).view(size)
}

/// A network with latents of four images and their mirror images, and three texts for each.
fn networks() -> [(UNet, Tensor, Tensor); 2] {
    let golden = load("method/losses");
    let tiny_data = (golden["latents"].shallow_clone(), golden["texts"].flatten(0, 1));
    [(tiny(), tiny_data.0, tiny_data.1), (demo(), numbers(&[8, 4, 16, 16], 0.1), numbers(&[12, 16, 64], 0.2))]
}

#[test]
#[ignore = "two minutes: every row alone, unoptimised"]
fn every_row_of_a_loss_pass() {
    for (unet, latents, texts) in networks() {
        let (schedule, data) = (schedule(), DataSet::new(&latents, &texts, 3).unwrap());
        for noise in [Noise::PerBatch, Noise::PerImage] {
            let params = loss_params(noise, 24, [2, 4], 5);
            let pass = |micro_batch| LossPass::new(&unet, &schedule, data, &params, micro_batch).unwrap();
            let want = |gradients| {
                unet.parameters().values().for_each(|parameter| drop(parameter.set_requires_grad(gradients)));
            };
            want(true);
            // With noise per image, all images are of the first batch.
            let batch = usize::from(noise == Noise::PerBatch);
            let simple = tch::with_grad(|| pass(1).reference_losses(batch)).unwrap().detach();
            want(false);
            // Slices of several texts, and of a part of one's timesteps.
            for micro_batch in [24, 3] {
                let fast = pass(micro_batch).rows_of_batch(batch).unwrap();
                let far = ((fast - &simple) / &simple).abs().max().double_value(&[]);
                assert!(far <= TOLERANCE, "{noise:?}, {micro_batch} rows at once: {far}");
            }
        }
    }
}

#[test]
fn losses_read_ahead_are_those_read_in_turn() {
    let (unet, latents, texts) = networks().into_iter().next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, tensor: &Tensor| {
        let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
        let values = Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap();
        writer::write_f32(folder.path().join(name), &shape, &values).unwrap();
        Npy::open(folder.path().join(name)).unwrap()
    };
    let files = (
        NpyRows::new(write("latents.npy", &latents), 1),
        NpyRows::new(write("texts.npy", &texts.view([5, 3, 5, 12])), 2),
    );
    let (schedule, params) = (schedule(), loss_params(Noise::PerBatch, 24, [2, 4], 5));
    let losses = |data| {
        let pass = LossPass::new(&unet, &schedule, data, &params, 24).unwrap();
        pass.of_batches(0..params.batches(10), &mut |_| ()).unwrap()
    };
    let ahead = losses(DataSet::new(&files.0, &files.1, 3).unwrap());
    assert_eq!(ahead, losses(DataSet::new(&latents, &texts, 3).unwrap()));
}

#[test]
fn gradients_of_several_batches_in_one_pass() {
    let (golden, schedule) = (load("method/unlearned"), schedule());
    for select in [Selection::CrossAttnKv, Selection::All] {
        let params = UnlearnParams { select, ..unlearn_params(1, 5, 3, 1e-4) };
        let mut unet = tiny();
        let mut gradient = |micro_batch| {
            let unlearning =
                Unlearning::new(&mut unet, &schedule, &golden["query"], &text(&golden), &params, micro_batch);
            unlearning.unwrap().gradient(0, 0..5, &mut |_| ()).unwrap()
        };
        let each = gradient(1);
        for (name, together) in gradient(7) {
            assert_within(&name, &together, &each[&name], TOLERANCE);
        }
    }
}

#[test]
fn squared_gradients_are_those_of_autograd_row_by_row() {
    let (mut unet, schedule) = (tiny(), schedule());
    let golden = load("method/unlearned");
    let params = UnlearnParams { select: Selection::All, ..unlearn_params(1, 1, 4, 1e-4) };
    let mut rows = Unlearning::new(&mut unet, &schedule, &golden["query"], &text(&golden), &params, 4)
        .unwrap()
        .draw(0, 0);
    rows.conditioning = numbers(&[4, 5, 12], 0.4).into();
    let fast = squared_gradients(&unet, &schedule, &rows, &Selection::All, 0).unwrap();
    let (names, parameters): (Vec<String>, Vec<Tensor>) =
        unet.parameters().iter().map(|(name, tensor)| (name.clone(), tensor.set_requires_grad(true))).unzip();
    let mut simple: BTreeMap<&String, Tensor> = BTreeMap::new();
    for row in 0..4 {
        let loss = tch::with_grad(|| rows.slice(row..row + 1).losses(&unet, &schedule).sum(Kind::Float));
        let gradients = Tensor::run_backward(&[loss], &parameters, false, false);
        for (name, gradient) in names.iter().zip(gradients) {
            let square = gradient.to_kind(Kind::Double).square();
            simple.entry(name).and_modify(|sum| *sum += &square).or_insert(square);
        }
    }
    assert_eq!(fast.len(), names.len());
    for (name, sum) in simple {
        assert_close(name, &fast[name], &sum);
    }
}

#[test]
fn products_in_bfloat16_change_little() {
    let folder = path("data/demo/model/unet");
    let short =
        UNet::load_files(&UNetFiles::new(&folder), Device::Cpu, ModelMode::Inference(Precision::Bf16))
            .unwrap();
    let (exact, latents, texts) = networks().into_iter().nth(1).unwrap();
    let (schedule, data) = (schedule(), DataSet::new(&latents, &texts, 3).unwrap());
    let params = loss_params(Noise::PerBatch, 24, [2, 4], 5);
    let rows = |unet| LossPass::new(unet, &schedule, data, &params, 24).unwrap().rows_of_batch(0).unwrap();
    let (found, expected) = (rows(&short), rows(&exact));
    let far = ((&found - &expected) / &expected).abs().max().double_value(&[]);
    assert!(far > 1e-6, "it computes in bfloat16");
    assert!(far < 2e-2, "{far}");
}
