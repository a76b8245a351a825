//! One side of a comparison of speeds: this program's own passes on data and weights that both sides read.
//!
//! `speed.py` beside it starts it, with one argument: the work as JSON, see [`Work`]. It says `ready` when everything is
//! loaded and warm, begins when a line comes in, and ends with a line of JSON: rows, seconds, the numbers' digest.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, anyhow};
use attrflow::io::npy::Npy;
use attrflow::kinds::NpyRows;
use attrflow::kinds::shared::device;
use attrflow::method::data::{DataSet, Rows, to_device};
use attrflow::method::ekfac::{Eigenbasis, covariance, covariances, eigenvectors, of_texts};
use attrflow::method::error::DataError;
use attrflow::method::fisher::{FisherParams, FisherPass, squares};
use attrflow::method::loss::{LossParams, LossPass};
use attrflow::method::noise::Noise;
use attrflow::method::schedule::{NoiseSchedule, ScheduleConfig};
use attrflow::method::screen::{Steps, Unlearned};
use attrflow::method::selection::Selection;
use attrflow::method::train::{Init, TrainLora, TrainParams, Training, TrainingData};
use attrflow::method::unlearn::{UnlearnParams, Unlearning};
use attrflow::models::kernels;
use attrflow::models::lora::Adapters;
use attrflow::models::profile;
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use attrflow_engine::kind::Device;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// What is to be done.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Work {
    /// `loss`, `unlearn`, `fisher`, `ekfac`, `screen`, `train`, `lora` (its training), or `check`: each row of a loss pass against the
    /// simple way.
    what: String,
    /// A folder with `unet/config.json`, `model.safetensors`, `lora.safetensors`, `latents.npy` and `texts.npy`.
    data: PathBuf,
    device: Device,
    threads: usize,
    precision: Precision,
    micro_batch: usize,
    /// The parameters of the loss pass besides `precision`.
    loss: Value,
    /// Which weights the gradients are for.
    select: String,
    /// Batches to compute: of losses, of the query's gradients, of squared gradients; of a training, its steps.
    batches: [usize; 2],
    /// Rows in a batch of gradients; of a screen, images, each with all captions.
    batch_size: usize,
    /// Queries of a screen.
    #[serde(default)]
    queries: usize,
    /// How many times to go through the batches of losses; 0 is once.
    #[serde(default)]
    repeats: usize,
    /// Whether cuDNN may try its kernels out first.
    #[serde(default)]
    trials: bool,
}

/// Unlearned weights that are made when they are read: the network's own, moved a little.
struct Moved<'a> {
    unet: &'a UNet,
    names: Vec<String>,
    queries: usize,
}

impl Unlearned for Moved<'_> {
    fn queries(&self) -> usize {
        self.queries
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn read(&self, _: usize, name: &str) -> Result<Tensor, DataError> {
        let own = &self.unet.parameters()[name];
        Ok(own + own.randn_like() * 1e-3)
    }
}

/// How many times as long the first takes as the second: both in turns, three times after a first time of each.
fn in_turns(mut both: [&mut dyn FnMut() -> anyhow::Result<f64>; 2]) -> anyhow::Result<f64> {
    let mut spent = [0.0; 2];
    for turn in 0..4 {
        for (seconds, work) in spent.iter_mut().zip(&mut both) {
            let begun = Instant::now();
            work()?;
            *seconds += if turn > 0 { begun.elapsed().as_secs_f64() } else { 0.0 };
        }
    }
    Ok(spent[0] / spent[1])
}

