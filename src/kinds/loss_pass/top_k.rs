//! Finds the most influential images without computing all timesteps of all images, and certifies the recall.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tch::Tensor;

use super::per_timestep::{mean, pretrained};
use super::{LOSSES, per_image, precision_check};
use crate::io::json;
use crate::io::npy::Npy;
use crate::io::npy::writer;
use crate::kinds::shared::arrays::{self, TrainingSet, values};
use crate::kinds::shared::check_outputs;
use crate::kinds::shared::micro_batch;
use crate::kinds::shared::network::with_unet;
use crate::method::error::MathError;
use crate::method::identity::hashed;
use crate::method::influence::rank;
use crate::method::loss::{LossParams, LossPass};
use crate::method::noise::{Generator, derived_seed};
use crate::method::schedule::NoiseSchedule;
use crate::method::successive_halving::{self, Halving, Population, Round, Source, Spec};
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::config::param::Validate;
use attrflow_engine::identity::regular_file;
use attrflow_engine::kind::{Context, Inputs, Unit};
use attrflow_engine::params;
use attrflow_statistics::correlation::spearman;

params! {
    /// Which images to find, and with which confidence.
    pub struct TopK {
        /// Number of images to find: those with the largest influence.
        k: u32 [1..=100_000_000] = 100,
        /// The probability that an image of the top k is kept, assuming that its rises are normal apart from what all
        /// images share; also the probability that the certified recall holds, under no assumption.
        confidence: f64 [0.5..=0.999999] = 0.95,
        /// Discarded images, drawn at random, to compute in full to certify the recall; 0 certifies nothing.
        certify_samples: u32 [0..=100_000_000] = 200,
        /// The largest share of the images that a round may keep, however close they are. With 1, only the intervals
        /// discard; with 0.5, the cost is bounded, and only the certified recall shows what that loses.
        max_keep: f64 [0.01..=1.0] = 1.0,
        /// Seed of the draw for `certify_samples`.
        seed: u32 = 0,
        /// Images to compute in full where the input `screen` is connected: those with the largest influence to first order. All
        /// others are discarded without being computed. By default 10 times `k`.
        screened: Option<u32> = None,
    }
}

impl Validate for TopK {
    const RENAMED: &'static [(&'static str, &'static str)] =
        &[("top", "k"), ("check", "certify_samples"), ("keep", "max_keep")];
    fn validate(&self) -> Vec<(&'static str, String)> {
        let few = self.screened.filter(|screened| *screened < self.k);
        let fault = |screened| {
            (
                "screened",
                format!("`screened` is {screened}, expected at least {}, the `k` images to find", self.k),
            )
        };
        few.map(fault).into_iter().collect()
    }
}

impl TopK {
    /// What is hashed, and what the report says was asked for.
    pub fn identity(&self) -> Json {
        hashed(self, &[("screened", self.screened.is_none())])
    }

    /// How many images are computed in full where a screen chooses them.
    pub fn screened(&self) -> usize {
        self.screened.unwrap_or_else(|| self.k.saturating_mul(10)) as usize
    }
}

/// The input with the influences to first order.
pub(crate) const SCREEN: &str = "screen";

/// The file of the report.
pub(crate) const REPORT: &str = "top_k.json";

/// The report of a run: what was computed and discarded, and the certified recall.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The parameters.
    asked: Json,
    /// N.
    images: usize,
    /// N, or 2N with the mirror images.
    latents: usize,
    /// T.
    timesteps: usize,
    captions: usize,
    rounds: Vec<Rounds>,
    rows: Rows,
    certificate: Certificate,
    /// How a screen chose the images, if one was connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    screen: Option<Screened>,
    /// The images with exact influence, by index. All others have an estimate.
    pub exact: Vec<usize>,
}

/// A round: the numbers of images and timesteps computed so far, and of images discarded after it.
#[derive(Debug, Serialize, Deserialize)]
struct Rounds {
    timesteps: usize,
    images: usize,
    discarded: usize,
    /// Of them, those discarded only because of `max_keep`, not by their interval.
    surplus: usize,
    kept: usize,
    /// The k-th best score minus what all images share, and its standard error.
    threshold: f64,
    threshold_error: f64,
    /// The largest distance behind it at which the median image is not discarded.
    margin: f64,
    /// The share of the variance of the images' scores that is not random.
    reliability: f64,
}

