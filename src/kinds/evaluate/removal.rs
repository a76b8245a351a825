//! Models that were trained without a query's most influential images, against a control with the same seed and draws.
//!
//! The effect of a model on a query is E = L(query; model) - L(query; control). Models without random images give the floor: what
//! E is if nothing that matters is missing. The test is on E minus the floor, by query.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use serde_json::{Value as Json, json};

use super::names::{Name, Part, means};
use super::{Evaluate, Finding, OWN, percent};
use crate::kinds::shared::query_table::{self, QueryRow};
use attrflow_engine::kind::Inputs;
use attrflow_statistics::interval::{Interval, t_interval};
use attrflow_statistics::{mean, paired};

pub(super) const HEADER: [&str; 16] = [
    "method",
    "query",
    "k",
    "seed",
    "set",
    "loss",
    "control",
    "effect",
    "floor",
    "net",
    "pixel_mse",
    "latent_cosine",
    "clip_cosine",
    "control_pixel_mse",
    "control_latent_cosine",
    "control_clip_cosine",
];

type Column = fn(&QueryRow) -> Option<f64>;

/// How far a model's drawings are from the queries: columns of the losses' tables, empty where nothing was drawn.
const DRAWINGS: [(&str, Column); 3] = [
    ("pixel_mse", |row| row.pixel_mse),
    ("latent_cosine", |row| row.latent_cosine),
    ("clip_cosine", |row| row.clip_cosine),
];

/// The method of models without random images.
const RANDOM: &str = "random";

/// The losses of all models.
#[derive(Default)]
pub(super) struct Removal {
    control: Vec<Model>,
    removed: Vec<Model>,
    random: Vec<Model>,
}

struct Model {
    name: Name,
    k: usize,
    rows: Vec<QueryRow>,
}

impl Model {
    fn seed(&self) -> &str {
        self.name.part(Part::Seed)
    }

    fn row(&self, query: &str) -> anyhow::Result<&QueryRow> {
        self.rows.iter().find(|row| row.query == query).with_context(|| {
            let known: Vec<&str> = self.rows.iter().map(|row| row.query.as_str()).collect();
            format!("no loss of the query `{query}`, expected one of {}", known.join(", "))
        })
    }
}

/// Reads the tables on `control`, `removed` and `random`.
pub(super) fn read(params: &Evaluate, inputs: &Inputs) -> anyhow::Result<Removal> {
    let names = &params.names;
    let models = |port: &str, parts: &[Part], sized: bool| -> anyhow::Result<Vec<Model>> {
        let model = |(item, path)| {
            let name = Name::read(port, parts, item)?;
            let k = match (name.part(Part::K), params.k) {
                _ if !sized => 0,
                ("", Some(k)) => k,
                ("", None) => anyhow::bail!(
                    "`k` is missing: the names on `{port}` do not say how many images are left out"
                ),
                (text, _) => {
                    text.parse().with_context(|| format!("`{port}`: `{text}` is no number of images"))?
                }
            };
            Ok(Model { name, k, rows: query_table::read(path)? })
        };
        let models: Vec<Model> = inputs.many(port).map(model).collect::<anyhow::Result<_>>()?;
        for (place, model) in models.iter().enumerate() {
            ensure!(
                models[..place].iter().all(|other| (&other.name, other.k) != (&model.name, model.k)),
                "`{port}` has two models that its names do not tell apart: `names.{port}` says what their parts are"
            );
        }
        Ok(models)
    };
    Ok(Removal {
        control: models("control", &names.control, false)?,
        removed: models("removed", &names.removed, true)?,
        random: models("random", &names.random, true)?,
    })
}

/// A line of the table.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Effect {
    pub method: String,
    query: String,
    pub k: usize,
    seed: String,
    set: String,
    loss: f64,
    control: f64,
    pub effect: f64,
    floor: Option<f64>,
    net: Option<f64>,
    drawing: [Option<f64>; 3],
    control_drawing: [Option<f64>; 3],
}

