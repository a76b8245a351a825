//! Trains the network, with images left out if wanted.

mod files;
mod speed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, ensure};
use tch::{Device, Tensor};

use crate::io::npy::Npy;
use crate::kinds::shared::arrays::TEXT_EMBEDDINGS;
use crate::kinds::shared::arrays::{self, NpyRows};
use crate::kinds::shared::network::{
    CHECKPOINT, SCHEDULER, TEXT_ENCODER, TEXT_ENCODER_2, TOKENIZER, TOKENIZER_2, with_text_model,
};
use crate::kinds::shared::parameters::Parameters;
use crate::kinds::shared::text::TextModel;
use crate::kinds::shared::{check_inputs, check_values, device, expected, ids, ranges, tensors};
use crate::method::data::DataSet;
use crate::method::identity::hashed;
use crate::method::schedule::{NoiseSchedule, ScheduleConfig};
use crate::method::selection::Selection;
pub use crate::method::train::TrainParams;
use crate::method::train::{
    Init, LrScheduler, TrainLora, Training, TrainingData, TrainingState, new_adapters, random_weights,
};
use crate::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use crate::models::weights::{Weights, checkpoint};
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Input, Inputs, Kind, KindInfo, Output, Stage,
    Task, Trial, Unit, Units, WorkSize,
};
use files::{read_state, write_lora, write_row, write_state};
use serde_json::{Value as Json, json};
use speed::Speed;

const MOMENTS: &str = "moments";
const LEFT_OUT: &str = "left_out";
/// The files of a unit.
const STATE: &str = "state.safetensors";
const CURVE: &str = "curve.csv";
const HEADER: &str = "step,rows,loss,grad_norm,lr\n";
/// The folder of the trained network, in diffusers' layout.
const MODEL: &str = "unet";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
/// The trained maps of low rank: the parameter, and the port.
const LORA: &str = "lora";
const LORA_FILE: &str = "pytorch_lora_weights.safetensors";

impl Kind for TrainParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new(
                "unet",
                "a folder with config.json, and with a checkpoint where `init` is `checkpoint`",
            ),
            CHECKPOINT,
            SCHEDULER,
            Input::new(MOMENTS, "float [2N, 2, C, H, W]: `latents.moments`"),
            TEXT_EMBEDDINGS,
            Input::new("captions", "the captions file in COCO's layout: its image ids"),
            TEXT_ENCODER,
            TOKENIZER,
            TEXT_ENCODER_2,
            TOKENIZER_2,
            Input::new(LEFT_OUT, "the ids of images to leave out: `subset.ids`, or a JSON file with a list")
                .optional(),
        ],
        outputs: &[
            Output::new(
                "unet",
                MODEL,
                "the trained network: config.json and weights, as diffusers reads them",
            )
            .replaced_by(LORA),
            Output::new(LORA, LORA_FILE, "the trained maps of low rank, as diffusers reads them")
                .enabled_by(LORA),
            Output::new("curve", CURVE, "by step: rows, mean loss, norm of the gradient, learning rate"),
        ],
        one_thread: true,
        ..KindInfo::new::<Self>(
            "train",
            1,
            "a network trained on the data set, with images left out if wanted",
        )
    };
}

impl Stage for TrainParams {
    fn identity(&self) -> Json {
        hashed(self, &[(LORA, self.lora.is_none()), ("objective", self.objective.is_plain())])
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        check_inputs::second_encoder(connected)
    }

