//! The first-order screen against Python, against gradients of single rows, and against what small steps do to the losses.

use std::cell::Cell;
use std::collections::BTreeMap;

use attrflow::method::data::DataSet;
use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::error::{DataError, MathError};
use attrflow::method::loss::{LossParams, LossPass};
use attrflow::method::noise::{Noise, Point};
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::screen::{Steps, Unlearned};
use attrflow::method::selection::Selection;
use attrflow::models::lora::Adapters;
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use attrflow_statistics::correlation::pearson;
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, assert_close, assert_within, image_noise, load, loss_params, path, tiny};
use crate::ruled::normal;

const TIMESTEPS: [i64; 4] = [0, 250, 500, 750];
/// Room for all steps.
const ROOM: usize = 1 << 20;

/// Weights by query.
struct Weights {
    names: Vec<String>,
    queries: Vec<Tensors>,
    reads: Cell<usize>,
}

impl Weights {
    fn of(queries: Vec<Tensors>) -> Self {
        Self { names: queries[0].keys().cloned().collect(), queries, reads: Cell::new(0) }
    }

    /// The network's own, moved along normal directions of this length a number, one for each seed.
    fn moved(unet: &UNet, selection: &Selection, length: f64, seeds: &[i64]) -> Self {
        let of = |seed: &i64| {
            let chosen = unet.parameters().iter().filter(|(name, _)| selection.matches(name));
            let moved = chosen.enumerate().map(|(place, (name, weight))| {
                let direction = normal(&weight.size(), seed + place as i64);
                (name.clone(), weight + direction * length)
            });
            moved.collect()
        };
        Self::of(seeds.iter().map(of).collect())
    }
}

