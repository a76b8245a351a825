//! The linear datamodeling score: do sums of scores predict the losses of models that were trained on subsets?

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::names::{Name, Part};
use super::{Evaluate, Finding, OWN, percent};
use crate::io::json as json_file;
use crate::io::npy::Npy;
use crate::kinds::shared::{ids, query_table};
use crate::method::influence::rank;
use attrflow_engine::kind::Inputs;
use attrflow_statistics::lds::{self, Resamples};
use attrflow_statistics::mean;

pub(super) const HEADER: [&str; 3] = ["method", "query", "lds"];

/// The scores of a method [N], by query.
type Scores = BTreeMap<String, Vec<f32>>;

/// A line of losses.csv.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Loss {
    subset: String,
    seed: String,
    query: String,
    loss: f64,
}

/// subsets.json: the places of the images that each subset keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subsets {
    /// How many images there are in all, where it is known.
    images: usize,
    subsets: BTreeMap<String, Vec<i64>>,
    /// How the models were trained, as the parameter `recipe` says.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    recipe: Map<String, Json>,
    /// By query: the BLAKE3 digest of the file with its latents.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    queries: BTreeMap<String, String>,
}

/// The models that were trained on subsets.
#[derive(Default)]
pub(super) struct Models {
    subsets: Subsets,
    /// By subset, seed and query.
    losses: BTreeMap<(String, String, String), f64>,
}

/// The number of images: that of the scores.
fn images(inputs: &Inputs) -> anyhow::Result<usize> {
    let mut sizes = BTreeSet::new();
    for (_, path) in inputs.many("scores") {
        let npy = Npy::open(path)?;
        npy.expect_shape(&[None])?;
        sizes.insert(npy.rows());
    }
    let first = sizes.first().copied().unwrap_or(0);
    ensure!(sizes.len() < 2, "`scores` are of {sizes:?} images: expected all of one data set");
    Ok(first)
}

/// Reads the subsets and the losses on them, earlier ones too.
pub(super) fn read(params: &Evaluate, inputs: &Inputs) -> anyhow::Result<Models> {
    let images = images(inputs)?;
    let mut models = Models::default();
    models.subsets.images = images;
    if let Some(folder) = inputs.get("recorded") {
        models.add_recorded(folder, images)?;
    }
    models.expect_same_recipe(params, inputs)?;
    for (subset, path) in inputs.many("subsets") {
        let kept = ids::indices(path, images)?;
        let known = models.subsets.subsets.insert(subset.to_owned(), kept.clone());
        ensure!(
            known.is_none_or(|known| known == kept),
            "the subset `{subset}` has other images in the folder on `recorded`"
        );
    }
    for (item, path) in inputs.many("subset_losses") {
        let name = Name::read("subset_losses", &params.names.subset_losses, item)?;
        let (subset, seed) = (name.part(Part::Subset), name.part(Part::Seed));
        ensure!(
            models.subsets.subsets.contains_key(subset),
            "`subset_losses` has the item `{item}`, of no subset on `subsets`"
        );
        for row in query_table::read(path)? {
            let known =
                models.losses.insert((subset.to_owned(), seed.to_owned(), row.query.clone()), row.loss);
            ensure!(
                known.is_none_or(|known| known == row.loss),
                "the loss of the query `{}` for subset `{subset}` and seed `{seed}` is {}, and {} in the folder on `recorded`: the \
                 models differ",
                row.query,
                row.loss,
                known.unwrap_or_default()
            );
        }
    }
    Ok(models)
}

/// What was found.
#[derive(Default)]
pub(super) struct Judged {
    pub rows: Vec<(String, String, Option<f64>)>,
    pub findings: Vec<Finding>,
}

impl Models {
    fn add_recorded(&mut self, folder: &Path, images: usize) -> anyhow::Result<()> {
        let file = folder.join(super::SUBSETS);
        let subsets: Subsets = json_file::read(&file)?;
        ensure!(
            subsets.images == images,
            "{}: subsets of {} images, expected {images}, as there are scores",
            file.display(),
            subsets.images
        );
        let wrong = subsets.subsets.values().flatten().find(|place| **place < 0 || **place >= images as i64);
        ensure!(wrong.is_none(), "{}: an image {wrong:?}, expected 0 to {images}", file.display());
        self.subsets = subsets;
        let file = folder.join(super::LOSSES);
        let mut reader = csv::Reader::from_reader(fs_err::File::open(&file)?);
        for row in reader.deserialize() {
            let Loss { subset, seed, query, loss } = row.with_context(|| file.display().to_string())?;
            let known = self.subsets.subsets.contains_key(&subset);
            ensure!(known, "{}: the subset `{subset}` is not in {}", file.display(), super::SUBSETS);
            ensure!(
                loss.is_finite() && loss >= 0.0,
                "{}: a loss of {loss}, expected 0 or more",
                file.display()
            );
            let key = (subset, seed, query);
            let place = format!("subset `{}`, seed `{}`, query `{}`", key.0, key.1, key.2);
            ensure!(self.losses.insert(key, loss).is_none(), "{}: {place} occurs twice", file.display());
        }
        Ok(())
    }

