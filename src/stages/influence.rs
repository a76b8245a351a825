//! The influence of every training image: the rise of its loss when the query is unlearned.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use image::RgbImage;
use serde_json::{Value as Json, json};

use super::accept::Outputs;
use super::loss::{self, LossParams};
use super::network::{CHECKPOINT, SCHEDULER, UNET};
use super::{accept, arrays, forms, table};
use crate::io::coco::Captions;
use crate::io::image::{load_rgb, save_png};
use crate::io::npy::Npy;
use crate::io::npy_writer;
use crate::math::error::MathError;
use crate::math::influence::{influence, per_image, rank};
use crate::math::selection::Selection;
use crate::param::Validate;
use crate::params;
use crate::stage::{
    Compute, Context, Foreseen, Form, Inherit, Input, Inputs, Member, Outlook, Output, Reads, Stage, Together,
    Trial, Unit,
};

params! {
    /// Parameters of `influence`.
    pub struct Params {
        /// How a loss is measured: taken from the stage on `pretrain_loss`, so that the two cannot differ.
        loss: LossParams,
        /// Training images in the table.
        top: u32 [1..=1_000_000] = 100,
        /// Training images in the picture.
        pictured: u32 [1..=100] = 10,
        /// The heading of the picture, such as the query's caption.
        heading: String = String::new(),
    }
}

impl Validate for Params {}

/// See the module.
pub struct Influence;

impl Stage for Influence {
    type Params = Params;
    const KIND: &'static str = "influence";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "the influence of every training image on one query, and its ranking";
    const INPUTS: &'static [Input] = &[
        UNET,
        CHECKPOINT,
        SCHEDULER,
        Input::new("latents", "float [2N, C, H, W]"),
        Input::new("text_embeddings", "float [N, captions, L, D]"),
        Input::new("weights", "the weights that unlearning changed (safetensors or torch)"),
        Input::merge("pretrain_loss", "float32 [2N]"),
        Input::merge("captions", "a captions file in COCO's layout").optional(),
        Input::merge("images", "the folder of training images, for the picture").optional(),
        Input::merge("query", "the generated image, for the picture").optional(),
    ];
    const OUTPUTS: &'static [Output] = &[
        Output { name: "influence", file: "influence.npy", doc: "float32 [N]" },
        Output { name: "rank", file: "rank.npy", doc: "int64 [N]: image indices by falling influence" },
        Output { name: "losses", file: "unlearned_loss.npy", doc: "float32 [2N]" },
        Output { name: "table", file: "top.csv", doc: "the most influential images, a line each" },
        Output { name: "top", file: "top.json", doc: "the same with all captions" },
        Output { name: "picture", file: "top.png", doc: "the query and the most influential images" },
    ];
    const INHERITS: &'static [Inherit] = &[Inherit { param: "loss", port: "pretrain_loss" }];

    fn identity(params: &Params) -> Json {
        let Params { loss, top, pictured, heading } = params;
        json!({ "loss": loss.identity(), "top": top, "pictured": pictured, "heading": heading })
    }

    fn unit_identity(params: &Params) -> Json {
        json!({ "loss": params.loss.unit_identity() })
    }

    fn units(params: &Params, inputs: &Inputs) -> anyhow::Result<Option<Vec<Unit>>> {
        loss::units(&params.loss, inputs).map(Some)
    }

    fn reads(params: &Params, inputs: &Inputs, units: &[Unit]) -> anyhow::Result<Vec<Reads>> {
        loss::reads(&params.loss, inputs, units)
    }

    fn company(params: &Params, inputs: &Inputs, unit: &Unit) -> Option<String> {
        loss::company(&params.loss, inputs, unit)
    }

    fn foresee(params: &Params, inputs: &Outlook) -> anyhow::Result<Foreseen> {
        let mut foreseen = loss::foresee(&params.loss, inputs)?;
        let images = forms::array(inputs, "text_embeddings")?.shape[0];
        let array = |bytes| Form::Array { shape: vec![images], bytes };
        // A line of a table and a cell of a picture with photographs take about this; all of it is little beside the rest.
        let (line, cell) = (120, 40_000);
        let rows = u64::from(params.top).min(images as u64);
        foreseen.outputs.insert("influence".into(), array(4));
        foreseen.outputs.insert("rank".into(), array(8));
        foreseen.outputs.insert("table".into(), Form::Bytes(rows * line));
        foreseen.outputs.insert("top".into(), Form::Bytes(rows * line * 4));
        foreseen.outputs.insert("picture".into(), Form::Bytes(u64::from(params.pictured + 1) * cell));
        Ok(foreseen)
    }

    fn accept(params: &Params, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<()> {
        loss::accept(&params.loss, inputs, &outputs["losses"])?;
        let influence = accept::finite(&outputs["influence"], arrays::count_images(inputs)?)?;
        accept::ranking(&outputs["rank"], &influence)?;
        accept::some_file(&outputs["table"])?;
        accept::some_file(&outputs["top"])?;
        Ok(load_rgb(&outputs["picture"]).map(drop)?)
    }
}

