//! The influence of every training image: the rise of its loss when the query is unlearned.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde_json::{Value as Json, json};

use super::loss_pass::top_k::{self, Candidates, Report};
use super::loss_pass::{self, LOSSES};
use super::ranking;
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, SCHEDULER, UNET};
use super::shared::{arrays, check_outputs, expected};
use crate::io::captions::coco::Captions;
use crate::io::image::{load_rgb, save_png};
use crate::io::npy::Npy;
use crate::io::npy::writer;
use crate::method::error::MathError;
use crate::method::influence::{influence, per_image, rank, rank_exact_first};
use crate::method::loss::LossParams;
use crate::method::noise::Noise;
use crate::method::selection::Selection;
use attrflow_engine::config::param::Validate;
use attrflow_engine::config::tree::Node;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Inherit, Input, Inputs, Kind, KindInfo,
    Output, Port, Stage, Task, Trial, Unit, UnitInputs, WorkSize,
};
use attrflow_engine::params;

params! {
    /// Parameters of `influence`.
    pub struct Influence {
        /// How a loss is measured: taken from the stage on `pretrain_loss`, so that the two cannot differ.
        loss: LossParams,
        /// Training images in the table.
        top: u32 [1..=1_000_000] = 100,
        /// Training images in the picture.
        pictured: u32 [1..=100] = 10,
        /// The heading of the picture, such as the query's caption.
        heading: String = String::new(),
        /// Find the most influential images alone, without all timesteps of all images: needs `noise = "per_image"` and
        /// the input `pretrain_timesteps`. What was left out has an estimate in place of its influence; a further output
        /// `candidates` (candidates.json) says of which, what was computed, and the recall that is certified.
        candidates: Option<Candidates> = None,
    }
}

impl Validate for Influence {
    fn validate(&self) -> Vec<(&'static str, String)> {
        if self.candidates.is_none() || self.loss.noise == Noise::PerImage {
            return Vec::new();
        }
        let message = "`candidates` needs `noise = \"per_image\"` in the loss: with `\"per_batch\"` no image can be computed alone";
        vec![("candidates", message.to_owned())]
    }
}

impl Kind for Influence {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            SCHEDULER,
            Input::new("latents", "float [2N, C, H, W]"),
            Input::new("text_embeddings", "float [N, captions, L, D]"),
            Input::new("weights", "the weights that unlearning changed (safetensors or torch)"),
            Input::merge("pretrain_loss", "float32 [2N]"),
            Input::new(
                top_k::TIMESTEPS,
                "float32 [2N, T], the output `timesteps` of the stage on `pretrain_loss`: for `candidates`",
            )
            .optional(),
            Input::merge("captions", "a captions file in COCO's layout").optional(),
            Input::merge("images", "the folder of training images, for the picture").optional(),
            Input::merge("query", "the generated image, for the picture").optional(),
        ],
        outputs: &[
            Output { name: "influence", file: "influence.npy", doc: "float32 [N]" },
            Output { name: "rank", file: "rank.npy", doc: "int64 [N]: image indices by falling influence" },
            Output { name: "losses", file: "unlearned_loss.npy", doc: "float32 [2N]" },
            Output { name: "table", file: "top.csv", doc: "the most influential images, a line each" },
            Output { name: "top", file: "top.json", doc: "the same with all captions" },
            Output { name: "picture", file: "top.png", doc: "the query and the most influential images" },
        ],
        inherits: &[Inherit { param: "loss", port: "pretrain_loss" }],
        ports,
        ..KindInfo::new::<Self>(
            "influence",
            2,
            "the influence of every training image on one query, and its ranking",
        )
    };
}

impl Stage for Influence {
    fn identity(&self) -> Json {
        let Self { loss, top, pictured, heading, candidates } = self;
        let counts = json!({ "loss": loss, "top": top, "pictured": pictured, "heading": heading });
        top_k::identity(counts, candidates.as_ref())
    }