/// The effects of all models.
pub(super) struct Effects {
    pub rows: Vec<Effect>,
    /// By query, the control's losses of all seeds.
    controls: Vec<Vec<f64>>,
}

impl Removal {
    /// The effect of each model: of one without top images on its query, of one without random images on all.
    pub fn effects(&self) -> anyhow::Result<Effects> {
        let mut rows = Vec::new();
        for model in &self.random {
            let set = model.name.part(Part::Set);
            for row in &model.rows {
                rows.push(Effect { set: set.to_owned(), ..self.effect(model, RANDOM, &row.query)? });
            }
        }
        let key = |row: &Effect| (row.query.clone(), row.k, row.seed.clone());
        let floors = means(rows.iter().map(|row| (key(row), row.effect)));
        for model in &self.removed {
            let method = Some(model.name.part(Part::Method)).filter(|method| !method.is_empty());
            let query = model.name.part(Part::Query);
            ensure!(
                !query.is_empty(),
                "`names.removed` is without `query`: which query's images were left out?"
            );
            let row = self.effect(model, method.unwrap_or(OWN), query)?;
            let floor = floors.get(&key(&row)).copied().with_context(|| {
                format!(
                    "no random set of {} images for the seed `{}`: expected at least one",
                    row.k, row.seed
                )
            })?;
            rows.push(Effect { floor: Some(floor), net: Some(row.effect - floor), ..row });
        }
        let mut controls: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for row in self.control.iter().flat_map(|model| &model.rows) {
            controls.entry(&row.query).or_default().push(row.loss);
        }
        let controls = controls.into_values().collect();
        Ok(Effects { rows, controls })
    }

    fn effect(&self, model: &Model, method: &str, query: &str) -> anyhow::Result<Effect> {
        let seed = model.seed();
        let control = self.control.iter().find(|control| control.seed() == seed);
        let control = control.with_context(|| {
            let seeds: Vec<String> =
                self.control.iter().map(|control| format!("`{}`", control.seed())).collect();
            format!("no control with the seed `{seed}`, expected one of {}", seeds.join(", "))
        })?;
        let (row, control) = (model.row(query)?, control.row(query)?);
        Ok(Effect {
            method: method.to_owned(),
            query: query.to_owned(),
            k: model.k,
            seed: seed.to_owned(),
            set: String::new(),
            loss: row.loss,
            control: control.loss,
            effect: row.loss - control.loss,
            floor: None,
            net: None,
            drawing: DRAWINGS.map(|(_, of)| of(row)),
            control_drawing: DRAWINGS.map(|(_, of)| of(control)),
        })
    }
}

/// A point of the picture: the mean effect of a method at one K, by query or random set.
pub(super) struct Point {
    pub method: String,
    pub k: usize,
    pub values: Vec<f64>,
    pub mean: f64,
    pub interval: Option<Interval>,
}

impl Effects {
    /// The methods with their K, random ones last.
    fn arms(&self) -> Vec<(String, usize)> {
        let arms = self.rows.iter().map(|row| (row.method == RANDOM, row.method.clone(), row.k));
        let arms: BTreeSet<(bool, String, usize)> = arms.collect();
        arms.into_iter().map(|(_, method, k)| (method, k)).collect()
    }

    /// Values of a method at one K, by query: the mean over seeds.
    fn by_query(&self, (method, k): (&str, usize), value: impl Fn(&Effect) -> Option<f64>) -> Vec<f64> {
        let rows = self.rows.iter().filter(|row| row.method == method && row.k == k);
        means(rows.filter_map(|row| Some((row.query.clone(), value(row)?)))).into_values().collect()
    }

    /// Values of random sets of K images on the queries and seeds whose top images were left out.
    fn random(&self, k: usize, method: Option<&str>) -> impl Iterator<Item = &Effect> {
        let of_method =
            move |row: &Effect| row.method != RANDOM && method.is_none_or(|method| row.method == method);
        let wanted: BTreeSet<(&str, &str)> = self
            .rows
            .iter()
            .filter(|row| row.k == k && of_method(row))
            .map(|row| (row.query.as_str(), row.seed.as_str()))
            .collect();
        self.rows.iter().filter(move |row| {
            row.method == RANDOM && row.k == k && wanted.contains(&(row.query.as_str(), row.seed.as_str()))
        })
    }

