//! The most influential images without all timesteps of all images, and how sure that is.

use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Tensor;

use super::per_timestep::mean;
use super::{LOSSES, per_image, precision_check};
use crate::io::npy::writer;
use crate::io::npy::{Dtype, Npy};
use crate::kinds::shared::arrays::{self, TrainingSet, values};
use crate::kinds::shared::network::with_unet;
use crate::method::error::MathError;
use crate::method::loss::{LossParams, LossPass};
use crate::method::noise::{Generator, derived_seed};
use crate::method::schedule::NoiseSchedule;
use crate::method::successive_halving::{self, Halving, Population, Round, Source, Spec};
use crate::models::unet::{ModelMode, Precision};
use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{Context, Inputs, Unit};
use attrflow_engine::params;

params! {
    /// Which images are to be found, and how surely.
    pub struct TopK {
        /// The images to find: those of the largest influence.
        k: u32 [1..=100_000_000] = 100,
        /// How surely: the probability with which an image of the top k is kept, as far as what remains of its rises
        /// besides what all images share is normal; and that with which the certified recall holds, whatever they are.
        confidence: f64 [0.5..=0.999999] = 0.95,
        /// Discarded images, drawn at random, that are computed in full to certify the recall; 0 certifies nothing.
        certify_samples: u32 [0..=100_000_000] = 200,
        /// The largest share of the images that a round may keep, however close they are. With 1 only the intervals
        /// discard; with 0.5 the cost is bounded, and the certified recall alone says what that loses.
        max_keep: f64 [0.01..=1.0] = 1.0,
        /// Seed of the draw for `certify_samples`.
        seed: u32 = 0,
    }
}

impl Validate for TopK {}

/// The input that holds the pretrained losses at each timestep.
pub(crate) const PER_TIMESTEP: &str = "pretrain_loss_per_timestep";
/// The report.
pub(crate) const REPORT: &str = "top_k.json";

/// What a run computed and left out, and what that is worth.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    /// What was asked for.
    asked: TopK,
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
    /// The images whose influence is exact, by index. All others have an estimate.
    pub exact: Vec<usize>,
}

/// A round: how many images had been seen at how many timesteps, and how many were then discarded.
#[derive(Debug, Serialize, Deserialize)]
struct Rounds {
    timesteps: usize,
    images: usize,
    discarded: usize,
    /// Of them those that only `max_keep` discarded, though their interval did not.
    surplus: usize,
    kept: usize,
    /// The k-th best score less what all images share, and its standard error.
    threshold: f64,
    threshold_error: f64,
    /// How far behind it the middle image may be and not be discarded.
    margin: f64,
    /// The share of the variance of the images' scores that is not by chance.
    reliability: f64,
}

/// Passes of the network: rows of image, caption and timestep.
#[derive(Debug, Serialize, Deserialize)]
struct Rows {
    computed: usize,
    /// Those of a full pass.
    full: usize,
    fraction: f64,
}

/// What a random sample of the discarded says of all of them.
#[derive(Debug, Serialize, Deserialize)]
struct Certificate {
    confidence: f64,
    discarded: usize,
    sample: usize,
    /// Of the sample, those that belong to the top k. They are in the answer.
    found: usize,
    /// The most of the discarded that can belong to it, those among them.
    most: usize,
    recall: f64,
    /// The `certify_samples` that would certify a recall of 0.9 if it found none.
    sample_for_recall_of_0_9: usize,
}

/// One unit, for which rows are computed depends on what others gave: an interrupted one begins again.
pub(crate) fn units(loss: &LossParams, inputs: &Inputs) -> anyhow::Result<Vec<Unit>> {
    let latents = arrays::open(inputs)?.0.rows();
    pretrained(loss, inputs, latents)?;
    let steps = (latents * loss.time_samples) as u64;
    Ok(vec![Unit { name: "top k".into(), range: json!({ "latents": [0, latents] }), steps }])
}

/// The losses at each timestep before the unlearning: float32 [2N, T].
fn pretrained(loss: &LossParams, inputs: &Inputs, latents: usize) -> anyhow::Result<Npy> {
    let npy = Npy::open(inputs.path(PER_TIMESTEP))?;
    npy.expect_shape(&[Some(latents), Some(loss.time_samples)])?;
    let found = npy.dtype();
    anyhow::ensure!(found == Dtype::F32, "{}: dtype {found}, expected {}", npy.path().display(), Dtype::F32);
    Ok(npy)
}