/// Rows of image, caption and timestep through the network.
#[derive(Debug, Serialize, Deserialize)]
struct Rows {
    computed: usize,
    /// Rows of a full pass.
    full: usize,
    fraction: f64,
}

/// The inference from a random sample of the discarded images to all of them.
#[derive(Debug, Serialize, Deserialize)]
struct Certificate {
    confidence: f64,
    discarded: usize,
    sample: usize,
    /// Images of the sample that belong to the top k. They are in the answer.
    found: usize,
    /// Upper bound of the discarded images that belong to it, including those.
    most: usize,
    recall: f64,
    /// The `certify_samples` that would certify a recall of 0.9 if the sample had no image of the top k.
    sample_for_recall_of_0_9: usize,
}

/// The images that a screen chose, and how well it tells the others apart.
#[derive(Debug, Serialize, Deserialize)]
struct Screened {
    /// Images that were computed in full for their influence to first order.
    candidates: usize,
    /// Spearman's correlation between the influences to first order and the exact ones on the random sample of the discarded;
    /// none of fewer than two.
    spearman: Option<f64>,
    /// What to do where they agree too little.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// A correlation below this is warned of, where it is one of enough images.
const AGREES: f64 = 0.5;
const ENOUGH: usize = 10;

/// What a screen is worth whose order has this rank correlation with the exact one on some images drawn at random.
fn too_little(spearman: Option<f64>, images: usize) -> Option<String> {
    let found = spearman.filter(|found| *found < AGREES && images >= ENOUGH)?;
    Some(format!(
        "the screen's order says little about the exact one: their rank correlation is {found:.2} on {images} images drawn at random, \
         where 1 is the same order. The step is too large for its first order. The certified recall still holds. Take a smaller \
         `unlearn.rise` (or `unlearn.lr`), compute more images (`top_k.screened`), or disconnect `screen`"
    ))
}

impl Screened {
    /// Of influences to first order and the images that were chosen by them.
    fn of(first_order: &[f32], chosen: &[usize], found: &Halving) -> Self {
        let mut sample: Vec<bool> = found.exact.clone();
        chosen.iter().for_each(|&image| sample[image] = false);
        let images = found.exact.len();
        let score = |image: usize| {
            found.means.iter().skip(image).step_by(images).copied().fold(f64::NEG_INFINITY, f64::max)
        };
        let sample: Vec<usize> = (0..images).filter(|&image| sample[image]).collect();
        let known: Vec<f64> = sample.iter().map(|&image| f64::from(first_order[image])).collect();
        let exact: Vec<f64> = sample.iter().map(|&image| score(image)).collect();
        let spearman = spearman(&known, &exact);
        Self { candidates: chosen.len(), spearman, warning: too_little(spearman, sample.len()) }
    }
}

/// One unit, because the rows to compute depend on earlier ones: an interrupted one starts again.
pub(crate) fn units(loss: &LossParams, inputs: &Inputs) -> anyhow::Result<Vec<Unit>> {
    let latents = arrays::open(inputs)?.0.rows();
    pretrained(loss, inputs, latents)?;
    let steps = (latents * loss.time_samples) as u64;
    Ok(vec![Unit { name: "top k".into(), range: json!({ "latents": [0, latents] }), steps }])
}

/// Computes the rows that are needed to find the top k: the losses [2N], exact ones and estimates, and the report.
pub(crate) fn run(
    loss: &LossParams,
    params: &TopK,
    inputs: &Inputs,
    out: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let (weights, mode) = (Some(inputs.path("weights")), ModelMode::Inference(loss.precision));
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?.with_objective(&loss.objective);
    let sample = with_unet(inputs, weights, cx.device, mode, |unet| {
        let set = TrainingSet::open(inputs, unet)?;
        let data = set.data()?;
        // As in a full pass, rows of one timestep go through the network together.
        let micro_batch = micro_batch::effective(unet, &schedule, set.row_shapes(), 1, cx)?;
        let pass = LossPass::new(unet, &schedule, data, loss, micro_batch)?;
        let (images, latents, timesteps) = (data.images(), data.latents_len(), loss.time_samples);
        let population = Population { images, views: latents / images.max(1), timesteps };
        let total = population.pairs();
        let mut rises = Rises {
            pass,
            timesteps: loss.timesteps(schedule.config())?,
            captions: loss.captions,
            before: pretrained(loss, inputs, latents)?,
            after: vec![Vec::new(); latents],
            seed: params.seed.into(),
            progress: &|done| cx.progress(done as u64, total as u64),
            done: 0,
        };
        let wanted = Spec {
            top: params.k as usize,
            confidence: params.confidence,
            keep: params.max_keep,
            check: params.certify_samples as usize,
        };
        let first_order = inputs.get(SCREEN).map(|path| check_outputs::finite(path, images)).transpose()?;
        let (found, screen) = match &first_order {
            None => (successive_halving::halve(population, &wanted, &mut rises)?, None),
            Some(first_order) => {
                let ranks = rank(first_order)?.into_iter().map(|image| image as usize);
                let chosen: Vec<usize> = ranks.take(params.screened()).collect();
                let estimate = |latent: usize| f64::from(first_order[latent % images]);
                let found = successive_halving::rescore(population, &wanted, &chosen, &estimate, &mut rises)?;
                let screen = Screened::of(first_order, &chosen, &found);
                (found, Some(screen))
            }
        };
        writer::write_f32(out.join(LOSSES), &[latents], &rises.losses(&found)?)?;
        let report = Report { screen, ..Report::of(&found, population, params, loss.captions) };
        json::write_pretty(&out.join(REPORT), &report)?;
        cx.progress(total as u64, total as u64);
        Ok((loss.precision != Precision::Fp32).then(|| rises.sample()))
    })?;
    if let Some((latent, timesteps, found)) = sample {
        precision_check::check(
            loss,
            (inputs, weights, cx.device),
            &schedule,
            loss.captions,
            &found,
            |pass| pass.rows_of_images(&[latent], &timesteps, &mut |_| ()),
        )?;
    }
    Ok(())
}

/// The rises in loss, computed on demand.
struct Rises<'a> {
    pass: LossPass<'a>,
    timesteps: Vec<i64>,
    captions: usize,
    before: Npy,
    /// The losses of each latent's rows, timestep by timestep in the order of computation: [seen, captions].
    after: Vec<Vec<f32>>,
    seed: i64,
    progress: &'a dyn Fn(usize),
    done: usize,
}

