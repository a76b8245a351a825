//! The influence of every training image: the rise of its loss after unlearning the query.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::influence_summary::Summary;
use super::loss_pass::per_timestep::{self, PER_TIMESTEP, PRETRAINED};
use super::loss_pass::top_k::{self, Report, SCREEN, TopK};
use super::loss_pass::{self, LOSSES};
use super::shared::arrays::{LATENTS, TEXT_EMBEDDINGS};
use super::shared::check_outputs::Outputs;
use super::shared::network::{CHECKPOINT, LORA, SCHEDULER, UNET};
use super::shared::{arrays, check_outputs, check_values, expected};
use super::step_check::{self, Accepted};
use crate::io::npy::writer;
use crate::io::npy::{Dtype, Npy};
use crate::method::error::MathError;
use crate::method::influence::{Flips, influence, per_image, rank, rank_exact_first};
use crate::method::loss::LossParams;
use crate::method::noise::Noise;
use crate::method::selection::Selection;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Inherit, Input, Inputs, Kind, KindInfo,
    Output, Shared, Stage, Task, Trial, Unit, UnitInputs, Units, WorkSize,
};
use attrflow_engine::params;

params! {
    /// Parameters of `influence`.
    pub struct Influence {
        /// How to measure a loss: inherited from the stage on `pretrain_loss`, so that the two cannot differ.
        loss: LossParams,
        /// Find only the most influential images, without computing all timesteps of all images. Needs
        /// `noise = "per_image"` and the input `pretrain_loss_per_timestep`. Images that are not computed in full get an
        /// estimate of their influence. The output `top_k` (top_k.json) lists the exact ones, the computed rows, and the
        /// certified recall. With the input `screen`, the images with the largest influence to first order are computed, and no
        /// others but those that certify.
        top_k: Option<TopK> = None,
        /// Accept weights of a step that was divided by another number of images than this data set has. The influences are
        /// then those of a larger or smaller step; a warning gives the factor.
        other_images: bool = false,
        /// Accept a query whose latent has another height or width than those of this data set: the network sees both, and its
        /// losses differ with the size. A warning gives both sizes.
        other_size: bool = false,
        /// Also write the influences per timestep, to the output `per_timestep` (influence_per_timestep.npy, float32 [2N, T], with
        /// `draws` above 1 [2N, T, R], a mean over captions): `ranking` makes error bars of them. Needs `noise = "per_image"` and
        /// the input `pretrain_loss_per_timestep`. Not with `top_k`.
        per_timestep: bool = false,
        /// What an image's influence is of its own and its mirror image's: `max`, the larger one, as published, which is too
        /// large on average by a part of their error; or `mean`.
        flips: Flips = Flips::Max,
    }
}

impl Validate for Influence {
    const RENAMED: &'static [(&'static str, &'static str)] = &[
        ("candidates", "top_k"),
        ("top", "ranking.rows"),
        ("pictured", "ranking.images_shown"),
        ("heading", "ranking.title"),
        ("pretrain_timesteps", "pretrain_loss_per_timestep"),
        ("captions", "ranking.captions"),
        ("images", "ranking.images"),
        ("query", "ranking.query"),
        ("table", "ranking.table"),
        ("picture", "ranking.picture"),
    ];
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let mut fault = |key, message: &str| faults.push((key, message.to_owned()));
        let per_batch = self.loss.noise == Noise::PerBatch;
        if self.top_k.is_some() && per_batch {
            fault(
                "top_k",
                "`top_k` needs `noise = \"per_image\"` in the loss: with `\"per_batch\"` an image cannot be computed alone",
            );
        }
        if self.top_k.is_some() && self.loss.draws > 1 {
            fault(
                "top_k",
                "`top_k` needs `draws = 1` in the loss: it takes images out timestep by timestep; take more timesteps",
            );
        }
        if self.top_k.is_some() && self.flips != Flips::Max {
            fault(
                "flips",
                "`flips` has to be \"max\" with `top_k`, which discards images by the larger of their two influences",
            );
        }
        if self.per_timestep && self.top_k.is_some() {
            fault(
                "per_timestep",
                "`per_timestep` cannot be used with `top_k`, which does not compute all timesteps of all images",
            );
        }
        if self.per_timestep && per_batch {
            fault(
                "per_timestep",
                "`per_timestep` needs `noise = \"per_image\"` in the loss: with `\"per_batch\"` a timestep cannot be computed alone",
            );
        }
        faults
    }
}