    /// With a constant learning rate, a step does not depend on how many follow.
    fn unit_identity(&self) -> Json {
        let mut identity = self.identity();
        if self.lr_scheduler == LrScheduler::Constant
            && let Json::Object(keys) = &mut identity
        {
            keys.remove("steps");
            keys.remove("checkpoint_every");
        }
        identity
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_inputs::texts(inputs)?;
        ScheduleConfig::load(inputs.path("scheduler"))?;
        if self.init == Init::Checkpoint {
            checkpoint::of(inputs.path("unet"), inputs.get("checkpoint"))?;
        }
        if let Some(lora) = &self.lora {
            let network = Parameters::of(inputs, &lora.targets)?;
            ensure!(
                network.selected().any(|header| header.shape.len() == 2),
                "`targets` is {}, which chooses no linear layer of {}",
                lora.targets,
                network.path.display()
            );
        }
        let Set { ids, texts, .. } = open(inputs)?;
        check_inputs::sizes(&texts, &check_inputs::unet(inputs.path("unet"))?)?;
        let left_out = left_out(inputs)?;
        ids::check(&ids, &left_out, inputs.get(LEFT_OUT))?;
        ensure!(
            left_out.len() < ids.len(),
            "all {} images are left out: nothing is left to train on",
            ids.len()
        );
        Ok(())
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &[MOMENTS, "text_embeddings"])
    }

    fn units(&self, _inputs: &Inputs) -> anyhow::Result<Units> {
        Ok(Units::Chain(split(self)))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        // Where training begins at random weights, the folder may have no others.
        let bytes = |select: &Selection| expected::selected(inputs, select, 4).ok()?.bytes();
        let trained =
            || self.lora.as_ref().map_or_else(|| bytes(&self.select), |lora| lora_bytes(inputs, lora).ok());
        let copies = if self.ema_decay.is_some() { 4 } else { 3 };
        let units = split(self);
        let unet = bytes(&Selection::All).zip(inputs.path("unet").ok());
        let unet = unet.map(|(bytes, path)| ArtifactShape::Like { path: path.to_owned(), bytes });
        let curve = ArtifactShape::Bytes(60 * self.steps as u64);
        let network = match &self.lora {
            Some(lora) => lora_bytes(inputs, lora).ok().map(|bytes| (LORA, ArtifactShape::Bytes(bytes))),
            None => unet.map(|unet| (MODEL, unet)),
        };
        let outputs = network
            .map(|network| [network, ("curve", curve)].map(|(port, shape)| (port.to_owned(), shape)).into());
        Ok(Estimate {
            outputs: outputs.unwrap_or_default(),
            parts: units.len() as u64 * copies * trained().unwrap_or(0),
            work: Some(WorkSize {
                steps: self.steps as u64,
                tasks: units.len() as u64,
                // The number of steps is known before anything of the data is.
                cost_key: self.cost_key(inputs).unwrap_or_default(),
                ..WorkSize::default()
            }),
        })
    }
}

/// The bytes of a LoRA's maps.
fn lora_bytes(inputs: &ExpectedInputs, lora: &TrainLora) -> anyhow::Result<u64> {
    let network = Parameters::expected(inputs, &lora.targets)?;
    let linear = network.selected().filter(|header| header.shape.len() == 2);
    Ok(linear.map(|header| 4 * (lora.rank * (header.shape[0] + header.shape[1])) as u64).sum())
}

/// Spans of steps, each to a checkpoint.
fn split(params: &TrainParams) -> Vec<Unit> {
    let starts = (0..params.steps).step_by(params.checkpoint_every);
    let units = starts.map(|start| {
        let end = params.steps.min(start + params.checkpoint_every);
        Unit {
            name: format!("steps {start}..{end}"),
            range: json!({ "steps": [start, end] }),
            steps: (end - start) as u64,
        }
    });
    units.collect()
}

/// The ids of images to leave out.
fn left_out(inputs: &Inputs) -> anyhow::Result<BTreeSet<String>> {
    inputs.get(LEFT_OUT).map_or(Ok(BTreeSet::new()), ids::read)
}

/// The arrays on `moments` and `text_embeddings`, and the ids of their images.
struct Set {
    moments: Npy,
    texts: Npy,
    ids: Rc<Vec<String>>,
}

/// The training set, checked against the network and the captions file, which is read once: COCO's has 90 MB.
fn open(inputs: &Inputs) -> anyhow::Result<Set> {
    let config = check_inputs::unet(inputs.path("unet"))?;
    let (moments, texts) = (Npy::open(inputs.path(MOMENTS))?, Npy::open(inputs.path("text_embeddings"))?);
    moments
        .expect_shape(&[None, Some(2), Some(config.in_channels as usize), None, None])
        .context("the moments do not fit the network")?;
    arrays::expect_texts_fit(&texts, &config)?;
    let ids = ids::of_captions(inputs.path("captions"))?;
    let images = ids.len();
    for (npy, rows) in [(&moments, 2 * images), (&texts, images)] {
        ensure!(
            npy.rows() == rows,
            "{}: {} rows, expected {rows}, since {} has {images} images",
            npy.path().display(),
            npy.rows(),
            inputs.path("captions").display()
        );
    }
    Ok(Set { moments, texts, ids })
}