impl Source for Rises<'_> {
    fn differences(&mut self, latents: &[usize], places: &[usize]) -> Result<Vec<f64>, MathError> {
        let timesteps: Vec<i64> = places.iter().map(|&place| self.timesteps[place]).collect();
        let (progress, done) = (self.progress, self.done);
        let mut heard = |pairs: usize| progress(done + pairs);
        let rows = self.pass.rows_of_images(latents, &timesteps, &mut heard)?; // [latents, captions, timesteps]
        self.done += latents.len() * places.len();
        let rows = values(&rows.transpose(1, 2)); // [latents, timesteps, captions]
        let mut rises = Vec::with_capacity(latents.len() * places.len());
        let mut before = vec![0.0; self.timesteps.len()];
        for (&latent, rows) in latents.iter().zip(rows.chunks_exact(places.len() * self.captions)) {
            let start = latent * before.len();
            self.before.read_f32_at(start, &mut before).map_err(|error| MathError::Data(error.into()))?;
            for (&place, captions) in places.iter().zip(rows.chunks_exact(self.captions)) {
                rises.push(mean(captions) - f64::from(before[place]));
            }
            self.after[latent].extend(rows);
        }
        Ok(rises)
    }

    fn shuffled(&mut self, count: usize) -> Vec<usize> {
        let order = Generator::seeded(derived_seed("candidates", &[self.seed])).permutation(count as i64);
        let order = Vec::<i64>::try_from(order).expect("a vector of int64");
        order.into_iter().map(|place| place as usize).collect()
    }
}