impl Influence {
    fn accepted(&self) -> Accepted {
        Accepted { other_images: self.other_images, other_size: self.other_size }
    }
}

/// What the two loss passes have in common, and what the step was taken from.
const OF_LOSSES: &[&str] = &["unet", "checkpoint", "lora", "scheduler", "latents", "text_embeddings"];
const OF_NETWORK: &[&str] = &["unet", "checkpoint", "lora", "scheduler"];
const PER_TIMESTEP_FILE: &str = "influence_per_timestep.npy";

impl Kind for Influence {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            UNET,
            CHECKPOINT,
            LORA,
            SCHEDULER,
            LATENTS,
            TEXT_EMBEDDINGS,
            Input::new("weights", "the weights that unlearning changed (safetensors or torch)"),
            Input::merge("pretrain_loss", "float32 [2N]"),
            Input::new(
                PRETRAINED,
                "float32 [2N, T] or [2N, T, R], the output `per_timestep` of the stage on `pretrain_loss`: needed by `per_timestep` \
                 and `top_k`",
            )
            .optional(),
            Input::new(
                SCREEN,
                "float32 [N]: this query's influence.npy in the output of `screen`, of the same losses: with `top_k`, the images to \
                 compute",
            )
            .optional(),
        ],
        outputs: &[
            Output::new("influence", "influence.npy", "float32 [N]"),
            Output::new("rank", "rank.npy", "int64 [N]: image indices by falling influence"),
            Output::new("losses", "unlearned_loss.npy", "float32 [2N]"),
            Output::new("top_k", top_k::REPORT, "the computed images and the certified recall").enabled_by("top_k"),
            Output::new(
                PER_TIMESTEP,
                PER_TIMESTEP_FILE,
                "float32 [2N, T] or [2N, T, R]: the rise of each loss per timestep and draw, a mean over captions",
            )
            .enabled_by(PER_TIMESTEP),
        ],
        inherits: &[Inherit { param: "loss", port: "pretrain_loss" }],
        shared: &[
            Shared { port: "pretrain_loss", kind: "pretrain-loss", inputs: OF_LOSSES },
            Shared { port: "weights", kind: "unlearn", inputs: OF_NETWORK },
            Shared { port: SCREEN, kind: "screen", inputs: OF_LOSSES },
        ],
        ..KindInfo::new::<Self>("influence", 4, "the influence of every training image on one query")
    };
}

impl Stage for Influence {
    fn identity(&self) -> Json {
        let Self { loss, top_k, other_images, other_size, per_timestep, flips } = self;
        let mut hashed = json!({
            "loss": loss.identity(),
            "top_k": top_k.as_ref().map(TopK::identity),
            "other_images": other_images,
            "other_size": other_size,
        });
        // Omitted if not set, so that results from before there were these keys stay valid.
        if *per_timestep {
            hashed["per_timestep"] = json!(true);
        }
        if *flips != Flips::Max {
            hashed["flips"] = json!(flips);
        }
        hashed
    }

