//! Scores of training images on a query by a baseline, in the form of `influence`.

mod pictures;

use std::path::Path;

use anyhow::ensure;
use serde_json::{Value as Json, json};
use tch::Tensor;

use super::shared::arrays::NpyRows;
use super::shared::check_outputs::Outputs;
use super::shared::{check_outputs, check_values, device, expected};
use crate::io::npy::{Dtype, Npy, writer};
use crate::method::baseline::{Baseline, Vectors, cosine, dot, trak};
use crate::method::gradients::GradientOf;
use crate::method::identity::hashed;
use crate::method::influence::{Flips, per_image, rank};
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Inherit, Input, Inputs, Kind, KindInfo,
    Output, Stage, Task, Trial, WorkSize,
};
use attrflow_engine::params;

params! {
    /// Parameters of `baseline`.
    pub struct BaselineParams {
        /// `dot` (TracIn), `cosine`, `trak`: of gradients of the loss; `d-trak`: of gradients of the squared prediction (`of =
        /// "output"`); `journey-trak`: as `trak`, with the query's gradient at one timestep of its drawing; `vae`, `text`: the cosine of
        /// latents, or of text embeddings, minus their mean; `pixel`, `clip`, `dino`: of pictures.
        method: Baseline,
        /// The query: a row of `query_gradients`, `query_latents` or `query_text_embeddings`.
        index: usize = 0,
        /// What `trak`, `d-trak` and `journey-trak` add to the diagonal of their kernel, relative to its mean: lambda = damping tr(Phi^T Phi) / k.
        damping: f64 [0.0..=1e9] = 0.1,
        /// What an image's score is of its own and its mirror image's: `max`, the larger one, or `mean`.
        flips: Flips = Flips::Max,
        /// What the gradients are of: inherited from the stage on `gradients`.
        of: GradientOf = GradientOf::Loss,
        /// Height and width of the pictures of `pixel`: the shorter side is resized to it, and the middle is cropped.
        pixels: u32 [1..=2048] = 256,
    }
}

impl Validate for BaselineParams {}

const GRADIENTS: [&str; 2] = ["gradients", "query_gradients"];
const LATENTS: [&str; 2] = ["latents", "query_latents"];
const TEXTS: [&str; 2] = ["text_embeddings", "query_text_embeddings"];
const PICTURES: [&str; 3] = ["images", "captions", "query_image"];
const CLIP: &str = "clip";
const DINO: &str = "dino";

impl Kind for BaselineParams {
    const INFO: KindInfo = KindInfo {
        inputs: &[
            Input::new(TEXTS[0], "float [N, captions, L, D]: how many images there are; what `text` compares"),
            Input::new(TEXTS[1], "float [Q, captions, L, D], for `text`").optional(),
            Input::new(GRADIENTS[0], "float [N, k] or [2N, k], for `dot`, `cosine`, `trak`, `d-trak`, `journey-trak`").optional(),
            Input::new(
                GRADIENTS[1],
                "float [Q, k]: of a stage with the same `select`, `of` and projection, and another seed of the noise",
            )
            .optional(),
            Input::new(LATENTS[0], "float [N, C, H, W] or [2N, C, H, W], for `vae`").optional(),
            Input::new(LATENTS[1], "float [Q, C, H, W], for `vae`").optional(),
            Input::new(PICTURES[0], "the folder of training images, for `pixel`, `clip` and `dino`").optional(),
            Input::new(PICTURES[1], "their captions file in COCO's layout: which image is which").optional(),
            Input::new(PICTURES[2], "the query's picture").optional(),
            Input::new(CLIP, "a folder with CLIP's config.json and weights, of CLIP as a whole or of its image encoder")
                .optional(),
            Input::new(DINO, "a folder with config.json and weights of DINO or DINOv2, as transformers stores them").optional(),
        ],
        outputs: &[
            Output::new("influence", "influence.npy", "float32 [N]: the scores"),
            Output::new("rank", "rank.npy", "int64 [N]: image indices by falling score"),
        ],
        inherits: &[Inherit { param: "of", port: GRADIENTS[0] }],
        ..KindInfo::new::<Self>("baseline", 2, "scores by gradients or similarity, to compare with `influence`")
    };
}