/// Says if the network is meant for latents of another size.
fn warn_of_size(inputs: &Inputs, found: &[usize]) -> anyhow::Result<()> {
    let meant = check_inputs::unet(inputs.path("unet"))?.latent_shape();
    if let Some([_, height, width]) =
        meant.filter(|[_, height, width]| [*height as usize, *width as usize] != *found)
    {
        tracing::warn!(
            "latents of {} x {}, and the network's `sample_size` is {height} x {width}: is `latents.pixels` what it was trained with?",
            found[0],
            found[1]
        );
    }
    Ok(())
}

impl Compute for TrainParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let steps = ranges::range(task.unit()?, "steps")?;
        // A model trains on one thread: more would change the order in which numbers are added.
        let _one = device::one_thread();
        let _guard = device::deterministic();
        let Set { moments, texts, ids } = open(inputs)?;
        let texts_shape = texts.shape().to_vec();
        let captions = texts_shape[1];
        let size = moments.shape()[3..].to_vec();
        let rows = (NpyRows::new(moments, 1), NpyRows::new(texts, 2));
        let left_out = left_out(inputs)?;
        let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&self.objective);
        // The sizes of a row are its image's, whatever its text.
        let empty = |model: &TextModel| tch::no_grad(|| Ok(model.embed(&[""])?.rows(Default::default())));
        let empty = with_text_model(inputs, cx.device, empty)?;
        let (found, expected) = (&empty.size()[1..], &texts_shape[2..]);
        ensure!(
            found.iter().map(|&size| size as usize).eq(expected.iter().copied()),
            "the text encoder gives texts of {found:?} numbers, expected {expected:?} as on `text_embeddings`: they must come from the \
             same encoder and tokenizer"
        );
        let data = TrainingData {
            moments: DataSet::new(&rows.0, &rows.1, captions)?,
            empty: empty.to_device(Device::Cpu),
            ids: &ids,
            left_out: &left_out,
        };
        let unet = self.network(inputs, device::torch(cx.device))?;
        warn_of_size(inputs, &size)?;
        let state = inputs.previous().map(|folder| read_state(&folder.join(STATE))).transpose()?;
        let mut training = Training::new(unet, &schedule, data, self, state)?;
        let mut curve = std::io::BufWriter::new(fs_err::File::create(out.join(CURVE))?);
        let (first, total) = (steps.start, steps.len() as u64);
        let mut speed = Speed::new();
        for step in steps {
            let report =
                training.step(step).with_context(|| format!("step {step}: the training diverged"))?;
            write_row(&mut curve, &report)?;
            cx.progress_with((step + 1 - first) as u64, total, &speed.add(&report));
        }
        curve.into_inner()?.sync_all()?;
        speed.log(&task.unit()?.name);
        write_state(&out.join(STATE), &training.state())
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let last = parts.last().context("a training without steps")?;
        let TrainingState { weights, ema, .. } = read_state(&last.join(STATE))?;
        let trained = ema.unwrap_or(weights);
        match &self.lora {
            Some(lora) => write_lora(&out.join(LORA_FILE), lora, &trained)?,
            None => {
                let folder = out.join(MODEL);
                fs_err::create_dir_all(&folder)?;
                fs_err::copy(inputs.path("unet").join("config.json"), folder.join("config.json"))?;
                // What is not trained is as it was at the beginning.
                let network = self.network(inputs, device::torch(cx.device))?;
                let all =
                    network.parameters().iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
                let mut all: BTreeMap<String, Tensor> = all.collect();
                all.extend(trained);
                tensors::write(&folder.join(WEIGHTS), &all, &[])?;
            }
        }
        let mut curve = HEADER.to_owned();
        for part in parts {
            curve += &fs_err::read_to_string(part.join(CURVE))?;
        }
        Ok(fs_err::write(out.join(CURVE), curve)?)
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let (texts, moments) = arrays(inputs)?;
        let mut given = inputs.inputs();
        let made = [MOMENTS, "text_embeddings", "captions"].iter().any(|port| given.get(port).is_none());
        if made {
            let images = texts.shape[0].min(self.batch_size);
            expected::make_array(&mut given, MOMENTS, &moments, 2 * images, folder)?;
            expected::make_array(&mut given, "text_embeddings", &texts, images, folder)?;
            expected::make_captions(&mut given, images, folder)?;
        }
        // As many images are left out as will be, also where it is not known yet which.
        if inputs.connected(LEFT_OUT) && (made || given.get(LEFT_OUT).is_none()) {
            let ids = ids::of_captions(given.path("captions"))?;
            let count = (left_out_share(inputs)? * ids.len() as f64) as usize;
            let list = folder.join("left_out.json");
            fs_err::write(&list, format!("[{}]", ids[..count.min(ids.len() - 1)].join(", ")))?;
            given.0.insert(LEFT_OUT.to_owned(), list);
        }
        let steps = (steps as usize).min(self.checkpoint_every).max(1);
        let stage = TrainParams { steps, checkpoint_every: steps, ..self.clone() };
        let units = split(&stage).into_iter().take(1).collect();
        Ok(Trial { stage: Box::new(stage), inputs: given, units, steps: steps as u64, merges: false })
    }
}