    /// Refuses recorded losses of other pictures, or of models that were trained otherwise; then both stand for what is to be recorded.
    fn expect_same_recipe(&mut self, params: &Evaluate, inputs: &Inputs) -> anyhow::Result<()> {
        let recorded = &mut self.subsets;
        let (own, known) = (&params.recipe, &recorded.recipe);
        let keys: BTreeSet<&String> = own.keys().chain(known.keys()).collect();
        let other = keys.into_iter().find(|key| own.get(*key) != known.get(*key));
        if let Some(key) = other.filter(|_| !own.is_empty() && !known.is_empty()) {
            let value = |of: &Map<String, Json>| of.get(key).map_or("not there".to_owned(), Json::to_string);
            anyhow::bail!(
                "`{key}` of `recipe` is {}, and {} in the folder on `recorded`: its models were trained otherwise",
                value(own),
                value(known)
            );
        }
        if !own.is_empty() {
            recorded.recipe = own.clone();
        }
        for (query, path) in inputs.many("queries") {
            let digest = blake3::hash(&fs_err::read(path)?).to_string();
            let known = recorded.queries.insert(query.to_owned(), digest.clone());
            ensure!(
                known.is_none_or(|known| known == digest),
                "the query `{query}` is another picture than in the folder on `recorded`: models on another kind of processor draw \
                 others"
            );
        }
        Ok(())
    }

    /// Writes what the input `recorded` reads.
    pub fn record(&self, losses: &Path, subsets: &Path) -> anyhow::Result<()> {
        let row = |((subset, seed, query), loss): (&(String, String, String), &f64)| Loss {
            subset: subset.clone(),
            seed: seed.clone(),
            query: query.clone(),
            loss: *loss,
        };
        let rows: Vec<Loss> = self.losses.iter().map(row).collect();
        super::write_csv(losses, &["subset", "seed", "query", "loss"], &rows)?;
        let mut text = serde_json::to_vec(&self.subsets)?;
        text.push(b'\n');
        Ok(fs_err::write(subsets, text)?)
    }

    /// The seeds of a subset.
    fn seeds(&self, subset: &str) -> BTreeSet<&str> {
        self.losses.keys().filter(|(of, ..)| of == subset).map(|(_, seed, _)| seed.as_str()).collect()
    }

    /// The seeds that all of some subsets have.
    fn common_seeds(&self, subsets: &[&str]) -> Vec<&str> {
        let all: Vec<BTreeSet<&str>> = subsets.iter().map(|subset| self.seeds(subset)).collect();
        let first = all.first().into_iter().flatten().copied();
        first.filter(|seed| all.iter().all(|of| of.contains(seed))).collect()
    }

    /// The losses by subset and query: a mean over seeds.
    fn table(&self, subsets: &[&str], queries: &[String], seeds: &[&str]) -> anyhow::Result<Vec<Vec<f64>>> {
        let loss = |subset: &str, seed: &str, query: &str| {
            let key = (subset.to_owned(), seed.to_owned(), query.to_owned());
            let known = self.losses.get(&key).copied();
            known.with_context(|| {
                format!("no loss of the query `{query}` for subset `{subset}` and seed `{seed}`")
            })
        };
        let of = |subset: &&str| {
            let value = |query: &String| {
                let all = seeds.iter().map(|seed| loss(subset, seed, query));
                Ok(mean(&all.collect::<anyhow::Result<Vec<f64>>>()?))
            };
            queries.iter().map(value).collect()
        };
        subsets.iter().map(of).collect()
    }

    /// The score of each method, what bounds it, and whether methods differ.
    pub fn judge(&self, params: &Evaluate, inputs: &Inputs) -> anyhow::Result<Judged> {
        let mut judged = Judged::default();
        if self.losses.is_empty() {
            return Ok(judged);
        }
        let subsets: Vec<&str> = self.subsets.subsets.keys().map(String::as_str).collect();
        let subsets: Vec<&str> =
            subsets.into_iter().filter(|subset| !self.seeds(subset).is_empty()).collect();
        ensure!(subsets.len() > 2, "{} subsets have losses, expected 3 or more", subsets.len());
        let methods = self.methods(params, inputs)?;
        let queries: Vec<String> =
            methods.values().next().map(|by| by.keys().cloned().collect()).unwrap_or_default();
        let shared = self.common_seeds(&subsets);
        ensure!(!shared.is_empty(), "no seed is common to all subsets: expected at least one");
        let losses = self.table(&subsets, &queries, &shared)?;
        let reliability = self.reliability(&subsets, &queries, shared.len())?;
        let ceiling = reliability.map(|(reliability, _)| lds::ceiling(reliability));
        let resamples = Resamples::new(params.seed.into(), params.resamples, subsets.len(), queries.len());
        let mut known: Vec<(&str, Vec<Vec<f64>>)> = Vec::new();
        for (method, scores) in &methods {
            let predictions = self.predictions(&subsets, scores);
            let by_query = lds::by_query(&losses, &predictions);
            judged.rows.extend(
                queries.iter().zip(&by_query).map(|(query, lds)| (method.clone(), query.clone(), *lds)),
            );
            let estimate = lds::interval(&losses, &predictions, &resamples, params.level);
            let against: Map<String, Json> = known
                .iter()
                .map(|(other, theirs)| {
                    let found =
                        lds::difference_interval(&losses, &predictions, theirs, &resamples, params.level);
                    ((*other).to_owned(), json!(found))
                })
                .collect();
            let details = json!({
                "subsets": subsets.len(),
                "seeds": shared.len(),
                "queries": queries.len(),
                "ceiling": ceiling,
                "ceiling_subsets": reliability.map(|(_, subsets)| subsets),
                "share_of_ceiling": ceiling.zip(estimate).filter(|(ceiling, _)| *ceiling > 0.0).map(|(ceiling, found)| found.mean / ceiling),
                "difference_to": against,
                "removal_by_regression": self.removal(params, &subsets, &losses, scores, &resamples)?,
            });
            let rule = format!(
                "the {} bootstrap interval, over subsets and queries, of the linear datamodeling score lies above 0",
                percent(params.level)
            );
            judged.findings.push(Finding::of(["lds", method], estimate, 0.0, rule, details));
            known.push((method, predictions));
        }
        Ok(judged)
    }