impl BaselineParams {
    /// The ports that the method reads, beside `text_embeddings`.
    fn ports(&self) -> Vec<&'static str> {
        match self.method {
            Baseline::Text => vec![TEXTS[1]],
            Baseline::Clip => [PICTURES.as_slice(), &[CLIP]].concat(),
            Baseline::Dino => [PICTURES.as_slice(), &[DINO]].concat(),
            _ => self.arrays().map_or(PICTURES.to_vec(), Vec::from),
        }
    }

    /// The arrays of training set and query that the method compares; none for pictures.
    fn arrays(&self) -> Option<[&'static str; 2]> {
        match self.method {
            Baseline::Dot | Baseline::Cosine | Baseline::Trak | Baseline::DTrak | Baseline::JourneyTrak => {
                Some(GRADIENTS)
            }
            Baseline::Vae => Some(LATENTS),
            Baseline::Text => Some(TEXTS),
            Baseline::Pixel | Baseline::Clip | Baseline::Dino => None,
        }
    }

    /// What speaks against comparing the gradients of two stages, whose parameters are given.
    fn unlike(&self, training: &Json, query: &Json) -> Option<String> {
        let [port, of_query] = GRADIENTS;
        let drawn = ["projection_dim", "seed"].map(|key| (key, training["projection"] != "none"));
        let always = ["of", "select", "projection", "shared_noise"].map(|key| (key, true));
        let differs = |(key, counts): &(&str, bool)| *counts && training[key] != query[key];
        if let Some((key, _)) = always.into_iter().chain(drawn).find(differs) {
            return Some(format!(
                "the stage on `{of_query}` has `{key} = {}`, and that on `{port}` {}: gradients are compared that are made alike",
                query[key], training[key]
            ));
        }
        if training["timestep"] != Json::Null {
            return Some(format!(
                "the stage on `{port}` has `timestep`, which is for a query's gradients: remove it"
            ));
        }
        let (journey, at_one) = (self.method == Baseline::JourneyTrak, query["timestep"] != Json::Null);
        if journey != at_one {
            return Some(match journey {
                true => format!(
                    "`journey-trak` needs the query's gradients at one timestep: set `timestep` of the stage on `{of_query}`, and connect \
                     what `generate` draws with `denoised_at`"
                ),
                false => format!(
                    "the stage on `{of_query}` has `timestep`, which only `journey-trak` compares: remove it"
                ),
            });
        }
        let [own, seed] = [training, query].map(|params| &params["loss"]["seed"]);
        match (training["shared_noise"] == true, own == seed) {
            (false, true) => Some(format!(
                "the stages on `{port}` and `{of_query}` have one `loss.seed`, {seed}, so that the first query and the first training image \
                 share their noise: give the query's another"
            )),
            (true, false) => Some(format!(
                "the stage on `{of_query}` has `loss.seed = {seed}`, and that on `{port}` {own}: with `shared_noise`, both need the same"
            )),
            _ => None,
        }
    }

    fn has_kernel(&self) -> bool {
        matches!(self.method, Baseline::Trak | Baseline::DTrak | Baseline::JourneyTrak)
    }

    /// Opens the arrays, and refuses those that do not fit each other.
    fn open(&self, inputs: &Inputs, ports: [&str; 2]) -> anyhow::Result<[Npy; 2]> {
        let images = count(inputs)?;
        let [training, query] = ports.map(|port| Npy::open(inputs.path(port)));
        let (training, query) = (training?, query?);
        let axes = vec![None; if ports == GRADIENTS { 2 } else { 4 }];
        for npy in [&training, &query] {
            npy.expect_shape(&axes)?;
            npy.expect_values()?;
            let (file, found) = (npy.path().display(), npy.dtype());
            let float = matches!(found, Dtype::F16 | Dtype::F32 | Dtype::F64);
            ensure!(float, "{file}: dtype {found}, expected a float type");
        }
        let (file, rows) = (training.path().display(), training.rows());
        ensure!(
            rows == images || rows == 2 * images,
            "{file}: {rows} rows, expected {images} or {} (with mirror images), since {} has {images} rows",
            2 * images,
            inputs.path(TEXTS[0]).display()
        );
        // Of texts, only the width of a token: captions and tokens are averaged.
        let skipped = if ports == TEXTS { 3 } else { 1 };
        let (found, expected) = (&query.shape()[skipped..], &training.shape()[skipped..]);
        let how =
            if ports == GRADIENTS { ": compute both with the same `select` and projection" } else { "" };
        ensure!(
            found == expected,
            "{}: rows of the shape {found:?}, expected {expected:?}, as in {file}{how}",
            query.path().display()
        );
        let (index, rows) = (self.index, query.rows());
        ensure!(
            index < rows,
            "`index` is {index}, expected less than {rows}, the rows of {}",
            query.path().display()
        );
        Ok([training, query])
    }

    /// The scores of all rows of the training set, [N] or [2N].
    fn scores(&self, inputs: &Inputs, cx: &Context<'_>) -> anyhow::Result<Vec<f32>> {
        let _no_grad = tch::no_grad_guard();
        let device = device::torch(cx.device);
        let Some(ports) = self.arrays() else {
            return pictures::with_rows(self, inputs, cx, |rows, query| {
                let vectors = Vectors { rows, map: flat, device };
                let query = Vectors { rows: query, ..vectors }.vector(0)?;
                Ok(cosine(&vectors, &query, None)?)
            });
        };
        let [training, query] = self.open(inputs, ports)?.map(|npy| NpyRows::new(npy, 1));
        let map = if self.method == Baseline::Text { over_tokens } else { flat };
        let vectors = Vectors { rows: &training, map, device };
        let query = Vectors { rows: &query, ..vectors }.vector(self.index)?;
        Ok(match self.method {
            Baseline::Dot => dot(&vectors, &query)?,
            Baseline::Cosine => cosine(&vectors, &query, None)?,
            _ if self.has_kernel() => trak(&vectors, &query, self.damping, None)?,
            _ => cosine(&vectors, &query, Some(&vectors.mean()?))?,
        })
    }
}