/// The share of images that are left out, as far as it is known: an expected list by its length in bytes.
fn left_out_share(inputs: &ExpectedInputs) -> anyhow::Result<f64> {
    let Ok(list) = inputs.shape(LEFT_OUT) else { return Ok(0.0) };
    let all = ids::of_captions(inputs.path("captions")?)?;
    let bytes = || all.iter().map(|id| id.len() as f64 + 1.0).sum::<f64>();
    let share = match (list.path(), list.bytes()) {
        (Some(path), _) => ids::read(path)?.len() as f64 / all.len() as f64,
        (None, Some(expected)) => expected as f64 / bytes(),
        (None, None) => 0.0,
    };
    Ok(share.min(1.0))
}

/// The arrays on `text_embeddings` and `moments`, existing or expected.
fn arrays(inputs: &ExpectedInputs) -> anyhow::Result<(expected::Array, expected::Array)> {
    Ok((expected::array(inputs, "text_embeddings")?, expected::array_of(inputs, MOMENTS, 5)?))
}

impl TrainParams {
    /// What the time of a step depends on. Of the images that are left out, a tenth more or less does not matter.
    fn cost_key(&self, inputs: &ExpectedInputs) -> anyhow::Result<Json> {
        let (texts, moments) = arrays(inputs)?;
        let kept = 1.0 - left_out_share(inputs)?;
        Ok(json!({
            "batch_size": self.batch_size,
            "kept_tenths": (kept * 10.0).round() as u64,
            "select": self.trained(),
            "unet": expected::config(inputs, "unet")?,
            "latent": &moments.shape[2..],
            "text": &texts.shape[2..],
        }))
    }

    /// The network before the first step.
    fn network(&self, inputs: &Inputs, device: Device) -> anyhow::Result<UNet> {
        let (folder, mode) = (inputs.path("unet"), ModelMode::Gradients(Precision::Fp32));
        let files = UNetFiles { checkpoint: inputs.get("checkpoint"), ..UNetFiles::new(folder) };
        if let Some(lora) = &self.lora {
            let (file, mut tensors, mut factors) = files.read(device)?;
            for (layer, [down, up]) in new_adapters(&tensors, lora, self.seed.into()) {
                tensors.insert(format!("{layer}.lora_A.weight"), down);
                tensors.insert(format!("{layer}.lora_B.weight"), up);
                factors.insert(layer, lora.scale());
            }
            let weights = Weights::named(&file, tensors).with_adapters(factors);
            return Ok(UNet::build(&folder.join("config.json"), weights, device, mode)?);
        }
        match self.init {
            Init::Checkpoint => Ok(UNet::load_files(&files, device, mode)?),
            Init::Scratch => {
                let config = folder.join("config.json");
                let zeros = UNet::new(&config, Weights::zeros())?;
                let weights = random_weights(zeros.parameters(), self.seed.into(), device);
                Ok(UNet::build(&config, Weights::new(weights), device, mode)?)
            }
        }
    }
}
