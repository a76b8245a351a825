//! The top of a ranking for people: a table, its rows as JSON, and a picture.

use std::path::Path;

use anyhow::Context as _;
use image::RgbImage;
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::influence_summary::Summary;
use super::loss_pass::per_timestep::PER_TIMESTEP;
use super::loss_pass::top_k::Report;
use super::ranking_error_bars::{self as error_bars, ErrorBar, Method, Scores};
use super::shared::check_outputs::{self, Outputs};
use super::shared::{expected, ids};
use crate::io::captions::coco::{Captions, Item};
use crate::io::image::contact_sheet::{Cell, Heading, contact_sheet};
use crate::io::image::{load_rgb, save_png};
use crate::io::json;
use crate::io::npy::{self, Npy};
use crate::io::rankings::percentile;
use crate::method::baseline::Baseline;
use crate::method::identity::hashed;
use crate::method::influence::Flips;
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Inherit, Input, Inputs, Kind, KindInfo,
    Output, ShownAt, Stage, Task,
};
use attrflow_engine::params;

params! {
    /// Parameters of `ranking`.
    pub struct Ranking {
        /// Training images in the table.
        rows: u32 [1..=1_000_000] = 100,
        /// Training images in the picture.
        images_shown: u32 [1..=100] = 10,
        /// The title of the picture, such as the query's caption.
        title: String = String::new(),
        /// The k of the probability that an image is among the first k (`p_top`); by default `images_shown`.
        top: Option<u32> = None,
        /// Where the results folder shows the folder on `images`, for the column `path`: filled in from the pipeline.
        image_folder: String = String::new(),
        /// What an influence is of those of an image and its mirror image: inherited from the stage on `influence`.
        flips: Flips = Flips::Max,
        /// The method of a stage of the kind `baseline` on `influence`: inherited from it.
        method: Option<Baseline> = None,
    }
}

impl Validate for Ranking {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let fault = ("top", "`top` is 0, expected 1 or more".to_owned());
        (self.top == Some(0)).then_some(fault).into_iter().collect()
    }
}

const TABLE: &str = "top.csv";
const JSON: &str = "top.json";
const PICTURE: &str = "top.png";
const ERRORS: &str = "standard_error.npy";
/// Counted up when what top.json has changes its meaning.
const FORM: u32 = 1;

impl Kind for Ranking {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new("influence", "float32 [N]"),
            Input::new("rank", "int64 [N]: image indices in descending order of influence"),
            Input::new(
                PER_TIMESTEP,
                "float32 [2N, T] or [2N, T, R]: the output `per_timestep` of `influence`, for error bars",
            )
            .optional(),
            Input::new("top_k", "the output `top_k` of `influence`: the images with exact influences")
                .optional(),
            Input::new("weights", "the output `weights` of `unlearn`: how much the loss of the query rose")
                .optional(),
            Input::new("captions", "a captions file in COCO's layout").optional(),
            Input::new("images", "the folder of training images, for the picture").optional(),
            Input::new("query", "the generated image, for the picture").optional(),
        ],
        outputs: &[
            Output::new("table", TABLE, "the most influential images, one per line"),
            Output::new("json", JSON, "the same rows with all captions, and a summary of all influences"),
            Output::new("picture", PICTURE, "the query and the most influential images"),
            Output::new(
                "errors",
                ERRORS,
                "float32 [N]: the standard error of each influence; NaN where there is none",
            ),
        ],
        inherits: &[
            Inherit { param: "flips", port: "influence" },
            Inherit { param: "method", port: "influence" },
        ],
        shown_at: &[ShownAt { param: "image_folder", port: "images" }],
        libtorch: false,
        ..KindInfo::new::<Self>(
            "ranking",
            5,
            "the most influential training images as table, JSON and picture",
        )
    };
}

impl Stage for Ranking {
    fn identity(&self) -> Json {
        hashed(self, &[("method", self.method.is_none())])
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        // Typical sizes of a table's line and a picture's cell; the outputs are small anyway.
        let (line, cell) = (120, 150_000);
        let rows = u64::from(self.rows);
        let outputs = [
            ("table", rows * line),
            ("json", rows * line * 4),
            ("picture", u64::from(self.images_shown + 1) * cell),
        ];
        let outputs = outputs.map(|(port, bytes)| (port.to_owned(), ArtifactShape::Bytes(bytes)));
        let errors =
            ArtifactShape::Array { shape: expected::array_of(inputs, "influence", 1)?.shape, bytes: 4 };
        let outputs = outputs.into_iter().chain([("errors".to_owned(), errors)]).collect();
        Ok(Estimate { outputs, ..Estimate::default() })
    }