    fn unit_identity(&self) -> Json {
        let loss = match self.top_k {
            None => loss_pass::unit_identity(&self.loss),
            // The number of timesteps determines what is computed.
            Some(_) => self.loss.identity(),
        };
        json!({ "loss": loss, "top_k": self.top_k.as_ref().map(TopK::identity) })
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let screened = self.top_k.as_ref().and_then(|top_k| top_k.screened);
        let fault = |port: &str, message: &str| vec![(port.to_owned(), message.to_owned())];
        match connected(SCREEN) {
            true if self.top_k.is_none() => {
                return fault(SCREEN, "`screen` chooses images for `top_k`: set it, or remove this input");
            }
            false if screened.is_some() => {
                return fault(
                    "top_k.screened",
                    "`screened` needs the input `screen`, which chooses that many images",
                );
            }
            _ => {}
        }
        let asked = [("top_k", self.top_k.is_some()), (PER_TIMESTEP, self.per_timestep)];
        let Some((key, _)) = asked.into_iter().find(|(_, asked)| *asked && !connected(PRETRAINED)) else {
            return Vec::new();
        };
        let message = format!(
            "`{key}` needs the input `{PRETRAINED}`: the output `per_timestep` of the stage on `pretrain_loss`, enabled by its \
             parameter `per_timestep = true`"
        );
        vec![(key.to_owned(), message)]
    }

    fn is_merge_only(&self, port: &str) -> bool {
        port == "pretrain_loss" || (port == PRETRAINED && self.top_k.is_none())
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        loss_pass::validate_inputs(&self.loss, inputs)?;
        if let Some(screen) = inputs.get(SCREEN) {
            Npy::open(screen)?.expect_shape(&[Some(arrays::count_images(inputs)?)])?;
        }
        self.accepted().check(inputs, inputs.path("weights"))
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &["latents", "text_embeddings", "pretrain_loss", PRETRAINED, SCREEN])
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        let units = loss_pass::units(&self.loss, inputs)?;
        match self.top_k {
            None => Ok(Units::Independent(units)),
            Some(_) => top_k::units(&self.loss, inputs).map(Units::Independent),
        }
    }

    fn unit_inputs(&self, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<UnitInputs>> {
        match self.top_k {
            None => loss_pass::unit_inputs(&self.loss, inputs, units),
            Some(_) => Ok(vec![UnitInputs::new(); units.len()]),
        }
    }

    fn batch_key(&self, inputs: &Inputs, unit: &Unit) -> Option<String> {
        match self.top_k {
            None => loss_pass::batch_key(&self.loss, inputs, unit),
            Some(_) => None,
        }
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let mut estimate = loss_pass::estimate(&self.loss, inputs)?;
        let images = expected::array(inputs, "text_embeddings")?.shape[0];
        let array = |bytes| ArtifactShape::Array { shape: vec![images], bytes };
        estimate.outputs.insert("influence".into(), array(4));
        estimate.outputs.insert("rank".into(), array(8));
        if self.per_timestep {
            let shape = per_timestep::shape(&self.loss, expected::array(inputs, "latents")?.shape[0]);
            estimate.outputs.insert(PER_TIMESTEP.into(), ArtifactShape::Array { shape, bytes: 4 });
        }
        if let Some(top_k) = &self.top_k {
            // The amount of work depends on the scores, unless a screen chooses the images; it is at most a full pass.
            let computed = match inputs.connected(SCREEN) {
                true => images.min(top_k.screened() + top_k.certify_samples as usize),
                false => images,
            };
            let share = |steps: u64| (steps * computed as u64).div_ceil(images.max(1) as u64);
            estimate.work = estimate.work.map(|work| WorkSize { tasks: 1, steps: share(work.steps), ..work });
            let losses = estimate.outputs["losses"].clone();
            estimate.parts = losses.bytes().unwrap_or_default();
            // Most of the report is the index of each exact image, of which there are at most all.
            estimate.outputs.insert("top_k".into(), ArtifactShape::Bytes(2_000 + images as u64 * 12));
        }
        Ok(estimate)
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        anyhow::ensure!(
            self.top_k.is_none(),
            "outputs with `top_k` cannot be adopted: their estimates cannot be verified"
        );
        loss_pass::accept(&self.loss, inputs, &outputs["losses"])?;
        let influence = check_outputs::finite(&outputs["influence"], arrays::count_images(inputs)?)?;
        check_outputs::ranking(&outputs["rank"], &influence)?;
        if let Some(file) = outputs.get(PER_TIMESTEP) {
            let shape = per_timestep::shape(&self.loss, arrays::open(inputs)?.0.rows());
            let shape: Vec<_> = shape.into_iter().map(Some).collect();
            check_outputs::array(file, Some(Dtype::F32), &shape)?.expect_finite()?;
        }
        Ok("shapes, element types, finite numbers, and that the ranks follow the influences")
    }
}