impl Unlearned for Weights {
    fn queries(&self) -> usize {
        self.queries.len()
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn read(&self, query: usize, name: &str) -> Result<Tensor, DataError> {
        self.reads.set(self.reads.get() + 1);
        Ok(self.queries[query].get(name).ok_or("it is not there")?.shallow_clone())
    }
}

/// The two steps of the golden unlearning, each as a query.
fn golden_weights() -> Weights {
    let golden = load("method/unlearned");
    let of = |query: usize| {
        let prefix = format!("step{query}.");
        let own = golden.iter().filter_map(|(name, weight)| Some((name.strip_prefix(&prefix)?, weight)));
        own.map(|(name, weight)| (name.to_owned(), weight.shallow_clone())).collect()
    };
    Weights::of(vec![of(0), of(1)])
}

fn params() -> LossParams {
    loss_params(Noise::PerImage, 24, [2, 4], 7)
}

/// Does `work` with the loss pass over five images, their mirror images and three captions each.
fn with_pass<T>(unet: &UNet, micro_batch: usize, work: impl FnOnce(&LossPass<'_>) -> T) -> T {
    let golden = load("method/losses");
    let (latents, texts) = (golden["latents"].shallow_clone(), golden["texts"].flatten(0, 1));
    let schedule = NoiseSchedule::new(ScheduleConfig::default());
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let params = params();
    work(&LossPass::new(unet, &schedule, data, &params, micro_batch).unwrap())
}

fn images() -> Vec<usize> {
    (0..10).collect()
}

/// The screen [images, timesteps, queries] of all images.
fn screen(unet: &UNet, weights: &Weights, room: usize, micro_batch: usize) -> Tensor {
    let steps = Steps::new(unet, weights, room).unwrap();
    assert_eq!(steps.groups().len() == 1, room == ROOM);
    with_pass(unet, micro_batch, |pass| {
        let block = pass.block(&images(), &TIMESTEPS).unwrap();
        let mut heard = Vec::new();
        let found = pass.screen(&block, &TIMESTEPS, &steps, &mut |place, done| heard.push((place, done)));
        assert_eq!(heard.last(), Some(&(3, 10)));
        found.unwrap()
    })
}

#[test]
fn steps_that_do_not_fit_are_read_once_for_as_many_rows_as_memory_holds() {
    let unet = tiny();
    let [first, second] = golden_weights().queries.try_into().unwrap();
    let copies = |query: &Tensors| query.iter().map(|(name, x)| (name.clone(), x.shallow_clone())).collect();
    let weights = Weights::of((0..8).flat_map(|_| [copies(&first), copies(&second)]).collect());
    let size: usize = first.values().map(Tensor::numel).sum();
    let reads = |room: usize| {
        weights.reads.set(0);
        let found = screen(&unet, &weights, room, 5);
        for pair in 0..8 {
            let found = found.narrow(2, 2 * pair, 2);
            assert_close(&format!("room {room}, pair {pair}"), &found, &load("screen")["screen"]);
        }
        weights.reads.get() / weights.names.len() / weights.queries.len()
    };
    // Kept; or read to be checked, and then for all passes of rows that half the room holds.
    assert_eq!(reads(ROOM), 1);
    let (some, passes) = (reads(16 * size - 1), 5 * TIMESTEPS.len());
    assert!(some > 2 && some < 1 + passes / 2, "{some} of {passes} with {size} numbers");
}

#[test]
fn the_screen_is_pythons() {
    let unet = tiny();
    let golden = load("screen");
    assert_close("screen", &screen(&unet, &golden_weights(), ROOM, 24), &golden["screen"]);
    // Steps that are read again, one query and one row at a time, change rounding alone.
    for (room, micro_batch) in [(ROOM, 1), (ROOM, 7), (1, 24), (1, 3)] {
        let found = screen(&unet, &golden_weights(), room, micro_batch);
        assert_close(&format!("room {room}, {micro_batch} rows"), &found, &golden["screen"]);
    }
}

#[test]
fn the_screen_is_the_product_with_the_gradients_of_single_rows() {
    let unet = tiny();
    // Linear maps, a pointwise one, convolutions, normalisations and biases.
    let weights = Weights::moved(&unet, &Selection::All, 1e-3, &[1000, 2000, 3000]);
    let found = screen(&unet, &weights, ROOM, 24);
    let golden = load("method/losses");
    let schedule = NoiseSchedule::new(ScheduleConfig::default());
    let (latents, texts) = (&golden["latents"], &golden["texts"]);
    let mut expected = Vec::new();
    for image in [0, 6] {
        let noise = image_noise(7, image % 5, &TIMESTEPS, &[2, 4, 8, 8]); // [captions, timesteps, ..]
        for (place, timestep) in TIMESTEPS.into_iter().enumerate() {
            let of_caption = |caption: i64| {
                let rows = DenoisingRows {
                    latents: latents.narrow(0, image as i64, 1),
                    noise: noise.select(0, caption).narrow(0, place as i64, 1),
                    timesteps: Tensor::from_slice(&[timestep]),
                    conditioning: unet.conditioning(texts.get((image % 5) as i64).narrow(0, caption, 1)),
                };
                let parameters: Vec<Tensor> = weights
                    .names
                    .iter()
                    .map(|name| unet.parameters()[name].set_requires_grad(true))
                    .collect();
                let loss = tch::with_grad(|| rows.losses(&unet, &schedule)).sum(Kind::Float);
                let gradients = Tensor::run_backward(&[loss], &parameters, false, false);
                let products = weights.queries.iter().map(|query| {
                    let of = |(name, gradient): (&String, &Tensor)| {
                        let step = (&query[name] - &unet.parameters()[name]).detach();
                        (step.to_kind(Kind::Double) * gradient).sum(Kind::Double).double_value(&[])
                    };
                    weights.names.iter().zip(&gradients).map(of).sum::<f64>()
                });
                let products = Tensor::from_slice(&products.collect::<Vec<_>>());
                parameters.iter().for_each(|parameter| drop(parameter.set_requires_grad(false)));
                products
            };
            expected.push((of_caption(0) + of_caption(1)) / 2.0);
        }
    }
    let found = found.index_select(0, &Tensor::from_slice(&[0_i64, 6])).flatten(0, 1);
    assert_close("products", &found, &Tensor::stack(&expected, 0));
}

/// Compares the screen with what a small step along each direction, and one against it, do to the losses.
fn compare_with_small_steps(mut unet: UNet, selection: &Selection, length: f64) {
    let weights = Weights::moved(&unet, selection, length, &[1000, 2000]);
    let found = screen(&unet, &weights, ROOM, 24).mean_dim(1, false, None); // [images, queries]
    let own: BTreeMap<String, Tensor> =
        weights.names.iter().map(|name| (name.clone(), unet.parameters()[name].copy())).collect();
    let points: Vec<Point> = params().points(&TIMESTEPS);
    for query in 0..2 {
        let [up, down] = [1.0, -1.0].map(|sign| {
            for (name, own) in &own {
                unet.update(name, &(own + (&weights.queries[query][name] - own) * sign));
            }
            let rows = with_pass(&unet, 24, |pass| pass.rows_of_images(&images(), &points, &mut |_| ()));
            own.iter().for_each(|(name, own)| unet.update(name, own));
            rows.unwrap().to_kind(Kind::Double).mean_dim([1i64, 2].as_slice(), false, None) // [images]
        });
        let expected = (up - down) / 2.0;
        let values = |x: &Tensor| Vec::<f64>::try_from(x.contiguous()).unwrap();
        let screened = found.select(1, query as i64);
        let correlation = pearson(&values(&expected), &values(&screened)).unwrap();
        assert!(correlation > 0.999, "{selection}: {correlation}");
        assert_within(&format!("{selection}"), &screened, &expected, 0.01);
    }
}

#[test]
fn the_screen_is_what_small_steps_do_to_the_losses() {
    compare_with_small_steps(tiny(), &Selection::CrossAttnKv, 3e-3);
    // Maps of a LoRA, kept as layers.
    let (folder, file) = (path("tests/golden/lora/unet"), path("tests/golden/lora/diffusers.safetensors"));
    let files = UNetFiles { lora: Some((&file, Adapters::Layers)), ..UNetFiles::new(&folder) };
    let unet = UNet::load_files(&files, Device::Cpu, ModelMode::Gradients(Precision::Fp32)).unwrap();
    compare_with_small_steps(unet, &Selection::Lora, 1e-3);
}

#[test]
fn steps_that_are_none_are_refused() {
    let unet = tiny();
    let error = |weights: &Weights| match Steps::new(&unet, weights, ROOM).err().unwrap() {
        MathError::Step { query, what } => format!("{query}: {what}"),
        error => error.to_string(),
    };
    let name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let own = &unet.parameters()[name];
    let of = |second: Tensor| {
        let weight = |weight: Tensor| Tensors::from([(name.to_owned(), weight)]);
        Weights::of(vec![weight(own + 1.0), weight(second)])
    };
    assert_eq!(error(&of(own.copy())), "1: its weights are the network's own: nothing was unlearned");
    assert_eq!(error(&of(own * f64::NAN)), format!("1: `{name}` holds values that are not finite"));
    let found = error(&of(own.narrow(0, 0, 1)));
    assert_eq!(found, format!("1: `{name}` has the shape [1, 12], expected {:?}", own.size()));
    let mut other = of(own + 1.0);
    other.names = vec!["nothing".to_owned()];
    assert_eq!(error(&other), "0: `nothing` is no weight of the network");
    let mut missing = of(own + 1.0);
    missing.queries[1].clear();
    assert_eq!(error(&missing), "1: it is not there");
    // Noise per batch belongs to no image alone.
    let params = loss_params(Noise::PerBatch, 24, [2, 4], 30);
    let golden = load("method/losses");
    let (latents, texts) = (golden["latents"].shallow_clone(), golden["texts"].flatten(0, 1));
    let data = DataSet::new(&latents, &texts, 3).unwrap();
    let schedule = NoiseSchedule::new(ScheduleConfig::default());
    let pass = LossPass::new(&unet, &schedule, data, &params, 24).unwrap();
    assert!(pass.block(&[0], &TIMESTEPS).err().unwrap().to_string().contains("must be \"per_image\""));
}