impl Rises<'_> {
    /// The losses [2N] after the unlearning: exactly those of a full pass if all rows were computed; else the loss
    /// before plus the estimated rise.
    fn losses(&self, found: &Halving) -> anyhow::Result<Vec<f32>> {
        let (times, captions) = (self.timesteps.len(), self.captions);
        // The positions of the timesteps in the order of computation.
        let mut places = vec![0; times];
        for (place, timestep) in successive_halving::visit_order(times).into_iter().enumerate() {
            places[timestep] = place;
        }
        let mut losses = Vec::with_capacity(self.after.len());
        let mut before = vec![0.0; times];
        for (latent, rows) in self.after.iter().enumerate() {
            if found.exact[latent % found.exact.len()] {
                // Summed in the order of a full pass.
                losses
                    .push(per_image::mean(places.iter().map(|place| &rows[place * captions..][..captions])));
            } else {
                self.before.read_f32_at(latent * times, &mut before)?;
                losses.push((mean(&before) + found.means[latent]) as f32);
            }
        }
        Ok(losses)
    }

    /// The first computed latent, which is also computed in float32, its timesteps, and its losses [1, captions, timesteps].
    fn sample(&self) -> (usize, Vec<i64>, Tensor) {
        let latent = self.after.iter().position(|rows| !rows.is_empty()).unwrap_or(0);
        let rows = &self.after[latent];
        let seen = rows.len() / self.captions;
        let order = successive_halving::visit_order(self.timesteps.len());
        let timesteps = order[..seen].iter().map(|&place| self.timesteps[place]).collect();
        let rows = Tensor::from_slice(rows).view([1, seen as i64, self.captions as i64]);
        (latent, timesteps, rows.transpose(1, 2))
    }
}

impl Report {
    fn of(found: &Halving, population: Population, params: &TopK, captions: usize) -> Self {
        let Halving { rounds, means: _, exact, computed, check } = found;
        let round = |&Round { timesteps, images, behind, surplus, threshold, margin }: &Round| Rounds {
            timesteps,
            images,
            discarded: behind + surplus,
            surplus,
            kept: images - behind - surplus,
            threshold: threshold.score,
            threshold_error: threshold.error,
            margin,
            reliability: threshold.reliability,
        };
        let full = population.pairs();
        let top = population.images.min(params.k as usize);
        Self {
            asked: params.identity(),
            images: population.images,
            latents: population.images * population.views,
            timesteps: population.timesteps,
            captions,
            rounds: rounds.iter().map(round).collect(),
            rows: Rows {
                computed: computed * captions,
                full: full * captions,
                fraction: *computed as f64 / full as f64,
            },
            certificate: Certificate {
                confidence: params.confidence,
                discarded: check.discarded,
                sample: check.sample,
                found: check.found,
                most: check.most,
                recall: check.recall,
                sample_for_recall_of_0_9: successive_halving::sample_for(
                    check.discarded,
                    top / 10,
                    params.confidence,
                ),
            },
            screen: None,
            exact: (0..exact.len()).filter(|&image| exact[image]).collect(),
        }
    }

    /// Reads the report of a unit.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = regular_file::read(path)?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// What speaks against the screen that chose the images.
    pub fn warning(&self) -> Option<&str> {
        self.screen.as_ref()?.warning.as_deref()
    }

    /// Whether each image's influence is exact, by index.
    pub fn flags(&self) -> Vec<bool> {
        let mut flags = vec![false; self.images];
        for &image in &self.exact {
            flags[image] = true;
        }
        flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_that_says_little_is_warned_of_where_enough_images_tell() {
        let text = too_little(Some(0.123), 50).unwrap();
        assert!(text.contains("correlation is 0.12 on 50 images"), "{text}");
        assert!(too_little(Some(-0.9), 10).is_some());
        for (found, images) in [(Some(0.1), 9), (Some(0.5), 200), (None, 200)] {
            assert_eq!(too_little(found, images), None);
        }
    }
}