/// Computes what is needed to find the top k: the losses [2N], exact ones and estimates, and the report.
pub(crate) fn run(
    loss: &LossParams,
    asked: &TopK,
    inputs: &Inputs,
    out: &Path,
    cx: &Context<'_>,
) -> anyhow::Result<()> {
    let (weights, mode) = (Some(inputs.path("weights")), ModelMode::Inference(loss.precision));
    let schedule = NoiseSchedule::load(inputs.path("scheduler"))?;
    let sample = with_unet(inputs, weights, cx.device, mode, |unet| {
        let set = TrainingSet::open(inputs, unet)?;
        let data = set.data()?;
        // As in a full pass, rows of one timestep go through the network together.
        let micro_batch = set.effective_micro_batch(unet, &schedule, 1, cx.micro_batch);
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
            seed: asked.seed.into(),
            progress: &|done| cx.progress(done as u64, total as u64),
            done: 0,
        };
        let wanted = Spec {
            top: asked.k as usize,
            confidence: asked.confidence,
            keep: asked.max_keep,
            check: asked.certify_samples as usize,
        };
        let found = successive_halving::halve(population, &wanted, &mut rises)?;
        writer::write_f32(out.join(LOSSES), &[latents], &rises.losses(&found)?)?;
        let report = Report::of(&found, population, asked, loss.captions);
        let mut text = serde_json::to_vec_pretty(&report)?;
        text.push(b'\n');
        fs_err::write(out.join(REPORT), text)?;
        cx.progress(total as u64, total as u64);
        Ok((loss.precision != Precision::Fp32).then(|| rises.sample()))
    })?;
    if let Some((timesteps, found)) = sample {
        precision_check::check(
            loss,
            (inputs, weights, cx.device),
            &schedule,
            loss.captions,
            &found,
            |pass| pass.rows_of_images(&[SAMPLE], &timesteps, &mut |_| ()),
        )?;
    }
    Ok(())
}

/// The latent whose rows are computed in float32 as well.
const SAMPLE: usize = 0;

/// The rises in loss, computed as they are asked for.
struct Rises<'a> {
    pass: LossPass<'a>,
    timesteps: Vec<i64>,
    captions: usize,
    before: Npy,
    /// By latent the losses of its rows, timestep by timestep in the order that they were asked for: [seen, captions].
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
    /// The losses [2N] after the unlearning: where all rows were computed, as a full pass gives them; elsewhere the
    /// loss before and the estimated rise.
    fn losses(&self, found: &Halving) -> anyhow::Result<Vec<f32>> {
        let (times, captions) = (self.timesteps.len(), self.captions);
        // Where the timesteps stand in the order that they were seen in.
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

    /// The losses [1, captions, timesteps] of the latent that is computed in float32 as well, and the timesteps.
    fn sample(&self) -> (Vec<i64>, Tensor) {
        let rows = &self.after[SAMPLE];
        let seen = rows.len() / self.captions;
        let order = successive_halving::visit_order(self.timesteps.len());
        let timesteps = order[..seen].iter().map(|&place| self.timesteps[place]).collect();
        let rows = Tensor::from_slice(rows).view([1, seen as i64, self.captions as i64]);
        (timesteps, rows.transpose(1, 2))
    }
}

impl Report {
    fn of(found: &Halving, population: Population, asked: &TopK, captions: usize) -> Self {
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
        let top = population.images.min(asked.k as usize);
        Self {
            asked: asked.clone(),
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
                confidence: asked.confidence,
                discarded: check.discarded,
                sample: check.sample,
                found: check.found,
                most: check.most,
                recall: check.recall,
                sample_for_recall_of_0_9: successive_halving::sample_for(
                    check.discarded,
                    top / 10,
                    asked.confidence,
                ),
            },
            exact: (0..exact.len()).filter(|&image| exact[image]).collect(),
        }
    }

    /// What a unit reported.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs_err::read(path)?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    }

    /// Whether the influence of an image is exact, by index.
    pub fn flags(&self) -> Vec<bool> {
        let mut flags = vec![false; self.images];
        for &image in &self.exact {
            flags[image] = true;
        }
        flags
    }
}

/// Refuses losses at each timestep that are not those whose means are on `pretrain_loss`.
pub(crate) fn expect_one_pass(inputs: &Inputs, means: &[f32]) -> anyhow::Result<()> {
    let npy = Npy::open(inputs.path(PER_TIMESTEP))?;
    npy.expect_shape(&[Some(means.len()), None])?;
    let mut row = vec![0.0; npy.row_len()];
    for (latent, &expected) in means.iter().enumerate() {
        npy.read_f32_at(latent * row.len(), &mut row)?;
        let found = mean(&row);
        // Sums in another order differ by some units in the last place.
        let near = (found - f64::from(expected)).abs() <= 1e-5 * f64::from(expected.abs());
        anyhow::ensure!(
            near,
            "{}: the mean of row {latent} is {found}, expected {expected} as on `pretrain_loss`: \
             both must come from one stage",
            npy.path().display()
        );
    }
    Ok(())
}