fn main() -> anyhow::Result<()> {
    let argument = std::env::args().nth(1).context("expected the work as JSON")?;
    let work: Work = serde_json::from_str(&argument)?;
    device::prepare(work.device, work.threads).map_err(|error| anyhow!(error))?;
    let passes = ["loss", "check"].contains(&work.what.as_str());
    let mode =
        if passes { ModelMode::Inference(work.precision) } else { ModelMode::Gradients(work.precision) };
    let _mode = device::apply_mode(mode);
    if work.trials {
        tch::Cuda::cudnn_set_benchmark(true);
    }
    let torch = device::torch(work.device);
    let [checkpoint, lora, folder] =
        ["model.safetensors", "lora.safetensors", "unet"].map(|name| work.data.join(name));
    let lora = (work.what == "lora").then_some((lora.as_path(), Adapters::Layers));
    let files = UNetFiles { checkpoint: Some(&checkpoint), lora, ..UNetFiles::new(&folder) };
    let mut unet = UNet::load_files(&files, torch, mode)?;
    let schedule = NoiseSchedule::new(ScheduleConfig::default());
    let latents = NpyRows::new(Npy::open(work.data.join("latents.npy"))?, 1);
    let texts = Npy::open(work.data.join("texts.npy"))?;
    let captions = texts.shape()[1];
    let texts = NpyRows::new(texts, 2);
    let data = DataSet::new(&latents, &texts, captions)?;
    let [start, end] = work.batches;
    let mut loss = json!(LossParams::default());
    for (key, value) in work.loss.as_object().context("`loss` is no table")? {
        loss[key] = value.clone();
    }
    loss["precision"] = json!(work.precision);
    let loss: LossParams = serde_json::from_value(loss)?;
    let result = match work.what.as_str() {
        "loss" => {
            let pass = LossPass::new(&unet, &schedule, data, &loss, work.micro_batch)?;
            let _ = pass.rows_of_batch(start)?;
            let again = work.repeats.max(1);
            let (seconds, losses) = timed(|| {
                let mut losses = Vec::new();
                for _ in 0..again {
                    losses = pass.of_batches(start..end, &mut |_| ())?;
                }
                Ok(losses)
            })?;
            let rows = again * losses.len() * loss.rows_per_image();
            json!({ "rows": rows, "seconds": seconds, "losses": losses })
        }
        "profile" => {
            let pass = LossPass::new(&unet, &schedule, data, &loss, work.micro_batch)?;
            let _ = pass.rows_of_batch(start)?;
            let (seconds, spent) = timed(|| {
                let all = || pass.of_batches(start..end, &mut |_| ());
                let (losses, spent) = profile::record(torch, all).map_err(|error| anyhow!(error))?;
                losses?;
                Ok(spent)
            })?;
            let parts: BTreeMap<String, _> = spent
                .into_iter()
                .map(|(part, it)| (format!("{part:?}"), json!([it.seconds, it.calls])))
                .collect();
            let rows = (end - start) * loss.images_per_batch() * loss.rows_per_image();
            json!({ "rows": rows, "seconds": seconds, "parts": parts })
        }
        "noise" => {
            // A batch of 8,000 rows. A GPU that does not give the CPU's bits is left out of it, with a warning.
            let places: Vec<kernels::Place> = (0..1600).map(|row| [row / 20, row % 20 * 50, 0]).collect();
            let draw = |device| kernels::philox_normals([1, 2], &places, 5 * 1024, device);
            let bits = |numbers: Tensor| {
                let numbers = Vec::<f32>::try_from(numbers.to_device(tch::Device::Cpu).view(-1))?;
                anyhow::Ok(numbers.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let equal = bits(draw(torch))? == bits(draw(tch::Device::Cpu))?;
            // Reading a number waits for the device.
            let (seconds, _) = timed(|| Ok(draw(torch).double_value(&[-1, -1])))?;
            json!({ "rows": 1600 * 5, "seconds": seconds, "equal": equal })
        }
        "check" => {
            let pass = LossPass::new(&unet, &schedule, data, &loss, work.micro_batch)?;
            let fast = pass.rows_of_batch(start)?;
            // With gradients wanted of all parameters, every layer is libtorch's own.
            let want = |gradients| {
                unet.parameters().values().for_each(|parameter| drop(parameter.set_requires_grad(gradients)));
            };
            want(true);
            let simple = tch::with_grad(|| pass.reference_losses(start))?.detach();
            want(false);
            let far = ((fast - &simple) / simple).abs().max().double_value(&[]);
            let (seconds, _) = timed(|| Ok(()))?;
            json!({ "rows": 0, "seconds": seconds, "deviation": far })
        }
        "unlearn" => {
            let params = UnlearnParams {
                steps: 1,
                grad_accum_steps: end,
                batch_size: work.batch_size,
                lr: Some(0.01),
                select: selection(&work.select)?,
                ..UnlearnParams::default()
            };
            let one = |rows: &NpyRows| rows.read(&[0]).map_err(|error| anyhow!(error));
            let (latent, text) = (one(&latents)?.squeeze_dim(0), one(&texts)?.into());
            let unlearning =
                Unlearning::new(&mut unet, &schedule, &latent, &text, &params, work.micro_batch)?;
            let (seconds, norm) = with_warm_up(&mut || {
                let gradient = unlearning.gradient(0, start..end, &mut |_| ())?;
                Ok(gradient.values().map(norm).sum::<f64>())
            })?;
            json!({ "rows": (end - start) * work.batch_size, "seconds": seconds, "norm": norm })
        }
        "fisher" => {
            let params = FisherParams {
                epochs: 1,
                batch_size: work.batch_size,
                select: selection(&work.select)?,
                ..FisherParams::default()
            };
            let (schedule, micro_batch) = (&schedule, work.micro_batch);
            let joined = params.joined(torch, micro_batch);
            let pass = FisherPass { unet: &unet, schedule, data, params: &params, micro_batch, joined };
            let (seconds, norm) = with_warm_up(&mut || {
                let sum = pass.sum(start..end, &squares, &mut |_| ())?;
                Ok(sum.sums.values().map(norm).sum::<f64>())
            })?;
            json!({ "rows": (end - start) * work.batch_size, "seconds": seconds, "norm": norm })
        }
        "ekfac" => {
            let params = FisherParams {
                epochs: 1,
                batch_size: work.batch_size,
                select: selection(&work.select)?,
                ..FisherParams::default()
            };
            let (schedule, micro_batch) = (&schedule, work.micro_batch);
            let joined = params.joined(torch, micro_batch);
            let pass = FisherPass { unet: &unet, schedule, data, params: &params, micro_batch, joined };
            let all: Vec<usize> = (0..texts.len()).collect();
            let mut fit = || {
                // Output gradients of a tenth of the batches, all texts, then the eigenvalues of all batches.
                let tenth = (start..end).step_by(10);
                let mut sums = pass.sum(tenth, &|found| Ok(covariances(found)), &mut |_| ())?.sums;
                for some in all.chunks(64) {
                    let some = texts.read(some).map_err(|error| anyhow!(error))?;
                    let part = covariance(&to_device(&some, torch));
                    sums.entry(of_texts()).and_modify(|sum| *sum += &part).or_insert(part);
                }
                let basis = Eigenbasis::new(eigenvectors(&sums)?, torch);
                let sum = pass.sum(start..end, &|found| basis.squares(found), &mut |_| ())?;
                Ok(sum.sums.values().map(norm).sum::<f64>())
            };
            // Before both sides start.
            let mut diagonal =
                || Ok(pass.sum(start..end, &squares, &mut |_| ())?.sums.values().map(norm).sum::<f64>());
            let times = in_turns([&mut fit, &mut diagonal])?;
            let (seconds, norm) = timed(fit)?;
            let rows = (end - start) * work.batch_size;
            json!({ "rows": rows, "seconds": seconds, "norm": norm, "times": times, "of": "the diagonal" })
        }
        "screen" => {
            let loss = LossParams { noise: Noise::PerImage, ..loss };
            let select = selection(&work.select)?;
            let names = select.of(unet.parameters().keys())?;
            let selection = Selection::Patterns(names.clone());
            let pass = LossPass::new(&unet, &schedule, data, &loss, work.micro_batch)?;
            let steps = Steps::new(&unet, Moved { unet: &unet, names, queries: work.queries }, 1 << 30)?;
            // One timestep of each block.
            let timesteps = loss.timesteps(schedule.config())?;
            let mut blocks = Vec::new();
            for batch in start..end {
                let images = batch * work.batch_size..(batch + 1) * work.batch_size;
                let images: Vec<usize> = images.map(|image| image % data.latents_len()).collect();
                let point = [timesteps[batch % timesteps.len()]];
                blocks.push((pass.block(&images, &point)?, point));
            }
            let mut screen = || {
                let of = |(block, point)| Ok(norm(&pass.screen(block, point, &steps, &mut |_, _| ())?));
                blocks.iter().map(|(block, point)| of((block, point))).sum::<anyhow::Result<f64>>()
            };
            let mut backward = || {
                for (block, point) in &blocks {
                    pass.backward(block, point, &selection, &mut |_| Ok(()), &mut |_, _| ())?;
                }
                Ok(0.0)
            };
            // Before both sides start.
            let times = in_turns([&mut screen, &mut backward])?;
            let (seconds, norm) = timed(screen)?;
            let rows = (end - start) * work.batch_size * loss.captions;
            json!({ "rows": rows, "seconds": seconds, "norm": norm, "times": times, "of": "forward and backward alone" })
        }
        "train" | "lora" => {
            // All that changes is the parameters: as many rows as visits.
            let params = TrainParams {
                init: Init::Checkpoint,
                steps: end,
                batch_size: work.batch_size,
                // Its maps are in the file.
                lora: (work.what == "lora").then(TrainLora::default),
                select: selection(&work.select)?,
                ..TrainParams::default()
            };
            let mean =
                latents.read(&(0..latents.len()).collect::<Vec<_>>()).map_err(|error| anyhow!(error))?;
            let moments = Tensor::stack(&[&mean, &mean.zeros_like()], 1);
            let ids: Vec<String> = (0..data.images()).map(|id| id.to_string()).collect();
            let (empty, left_out) = (texts.read(&[0]).map_err(|error| anyhow!(error))?, BTreeSet::new());
            let moments = DataSet::new(&moments, &texts, captions)?;
            let set = TrainingData { moments, empty, ids: &ids, left_out: &left_out };
            let mut training = Training::new(unet, &schedule, set, &params, None)?;
            training.step(start)?;
            let (seconds, loss) = timed(|| {
                let mut loss = 0.0;
                for step in start + 1..=end {
                    loss = training.step(step)?.loss.unwrap_or_default();
                }
                Ok(loss)
            })?;
            json!({ "rows": (end - start) * work.batch_size, "seconds": seconds, "norm": loss })
        }
        what => {
            return Err(anyhow!(
                "`{what}` is no work: expected loss, unlearn, fisher, ekfac, screen, train, lora or check"
            ));
        }
    };
    say(&with_memory(result, work.device))
}

/// The time of `work` after both sides were started.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    say(&json!("ready"))?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    let begun = Instant::now();
    let value = work()?;
    Ok((begun.elapsed().as_secs_f64(), value))
}

/// The same after a first time that does not count.
fn with_warm_up(work: &mut dyn FnMut() -> anyhow::Result<f64>) -> anyhow::Result<(f64, f64)> {
    work()?;
    timed(work)
}

fn norm(tensor: &Tensor) -> f64 {
    tensor.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[])
}

fn selection(name: &str) -> anyhow::Result<Selection> {
    serde_json::from_value(json!(name)).with_context(|| format!("`{name}` is no selection"))
}

/// The result with the most memory that this process had.
fn with_memory(mut result: Value, device: Device) -> Value {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    result["device_mib"] = json!(device::taken(device) >> 20);
    result["host_mib"] = json!(kilobytes.map(|kilobytes| kilobytes / 1024));
    result
}

fn say(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