impl Compute for Influence {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        match &self.top_k {
            None => self.run_batch(std::slice::from_ref(task), cx),
            Some(params) => top_k::run(&self.loss, params, &task.inputs, &task.out, cx),
        }
    }

    fn run_batch(&self, tasks: &[Task], cx: &Context<'_>) -> anyhow::Result<()> {
        match (&self.top_k, tasks) {
            (None, _) => loss_pass::run(&self.loss, tasks, Some("weights"), cx),
            (Some(_), [task]) => {
                self.run(task, cx)?;
                cx.finished(&[0]);
                Ok(())
            }
            (Some(_), _) => anyhow::bail!("with `top_k` each unit is computed alone"),
        }
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let unlearned = out.join("unlearned_loss.npy");
        match (&self.top_k, parts) {
            (Some(_), [part]) => drop(fs_err::copy(part.join(LOSSES), &unlearned)?),
            _ => loss_pass::merge(&self.loss, inputs, parts, &unlearned)?,
        }
        step_check::warn(inputs, inputs.path("weights"))?;
        let images = arrays::count_images(inputs)?;
        let pretrained = Npy::vector(inputs.path("pretrain_loss"))?;
        let rise =
            influence(&Npy::vector(&unlearned)?, &pretrained).map_err(|error| mirrored(error, images))?;
        let scores = per_image(&rise, images, self.flips)?;
        if inputs.get(PRETRAINED).is_some() {
            let before = per_timestep::pretrained(&self.loss, inputs, pretrained.len())?;
            per_timestep::expect_one_pass(&before, &pretrained)?;
            if self.per_timestep {
                let file = out.join(PER_TIMESTEP_FILE);
                per_timestep::differences(&self.loss, inputs, parts, &before, &file)?;
            }
        }
        let exact = match (&self.top_k, parts) {
            (Some(_), [part]) => {
                fs_err::copy(part.join(top_k::REPORT), out.join(top_k::REPORT))?;
                let report = Report::read(&out.join(top_k::REPORT))?;
                report.warning().into_iter().for_each(|warning| tracing::warn!("{warning}"));
                Some(report.flags())
            }
            _ => None,
        };
        let ranks = match &exact {
            None => rank(&scores)?,
            Some(exact) => rank_exact_first(&scores, exact)?,
        };
        let summary = Summary::of(Some(inputs.path("weights")), &scores)?;
        summary.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        writer::write_f32(out.join("influence.npy"), &[images], &scores)?;
        Ok(writer::write_i64(out.join("rank.npy"), &[images], &ranks)?)
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let (loss, mut given, units) = loss_pass::trial(&self.loss, inputs, steps, folder, cx)?;
        if given.get("weights").is_none() {
            // The unlearned weights are chosen by another stage: assume the default ones.
            expected::make_weights(&mut given, "weights", &Selection::CrossAttnKv, None, folder)?;
        }
        let steps = units.iter().map(|unit| unit.steps).sum();
        // A full pass: its steps cost the same.
        let (other_images, other_size, flips) = (true, true, Flips::Max);
        let stage = Influence { loss, top_k: None, other_images, other_size, per_timestep: false, flips };
        Ok(Trial { stage: Box::new(stage), inputs: given, units, steps, merges: false })
    }
}

/// Names the mirror image if a value of the second half is at fault.
fn mirrored(error: MathError, images: usize) -> anyhow::Error {
    match error {
        MathError::InfluenceNotFinite { image, value } if image >= images => {
            anyhow::anyhow!("the influence of image {} (mirrored) is {value}", image - images)
        }
        error => error.into(),
    }
}