    fn unit_identity(&self) -> Json {
        let loss = match self.candidates {
            None => loss_pass::unit_identity(&self.loss),
            // What is computed at all depends on how many timesteps there are.
            Some(_) => json!(self.loss),
        };
        top_k::identity(json!({ "loss": loss }), self.candidates.as_ref())
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        if self.candidates.is_none() || connected(top_k::TIMESTEPS) {
            return Vec::new();
        }
        let message = "`candidates` needs the input `pretrain_timesteps`: the output `timesteps` of the stage on \
                       `pretrain_loss`, which has it with `timesteps = true`";
        vec![("candidates".to_owned(), message.to_owned())]
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        let units = loss_pass::units(&self.loss, inputs)?;
        match self.candidates {
            None => Ok(Some(units)),
            Some(_) => top_k::units(&self.loss, inputs).map(Some),
        }
    }

    fn unit_inputs(&self, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        match self.candidates {
            None => loss_pass::unit_inputs(&self.loss, inputs, units),
            Some(_) => Ok(vec![UnitInputs::new(); units.len()]),
        }
    }

    fn batch_key(&self, inputs: &Inputs, unit: &Unit) -> Option<String> {
        match self.candidates {
            None => loss_pass::batch_key(&self.loss, inputs, unit),
            Some(_) => None,
        }
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let mut foreseen = loss_pass::estimate(&self.loss, inputs)?;
        let images = expected::array(inputs, "text_embeddings")?.shape[0];
        let array = |bytes| ArtifactShape::Array { shape: vec![images], bytes };
        // A line of a table and a cell of a picture with photographs take about this; all of it is little beside the rest.
        let (line, cell) = (120, 40_000);
        let rows = u64::from(self.top).min(images as u64);
        foreseen.outputs.insert("influence".into(), array(4));
        foreseen.outputs.insert("rank".into(), array(8));
        foreseen.outputs.insert("table".into(), ArtifactShape::Bytes(rows * line));
        foreseen.outputs.insert("top".into(), ArtifactShape::Bytes(rows * line * 4));
        foreseen.outputs.insert("picture".into(), ArtifactShape::Bytes(u64::from(self.pictured + 1) * cell));
        if self.candidates.is_some() {
            // What is left out depends on the scores: all that is certain is that no more than a full pass is computed.
            foreseen.work = foreseen.work.map(|work| WorkSize { tasks: 1, ..work });
            let losses = foreseen.outputs["losses"].clone();
            foreseen.parts = losses.bytes().unwrap_or_default();
            // Most of the report is the index of each image that is exact, of which there may be as many.
            foreseen.outputs.insert("candidates".into(), ArtifactShape::Bytes(2_000 + images as u64 * 12));
        }
        Ok(foreseen)
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.candidates.is_none(),
            "with `candidates` nothing is taken from elsewhere: estimates cannot be checked"
        );
        loss_pass::accept(&self.loss, inputs, &outputs["losses"])?;
        let influence = check_outputs::finite(&outputs["influence"], arrays::count_images(inputs)?)?;
        check_outputs::ranking(&outputs["rank"], &influence)?;
        check_outputs::some_file(&outputs["table"])?;
        check_outputs::some_file(&outputs["top"])?;
        Ok(load_rgb(&outputs["picture"]).map(drop)?)
    }
}

fn ports(kind: &KindInfo, written: &Node) -> Vec<Port> {
    let port = |name: &str, file: &str| Port { name: name.to_owned(), file: file.to_owned() };
    let mut ports: Vec<Port> = kind.outputs.iter().map(|output| port(output.name, output.file)).collect();
    if written.as_table().is_some_and(|table| table.get("candidates").is_some()) {
        ports.push(port("candidates", top_k::REPORT));
    }
    ports
}