    fn accept(&self, _: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        check_outputs::some_file(&outputs["table"])?;
        check_outputs::some_file(&outputs["json"])?;
        Npy::vector(&outputs["errors"])?;
        load_rgb(&outputs["picture"])?;
        Ok("that the table is not empty, and that errors and picture can be read")
    }
}

impl Compute for Ranking {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let influence = Npy::vector(inputs.path("influence"))?;
        let ranks = ranks(inputs.path("rank"), influence.len())?;
        let captions = match inputs.get("captions") {
            Some(path) => Captions::read_all(path)?,
            None => Captions { items: (0..influence.len()).map(unnamed).collect() },
        };
        let mut rows = top(&ranks, &influence, &captions, self.rows as usize)?;
        if let Some(path) = inputs.get("top_k") {
            let exact = Report::read(path)?.flags();
            let images = exact.len();
            anyhow::ensure!(
                images == influence.len(),
                "{}: {images} images, expected {}",
                path.display(),
                influence.len()
            );
            rows.iter_mut().for_each(|row| row.exact = Some(exact[row.index]));
        }
        if inputs.get("captions").is_some() && inputs.get("images").is_some() {
            rows.iter_mut().for_each(|row| row.path = Some(self.path(&row.file_name)));
        }
        let bars = self.error_bars(inputs, &influence, &ranks, &mut rows)?;
        let unknown = || vec![f32::NAN; influence.len()];
        let (errors, method) = match bars {
            Ok((method, errors)) => (errors, Ok(method)),
            Err(why) => (unknown(), Err(why)),
        };
        npy::writer::write_f32(out.join(ERRORS), &[errors.len()], &errors)?;
        write_csv(&out.join(TABLE), &rows)?;
        let summary = Summary::of(inputs.get("weights"), &influence)?;
        self.write_json(&out.join(JSON), &summary, &method, &rows)?;
        let legend = method.as_ref().map_or_else(|why| *why, |_| error_bars::LEGEND);
        let heading = Heading { title: &self.title, notes: &summary.warnings, legend };
        let query = match inputs.get("query") {
            Some(path) => load_rgb(path)?,
            None => RgbImage::from_pixel(64, 64, image::Rgb([240; 3])),
        };
        let shown = &rows[..rows.len().min(self.images_shown as usize)];
        let picture = match inputs.get("images") {
            Some(images) if inputs.get("captions").is_some() => draw(&query, heading, shown, images)?,
            _ => contact_sheet(&query, heading, &[]),
        };
        Ok(save_png(&picture, out.join(PICTURE))?)
    }
}

impl Ranking {
    /// Where an image is below the results folder.
    fn path(&self, file_name: &str) -> String {
        match self.image_folder.as_str() {
            "" => file_name.to_owned(),
            folder => format!("{folder}/{file_name}"),
        }
    }

    /// Gives each row its error bar: how they were computed with the errors of all images, or why there are none.
    fn error_bars(
        &self,
        inputs: &Inputs,
        influence: &[f32],
        ranks: &[i64],
        rows: &mut [Row],
    ) -> anyhow::Result<Result<(Method, Vec<f32>), &'static str>> {
        if inputs.get("top_k").is_some() {
            return Ok(Err(error_bars::TOP_K));
        }
        if self.method.is_some() {
            return Ok(Err(error_bars::BASELINE));
        }
        let Some(file) = inputs.get(PER_TIMESTEP) else { return Ok(Err(error_bars::NOT_CONNECTED)) };
        let scores = Scores { file, influence, flips: self.flips };
        let top = self.top.unwrap_or(self.images_shown) as usize;
        let Some(found) = scores.error_bars(ranks, rows.len(), top)? else {
            return Ok(Err(error_bars::ONE_POINT));
        };
        rows.iter_mut().zip(found.rows).for_each(|(row, bar)| row.error_bar = Some(bar));
        Ok(Ok((found.method, found.standard_errors)))
    }

    /// Writes the summary, with how errors were computed or why there are none, and the rows with all captions.
    fn write_json(
        &self,
        path: &Path,
        summary: &Summary,
        method: &Result<Method, &str>,
        rows: &[Row],
    ) -> anyhow::Result<()> {
        let mut summary = json!(summary);
        match method {
            Ok(method) => summary["error_bars"] = json!(method),
            Err(why) => summary["no_error_bars"] = json!(why),
        }
        let all = json!({ "format": FORM, "title": self.title, "summary": summary, "rows": rows });
        Ok(json::write_pretty(path, &all)?)
    }
}