/// The number of training images.
fn count(inputs: &Inputs) -> anyhow::Result<usize> {
    let texts = Npy::open(inputs.path(TEXTS[0]))?;
    texts.expect_shape(&[None; 4])?;
    Ok(texts.rows())
}

fn flat(rows: &Tensor) -> Tensor {
    rows.flatten(1, -1)
}

/// [n, captions, L, D] to [n, D]: a mean over captions and tokens, those that fill a text up among them.
fn over_tokens(rows: &Tensor) -> Tensor {
    rows.mean_dim([1i64, 2].as_slice(), false, None)
}

impl Stage for BaselineParams {
    fn identity(&self) -> Json {
        // What is not read changes nothing; what the gradients are of is a matter of their own stage.
        let unread = [
            ("index", self.arrays().is_none()),
            ("damping", !self.has_kernel()),
            ("of", true),
            ("pixels", self.method != Baseline::Pixel),
        ];
        hashed(self, &unread)
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let method = json!(self.method);
        let missing: Vec<String> = self
            .ports()
            .into_iter()
            .filter(|port| !connected(port))
            .map(|port| format!("`{port}`"))
            .collect();
        if !missing.is_empty() {
            let message = format!("`method = {method}` needs the input {}", missing.join(" and "));
            return vec![("method".to_owned(), message)];
        }
        let wanted = match self.method {
            Baseline::Trak | Baseline::JourneyTrak => GradientOf::Loss,
            Baseline::DTrak => GradientOf::Output,
            _ => return Vec::new(),
        };
        if self.of == wanted {
            return Vec::new();
        }
        let message = format!(
            "`method = {method}` needs gradients with `of = {}`, and those on `gradients` have `of = {}`",
            json!(wanted),
            json!(self.of)
        );
        vec![("method".to_owned(), message)]
    }