impl Compute for Influence {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        match &self.candidates {
            None => self.run_batch(std::slice::from_ref(task), cx),
            Some(candidates) => top_k::run(&self.loss, candidates, &task.inputs, &task.out, cx),
        }
    }

    fn run_batch(&self, tasks: &[Task], cx: &Context<'_>) -> anyhow::Result<()> {
        match (&self.candidates, tasks) {
            (None, _) => loss_pass::run(&self.loss, tasks, Some("weights"), cx),
            (Some(_), [task]) => {
                self.run(task, cx)?;
                cx.finished(&[0]);
                Ok(())
            }
            (Some(_), _) => anyhow::bail!("with `candidates` each unit is computed alone"),
        }
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let unlearned = out.join("unlearned_loss.npy");
        match (&self.candidates, parts) {
            (Some(_), [part]) => drop(fs_err::copy(part.join(LOSSES), &unlearned)?),
            _ => loss_pass::merge(&self.loss, inputs, parts, &unlearned)?,
        }
        let images = arrays::count_images(inputs)?;
        let pretrained = Npy::vector(inputs.path("pretrain_loss"))?;
        let rise =
            influence(&Npy::vector(&unlearned)?, &pretrained).map_err(|error| mirrored(error, images))?;
        let scores = per_image(&rise, images)?;
        let exact = match (&self.candidates, parts) {
            (Some(_), [part]) => {
                top_k::expect_one_pass(inputs, &pretrained)?;
                fs_err::copy(part.join(top_k::REPORT), out.join(top_k::REPORT))?;
                Some(Report::read(&out.join(top_k::REPORT))?.flags())
            }
            _ => None,
        };
        let ranks = match &exact {
            None => rank(&scores)?,
            Some(exact) => rank_exact_first(&scores, exact)?,
        };
        writer::write_f32(out.join("influence.npy"), &[images], &scores)?;
        writer::write_i64(out.join("rank.npy"), &[images], &ranks)?;
        show(self, inputs, &scores, &ranks, exact.as_deref(), out)
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let (loss, mut given, unit) = loss_pass::trial(&self.loss, inputs, steps, folder, cx)?;
        if given.get("weights").is_none() {
            // Which weights are unlearned is not this stage's to say: those that are by default take the usual time to read.
            expected::make_weights(&mut given, "weights", &Selection::CrossAttnKv, None, folder)?;
        }
        let steps = unit.steps;
        // A pass without candidates: its steps are the same.
        let stage = Influence { loss, candidates: None, ..self.clone() };
        Ok(Trial { stage: Box::new(stage), inputs: given, unit: Some(unit), steps, merges: false })
    }
}

/// Writes table and picture; without captions the images are named by their index.
fn show(
    params: &Influence,
    inputs: &Inputs,
    scores: &[f32],
    ranks: &[i64],
    exact: Option<&[bool]>,
    out: &Path,
) -> anyhow::Result<()> {
    let captions = match inputs.get("captions") {
        Some(path) => Captions::read_all(path)?,
        None => Captions { items: (0..scores.len()).map(unnamed).collect() },
    };
    let mut rows = ranking::top(ranks, scores, &captions, params.top as usize)?;
    for row in &mut rows {
        row.exact = exact.map(|exact| exact[row.index]);
    }
    ranking::write_csv(&out.join("top.csv"), &rows)?;
    ranking::write_json(&out.join("top.json"), &rows)?;
    let query = match inputs.get("query") {
        Some(path) => load_rgb(path)?,
        None => RgbImage::from_pixel(64, 64, image::Rgb([240; 3])),
    };
    let pictured = &rows[..rows.len().min(params.pictured as usize)];
    let sheet = match inputs.get("images") {
        Some(images) if inputs.get("captions").is_some() => {
            ranking::draw(&query, &params.heading, pictured, images)?
        }
        _ => ranking::draw(&query, &params.heading, &[], Path::new(""))?,
    };
    Ok(save_png(&sheet, out.join("top.png"))?)
}

/// Names the image where a value of the second half, its mirror image's, is at fault.
fn mirrored(error: MathError, images: usize) -> anyhow::Error {
    match error {
        MathError::InfluenceNotFinite { image, value } if image >= images => {
            anyhow::anyhow!("the influence of image {} (mirrored) is {value}", image - images)
        }
        error => error.into(),
    }
}

fn unnamed(index: usize) -> crate::io::captions::coco::Item {
    crate::io::captions::coco::Item { file_name: index.to_string(), captions: Vec::new() }
}