    /// The same by set.
    fn by_set(&self, k: usize, method: Option<&str>, value: impl Fn(&Effect) -> Option<f64>) -> Vec<f64> {
        let of = |row: &Effect| Some((row.set.clone(), value(row)?));
        means(self.random(k, method).filter_map(of)).into_values().collect()
    }

    /// What the picture shows.
    pub fn points(&self, level: f64) -> Vec<Point> {
        let point = |(method, k): (String, usize)| {
            let effect = |row: &Effect| Some(row.effect);
            let values = match method == RANDOM {
                true => self.by_set(k, None, effect),
                false => self.by_query((&method, k), effect),
            };
            Point { mean: mean(&values), interval: t_interval(&values, level), method, k, values }
        };
        self.arms().into_iter().map(point).collect()
    }

    /// How far drawings are from the queries, on average: without the top images, without random ones, and of the control.
    fn drawings(&self, method: &str, k: usize) -> BTreeMap<&str, Json> {
        let of = |column: usize| {
            let removed = self.by_query((method, k), |row| row.drawing[column]);
            let control = self.by_query((method, k), |row| row.control_drawing[column]);
            let random = self.by_set(k, Some(method), |row| row.drawing[column]);
            let means =
                json!({ "removed": mean(&removed), "random": mean(&random), "control": mean(&control) });
            (![removed, random, control].iter().any(Vec::is_empty)).then_some(means)
        };
        let names = DRAWINGS.iter().map(|(name, _)| *name);
        names.enumerate().filter_map(|(column, name)| Some((name, of(column)?))).collect()
    }

    /// A verdict for each method and K.
    pub fn findings(&self, params: &Evaluate) -> Vec<Finding> {
        let arms: Vec<_> = self.arms().into_iter().filter(|(method, _)| method != RANDOM).collect();
        let sizes: BTreeSet<usize> = arms.iter().map(|(_, k)| *k).collect();
        let differences = |method: &str, k: usize| -> BTreeMap<&str, Option<Interval>> {
            let net = |method: &str| self.by_query((method, k), |row| row.net);
            let own = net(method);
            let others = arms.iter().filter(|(other, size)| other != method && *size == k);
            let others =
                others.map(|(other, _)| (other, net(other))).filter(|(_, net)| net.len() == own.len());
            let paired =
                |net: &[f64]| own.iter().zip(net).map(|(own, other)| own - other).collect::<Vec<_>>();
            others.map(|(other, net)| (other.as_str(), t_interval(&paired(&net), params.level))).collect()
        };
        let finding = |(method, k): &(String, usize)| {
            let (method, k) = (method.as_str(), *k);
            let of = |value: fn(&Effect) -> Option<f64>| self.by_query((method, k), value);
            let (net, sets) = (of(|row| row.net), self.by_set(k, Some(method), |row| Some(row.effect)));
            let mut random: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for row in self.random(k, Some(method)) {
                random.entry(&row.query).or_default().push(row.effect);
            }
            let random: Vec<Vec<f64>> = random.into_values().collect();
            let details = json!({
                "k": k,
                "queries": net.len(),
                "effect": mean(&of(|row| Some(row.effect))),
                "floor": mean(&sets),
                "random_sets": sets.len(),
                "variance_left_by_pairing": paired::variance_left(&random, &self.controls),
                "drawings": self.drawings(method, k),
                // Paired by query; the random sets are the same.
                "difference_to": differences(method, k),
            });
            let rule = format!(
                "the {} interval, over queries and random sets, of the effect of removing the top {k} minus that of random ones lies above 0",
                percent(params.level)
            );
            let test = match sizes.len() {
                1 => params.removal.clone(),
                _ => format!("{} {k}", params.removal),
            };
            let estimate = paired::net_interval(&net, &sets, params.level);
            Finding::of([&test, method], estimate, 0.0, rule, details)
        };
        arms.iter().map(finding).collect()
    }
}