    /// The scores by method and query; all methods have the same queries, and losses of each.
    fn methods(&self, params: &Evaluate, inputs: &Inputs) -> anyhow::Result<BTreeMap<String, Scores>> {
        let mut methods: BTreeMap<String, Scores> = BTreeMap::new();
        for (item, path) in inputs.many("scores") {
            let name = Name::read("scores", &params.names.scores, item)?;
            let method = Some(name.part(Part::Method)).filter(|method| !method.is_empty()).unwrap_or(OWN);
            let of_method = methods.entry(method.to_owned()).or_default();
            of_method.insert(name.part(Part::Query).to_owned(), Npy::vector(path)?);
        }
        let first: Vec<&String> = methods.values().next().into_iter().flat_map(BTreeMap::keys).collect();
        for (method, by_query) in &methods {
            let found: Vec<&String> = by_query.keys().collect();
            ensure!(
                found == first,
                "`scores` of `{method}` are of the queries {found:?}, expected {first:?}"
            );
        }
        Ok(methods)
    }

    fn predictions(&self, subsets: &[&str], scores: &Scores) -> Vec<Vec<f64>> {
        let scores: Vec<Vec<f64>> =
            scores.values().map(|scores| scores.iter().copied().map(f64::from).collect()).collect();
        let of = |subset: &&str| {
            let mut kept = vec![false; self.subsets.images];
            self.subsets.subsets[*subset].iter().for_each(|&place| kept[place as usize] = true);
            scores.iter().map(|scores| lds::prediction(scores, &kept)).collect()
        };
        subsets.iter().map(of).collect()
    }

    /// The reliability of a mean of `count` seeds, from the subsets that have several, and how many these are: Spearman's correlation
    /// between the means of two halves of the seeds that all of them have.
    fn reliability(
        &self,
        subsets: &[&str],
        queries: &[String],
        count: usize,
    ) -> anyhow::Result<Option<(f64, usize)>> {
        let several: Vec<&str> =
            subsets.iter().copied().filter(|subset| self.seeds(subset).len() > 1).collect();
        let seeds = self.common_seeds(&several);
        if several.len() < 3 || seeds.len() < 2 {
            return Ok(None);
        }
        let (one, other) = seeds.split_at(seeds.len() / 2);
        let of = |half: &[&str]| self.table(&several, queries, &half[..one.len()]);
        let rho = lds::reliability(&of(one)?, &of(other)?);
        Ok(rho.map(|rho| (lds::spearman_brown(rho, count as f64 / one.len() as f64), several.len())))
    }

    /// By K: the effect of removing the K highest-scored images, net of random ones, estimated over the subsets.
    fn removal(
        &self,
        params: &Evaluate,
        subsets: &[&str],
        losses: &[Vec<f64>],
        scores: &Scores,
        resamples: &Resamples,
    ) -> anyhow::Result<Json> {
        let ranks = scores.values().map(|scores| rank(scores)).collect::<Result<Vec<_>, _>>()?;
        let estimate = |&k: &usize| {
            let of_query = |ranks: &Vec<i64>| {
                let top: BTreeSet<&i64> = ranks.iter().take(k).collect();
                let kept = |subset: &&str| {
                    let images = &self.subsets.subsets[*subset];
                    images.iter().filter(|image| top.contains(image)).count() as f64
                };
                subsets.iter().map(kept).collect::<Vec<f64>>()
            };
            let kept: Vec<Vec<f64>> = ranks.iter().map(of_query).collect();
            let effect = lds::removal_interval(losses, &kept, k as f64, resamples, params.level);
            json!({ "k": k, "effect": effect })
        };
        Ok(params.top.iter().map(estimate).collect())
    }
}