/// The image indices in descending order of influence, each checked to be an image.
fn ranks(path: &Path, images: usize) -> anyhow::Result<Vec<i64>> {
    let npy = Npy::open(path)?;
    npy.expect_shape(&[Some(images)])?;
    ids::indices(path, images)
}

/// An image without a captions file: named by its index.
fn unnamed(index: usize) -> Item {
    Item { id: String::new(), file_name: index.to_string(), captions: Vec::new() }
}

/// One training image of the ranking.
#[derive(Debug, Clone, Serialize)]
struct Row {
    /// 1 for the most influential image.
    pub rank: usize,
    /// Index in the data set.
    pub index: usize,
    /// The image's file.
    pub file_name: String,
    /// Where the image is below the results folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Rise of its loss.
    pub influence: f32,
    /// How many of the other images rank behind it, in percent.
    pub percentile: f64,
    /// Its captions.
    pub captions: Vec<String>,
    /// Whether the influence is exact, if some are estimates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// How sure influence and rank are, if that is known.
    #[serde(flatten)]
    pub error_bar: Option<ErrorBar>,
}

/// The first `k` rows of a ranking.
fn top(ranks: &[i64], influence: &[f32], captions: &Captions, k: usize) -> anyhow::Result<Vec<Row>> {
    anyhow::ensure!(
        captions.items.len() == influence.len(),
        "the captions file has {} images, the latents have {}: they must be of the same data set",
        captions.items.len(),
        influence.len()
    );
    let rows = ranks.iter().take(k).enumerate().map(|(place, &index)| {
        let item = &captions.items[index as usize];
        Row {
            rank: place + 1,
            index: index as usize,
            file_name: item.file_name.clone(),
            path: None,
            percentile: percentile(place + 1, ranks.len()),
            influence: influence[index as usize],
            captions: item.captions.clone(),
            exact: None,
            error_bar: None,
        }
    });
    Ok(rows.collect())
}

/// Writes rank, index, file name, influence and first caption, one image per line; if some influences are estimates,
/// also whether it is exact; with error bars, these; then percentile and path.
fn write_csv(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(fs_err::File::create(path)?);
    let marked = rows.iter().any(|row| row.exact.is_some());
    let mut header = vec!["rank", "index", "file_name", "influence", "caption"];
    header.extend(marked.then_some("exact"));
    if rows.iter().any(|row| row.error_bar.is_some()) {
        header.extend(ErrorBar::COLUMNS);
    }
    header.extend(["percentile", "path"]);
    writer.write_record(header)?;
    for row in rows {
        let caption = row.captions.first().cloned().unwrap_or_default();
        let (rank, index, influence) =
            (row.rank.to_string(), row.index.to_string(), row.influence.to_string());
        let mut record = vec![rank, index, row.file_name.clone(), influence, caption];
        record.extend(row.exact.map(|exact| exact.to_string()));
        record.extend(row.error_bar.iter().flat_map(ErrorBar::record));
        record.extend([row.percentile.to_string(), row.path.clone().unwrap_or_default()]);
        writer.write_record(record)?;
    }
    writer.flush()?;
    Ok(())
}

/// Draws the query and, below it, the training images with rank, influence, error bar, first caption and file name.
fn draw(query: &RgbImage, heading: Heading<'_>, rows: &[Row], images: &Path) -> anyhow::Result<RgbImage> {
    let cells = rows.iter().map(|row| {
        let path = images.join(&row.file_name);
        let image = load_rgb(&path).with_context(|| format!("training image {}", row.index))?;
        let bar = row.error_bar.as_ref();
        Ok(Cell {
            image,
            rank: row.rank,
            score: row.influence,
            interval: bar.map(|bar| [bar.low, bar.high]),
            details: bar.map_or_else(Vec::new, ErrorBar::lines),
            caption: row.captions.first().cloned().unwrap_or_default(),
            file: row.file_name.clone(),
        })
    });
    Ok(contact_sheet(query, heading, &cells.collect::<anyhow::Result<Vec<_>>>()?))
}