    fn check_sources<'s>(&self, source: &dyn Fn(&str) -> Option<&'s dyn Stage>) -> Vec<(String, String)> {
        let stages = GRADIENTS.map(|port| source(port).filter(|stage| stage.kind().name == "gradients"));
        let (Some(GRADIENTS), [Some(training), Some(query)]) = (self.arrays(), stages) else {
            return Vec::new();
        };
        self.unlike(&training.to_json(), &query.to_json())
            .map(|fault| ("method".to_owned(), fault))
            .into_iter()
            .collect()
    }

    fn validate_inputs(&self, inputs: &Inputs) -> anyhow::Result<()> {
        match self.arrays() {
            Some(ports) => self.open(inputs, ports).map(drop),
            None => pictures::validate(self, inputs),
        }
    }

    fn check_values(&self, inputs: &Inputs) -> anyhow::Result<()> {
        check_values::finite(inputs, &self.arrays().unwrap_or_default())
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let images = expected::array(inputs, TEXTS[0])?.shape[0];
        let array = |bytes| ArtifactShape::Array { shape: vec![images], bytes };
        let outputs = [("influence".to_owned(), array(4)), ("rank".to_owned(), array(8))].into();
        // Pictures are files that nothing has counted or measured.
        let work = self.arrays().map(|ports| {
            let array = training(inputs, ports)?;
            let (rows, width) = (array.shape[0], array.shape[1..].iter().product());
            let cost_key = json!({
                "method": self.method, "row": array.shape[1..], "stored": array.bytes,
            });
            let steps = if self.has_kernel() { kernel_steps(rows, width) } else { rows as u64 };
            Ok::<_, anyhow::Error>(WorkSize { steps, tasks: 1, cost_key, ..WorkSize::default() })
        });
        Ok(Estimate { outputs, work: work.transpose()?, ..Estimate::default() })
    }

    fn accept(&self, inputs: &Inputs, outputs: &Outputs) -> anyhow::Result<&'static str> {
        self.validate_inputs(inputs)?;
        let scores = check_outputs::finite(&outputs["influence"], count(inputs)?)?;
        check_outputs::ranking(&outputs["rank"], &scores)?;
        Ok("shapes, element types, finite numbers, and that the ranks follow the scores")
    }
}

/// The array of the training set, as expected.
fn training(inputs: &ExpectedInputs, ports: [&str; 2]) -> anyhow::Result<expected::Array> {
    expected::array_of(inputs, ports[0], if ports == GRADIENTS { 2 } else { 4 })
}

/// The work of a kernel of `rows` vectors: its multiplications, in 2^30.
fn kernel_steps(rows: usize, width: usize) -> u64 {
    let (rows, width) = (rows as f64, width as f64);
    let side = rows.min(width);
    (rows * width * side + side.powi(3) / 3.0).div_euclid(f64::from(1 << 30)) as u64 + 1
}

impl Compute for BaselineParams {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let images = count(inputs)?;
        let scores = per_image(&self.scores(inputs, cx)?, images, self.flips)?;
        let ranks = rank(&scores)?;
        writer::write_f32(out.join("influence.npy"), &[images], &scores)?;
        writer::write_i64(out.join("rank.npy"), &[images], &ranks)?;
        cx.progress(1, 1);
        Ok(())
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let ports = self.arrays().ok_or_else(|| anyhow::anyhow!("pictures are not measured"))?;
        let array = training(inputs, ports)?;
        let width = array.shape[1..].iter().product();
        // Of a kernel, as many rows as give the steps: it has a side of theirs.
        let enough = |rows: &usize| !self.has_kernel() || kernel_steps(*rows, width) >= steps;
        let rows = match self.has_kernel() {
            true => (1..12).map(|power| 1usize << power).find(enough).unwrap_or(1 << 12),
            false => steps as usize,
        };
        // One row alone is its own mean, and has no direction from there.
        let rows = rows.max(2).min(array.shape[0]);
        let mut given = inputs.inputs();
        let texts = expected::array(inputs, TEXTS[0])?;
        expected::make_array(&mut given, TEXTS[0], &texts, rows, folder)?;
        expected::make_array(&mut given, ports[1], &array, 1, folder)?;
        if ports != TEXTS {
            expected::make_array(&mut given, ports[0], &array, rows, folder)?;
        }
        let stage = BaselineParams { index: 0, ..self.clone() };
        let steps = if self.has_kernel() { kernel_steps(rows, width) } else { rows as u64 };
        Ok(Trial { stage: Box::new(stage), inputs: given, units: Vec::new(), steps, merges: false })
    }
}
