//! A query: its picture, what is known of all its scores, and the training images at the ends of its ranking.

use std::path::PathBuf;

use serde::Deserialize;

use super::distribution::{Distribution, Histogram};
use super::options::Options;
use super::pictures::{Pictures, Use};
use super::row_view::{RowView, Scene};
use super::sides::SideFiles;
use super::words::{ALT, percent};
use crate::io::json;
use crate::io::words::{count, cut, digits, score};
use crate::results::{Arrays, CaptionFiles, QueryStages, Run, Top, rows, text};

/// A query as the page has it.
#[derive(Debug, Clone)]
pub(super) struct Query {
    /// The id of its section.
    pub id: String,
    pub name: String,
    pub caption: Option<String>,
    /// The number of its picture.
    pub picture: Option<usize>,
    pub picture_name: String,
    /// Names and values, for its card and its section.
    pub facts: Vec<(&'static str, String)>,
    pub warnings: Vec<String>,
    /// Why there are no rows.
    pub problem: Option<String>,
    /// How error bars were computed, or why there are none.
    pub error_note: String,
    pub rows: Vec<RowView>,
    pub bottom: Vec<RowView>,
    pub distribution: Option<Distribution>,
    /// Of the distribution; made when it is known how many rows are shown.
    pub histogram: Option<Histogram>,
    /// Names and values of quantiles.
    pub quantiles: Vec<(&'static str, String)>,
    /// How many images have scores.
    pub images: usize,
    /// The arrays, for comparisons.
    pub arrays: Option<[PathBuf; 2]>,
}

impl Query {
    /// What its picture shows.
    pub fn alt(&self) -> String {
        let said = self.caption.as_deref().unwrap_or(&self.name);
        format!("query {}: {}", self.name, cut(said, ALT))
    }

    pub fn has_errors(&self) -> bool {
        self.rows.iter().any(|row| row.error.is_some())
    }
}

/// Which of so many pictures queries show.
pub(super) fn used<'q>(queries: impl IntoIterator<Item = &'q Query>, pictures: usize) -> Vec<bool> {
    let mut used = vec![false; pictures];
    for query in queries {
        let rows = query.rows.iter().chain(&query.bottom).map(|row| row.picture);
        rows.chain([query.picture]).flatten().for_each(|picture| used[picture] = true);
    }
    used
}

/// What is read once for all queries.
#[derive(Default)]
pub(super) struct Shared {
    pub pictures: Pictures,
    captions: CaptionFiles,
}

/// All queries of a run.
pub(super) fn queries(run: &Run<'_>, options: &Options, shared: &mut Shared) -> Vec<Query> {
    let all = QueryStages::all(run);
    all.iter().enumerate().map(|(number, stages)| query(stages, run, number + 1, options, shared)).collect()
}

fn query<'a>(
    stages: &QueryStages<'a>,
    run: &Run<'a>,
    number: usize,
    options: &Options,
    shared: &mut Shared,
) -> Query {
    let (drawing, picture, picture_name) = stages.drawing(run);
    let mut query = Query {
        id: format!("q{number}"),
        name: stages.name.clone(),
        caption: stages.caption(drawing),
        picture: picture.map(|path| shared.pictures.add(&path, Use::Query)),
        picture_name,
        facts: Vec::new(),
        warnings: Vec::new(),
        problem: None,
        error_note: String::new(),
        rows: Vec::new(),
        bottom: Vec::new(),
        distribution: None,
        histogram: None,
        quantiles: Vec::new(),
        images: 0,
        arrays: None,
    };
    let seed = drawing.and_then(|drawing| text(&drawing.params, "seed"));
    query.facts.extend(seed.map(|seed| ("seed", seed)));
    match stages.arrays(run) {
        None => query.problem = Some(stages.problem()),
        Some(arrays) => {
            query.arrays =
                stages.result(run, "influence").zip(stages.result(run, "rank")).map(<[_; 2]>::from);
            fill(&mut query, stages, run, &arrays, options, shared);
        }
    }
    query
}