impl Compute for Influence {
    fn run(
        params: &Params,
        inputs: &Inputs,
        unit: Option<&Unit>,
        out: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<()> {
        let unit = unit.context("this kind is computed by units")?;
        cx.together(|cx| Self::run_together(&[Member { params, inputs, unit, out }], cx))
    }

    fn run_together(members: &[Member<'_, Params>], cx: &Together<'_>) -> anyhow::Result<()> {
        let pieces = members.iter().map(|member| {
            let Member { params, inputs, unit, out } = *member;
            loss::Piece { params: &params.loss, inputs, unit, out, weights: Some(inputs.path("weights")) }
        });
        loss::run(&pieces.collect::<Vec<_>>(), cx)
    }

    fn merge(
        params: &Params,
        inputs: &Inputs,
        parts: &[PathBuf],
        out: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<()> {
        let unlearned = out.join("unlearned_loss.npy");
        loss::merge(&params.loss, inputs, parts, &unlearned)?;
        let images = arrays::count_images(inputs)?;
        let rise = influence(&Npy::vector(&unlearned)?, &Npy::vector(inputs.path("pretrain_loss"))?)
            .map_err(|error| mirrored(error, images))?;
        let scores = per_image(&rise, images)?;
        let ranks = rank(&scores)?;
        npy_writer::write_f32(out.join("influence.npy"), &[images], &scores)?;
        npy_writer::write_i64(out.join("rank.npy"), &[images], &ranks)?;
        show(params, inputs, &scores, &ranks, out)
    }

    fn trial(
        params: &Params,
        inputs: &Outlook,
        steps: u64,
        folder: &Path,
        cx: &Context<'_>,
    ) -> anyhow::Result<Trial<Params>> {
        let (loss, mut given, unit) = loss::trial(&params.loss, inputs, steps, folder, cx)?;
        if given.get("weights").is_none() {
            // Which weights are unlearned is not this stage's to say: those that are by default take the usual time to read.
            forms::make_weights(&mut given, "weights", &Selection::CrossAttnKv, None, folder)?;
        }
        let steps = unit.steps;
        let params = Params { loss, ..params.clone() };
        Ok(Trial { params, inputs: given, unit: Some(unit), steps, merges: false })
    }
}

/// Writes table and picture; without captions the images are named by their index.
fn show(params: &Params, inputs: &Inputs, scores: &[f32], ranks: &[i64], out: &Path) -> anyhow::Result<()> {
    let captions = match inputs.get("captions") {
        Some(path) => Captions::read_all(path)?,
        None => Captions { items: (0..scores.len()).map(unnamed).collect() },
    };
    let rows = table::top(ranks, scores, &captions, params.top as usize)?;
    table::write_csv(&out.join("top.csv"), &rows)?;
    table::write_json(&out.join("top.json"), &rows)?;
    let query = match inputs.get("query") {
        Some(path) => load_rgb(path)?,
        None => RgbImage::from_pixel(64, 64, image::Rgb([240; 3])),
    };
    let pictured = &rows[..rows.len().min(params.pictured as usize)];
    let sheet = match inputs.get("images") {
        Some(images) if inputs.get("captions").is_some() => {
            table::draw(&query, &params.heading, pictured, images)?
        }
        _ => table::draw(&query, &params.heading, &[], Path::new(""))?,
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

fn unnamed(index: usize) -> crate::io::coco::Item {
    crate::io::coco::Item { file_name: index.to_string(), captions: Vec::new() }
}