fn fill(
    query: &mut Query,
    stages: &QueryStages<'_>,
    run: &Run<'_>,
    arrays: &Arrays,
    options: &Options,
    shared: &mut Shared,
) {
    let top = stages.top(run).unwrap_or_default();
    query.images = arrays.scores.len();
    query.distribution = Distribution::of(&arrays.scores);
    if let Some(all) = &query.distribution {
        query.quantiles = all.quantiles.iter().map(|(name, value)| (*name, score(*value))).collect();
        query.facts.push(("largest score", score(all.largest())));
        query.facts.push(("median score", score(all.median())));
        query.facts.push(("scores below zero", percent(all.negative)));
    }
    query.facts.push(("images", query.images.to_string()));
    let rise = |value: f64| {
        format!(
            "{} (predicted: {})",
            score(value),
            top.summary.query_rise_predicted.map_or("unknown".into(), score)
        )
    };
    query.facts.extend(top.summary.query_rise.map(|value| ("rise of the query's own loss", rise(value))));
    query.facts.extend(recall(stages, run).into_iter().flatten());
    query.warnings.clone_from(&top.summary.warnings);
    query.error_note = error_note(&top);

    let (images, captions) = (stages.data(run, "images"), stages.data(run, "captions"));
    let own = |port: &str| stages.influence.and_then(|influence| run.output(influence, port));
    let before = stages.influence.and_then(|influence| run.input(influence, "pretrain_loss"));
    let sides =
        SideFiles::open(own("per_timestep").as_deref(), [own("losses").as_deref(), before.as_deref()]);
    let count = arrays.ranks.len();
    let shown = options.top.min(count);
    let rest = options.bottom.min(count - shown);
    let mut read = |places| rows(arrays, places, &top, captions.as_deref(), &mut shared.captions);
    let (first, mut last) = (read(0..shown), read(count - rest..count));
    last.reverse();
    let scene = Scene {
        id: &query.id,
        images: images.as_deref(),
        sides: &sides,
        count,
        redact: options.redact,
        method: top.summary.error_bars.as_ref(),
    };
    query.rows = scene.rows(&first, "r", &mut shared.pictures);
    query.bottom = scene.rows(&last, "b", &mut shared.pictures);
}

/// What is known of a ranking by `top_k`.
fn recall(stages: &QueryStages<'_>, run: &Run<'_>) -> Option<[(&'static str, String); 2]> {
    let path = stages.result(run, "top_k")?;
    let report: TopK = json::read(path).ok()?;
    let Certificate { recall, confidence } = report.certificate;
    let exact = format!(
        "{} of {}; all others are estimates",
        report.exact.len(),
        count(report.images, "image", "images")
    );
    Some([
        ("exact scores", exact),
        (
            "certified recall",
            format!("at least {}, with confidence {}", digits(recall, 3), percent(confidence)),
        ),
    ])
}

/// The file top_k.json.
#[derive(Deserialize)]
struct TopK {
    images: usize,
    exact: Vec<usize>,
    certificate: Certificate,
}

#[derive(Deserialize)]
struct Certificate {
    recall: f64,
    confidence: f64,
}

/// How error bars were computed, or why there are none.
fn error_note(top: &Top) -> String {
    let summary = &top.summary;
    match (&summary.error_bars, &summary.no_error_bars) {
        (Some(found), _) => {
            let draws = count(found.draws, "draw", "draws");
            format!(
                "Error bars: one standard error behind \u{b1}, the {} interval as a line. From {} at {} with {draws} of noise each; \
                 ranks by resampling. \u{201c}Tie\u{201d}: the rank intervals of neighbours overlap.",
                percent(found.level),
                found.method,
                count(found.timesteps, "timestep", "timesteps")
            )
        }
        (None, Some(why)) => {
            let mut why = why.clone();
            if let Some(first) = why.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            format!("{why}.")
        }
        (None, None) if top.rows.is_empty() => {
            "No error bars: there is no file top.json of a stage of the kind ranking.".into()
        }
        (None, None) => "No error bars: an earlier version of attrflow wrote this ranking.".into(),
    }
}
