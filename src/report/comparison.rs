//! Two runs side by side: how alike their rankings are, and what was different between them.

use std::collections::BTreeMap;

use super::budget::fit;
use super::header;
use super::options::{Options, ReportError};
use super::pictures::Sizes;
use super::plot::{Scale, Tick, place};
use super::query::{Query, Shared, queries, used};
use super::redact;
use super::row_view::RowView;
use super::shell::{Body, Shown};
use crate::io::rankings::{self, Compared, places};
use crate::io::words::{count, digits};
use crate::results::Arrays;
use crate::results::Files;
use crate::results::Run;
use askama::Template;
use attrflow_engine::provenance::audit::{Diff, Difference};
use attrflow_engine::provenance::manifest::Manifest;

/// The images of both tops in the plot.
const PLOTTED: usize = 100;
/// Those with a mark of their own.
const FIRST: usize = 10;
/// Most differences that are listed.
const DIFFERENCES: usize = 60;
const SIDE: f64 = 300.0;
const LEFT: f64 = 44.0;

/// The page of two runs.
#[derive(Debug)]
pub struct Comparison {
    html: String,
}

impl Comparison {
    /// Reads two runs and compares the queries of one name.
    ///
    /// # Errors
    /// The runs have no query of one name, or the page cannot be written.
    pub fn read(
        a: (&Manifest, &dyn Files),
        b: (&Manifest, &dyn Files),
        options: &Options,
    ) -> Result<Self, ReportError> {
        let runs = [Run::new(a.0, a.1), Run::new(b.0, b.1)];
        let mut shared = Shared::default();
        // The other ends of rankings are not compared.
        let tops = Options { bottom: 0, ..options.clone() };
        let [of_a, of_b] = [0, 1].map(|side| queries(&runs[side], &tops, &mut shared));
        let names =
            |queries: &[Query]| queries.iter().map(|query| query.name.clone()).collect::<Vec<_>>().join(", ");
        let none = || ReportError::NoCommonQuery(format!("they have {} and {}", names(&of_a), names(&of_b)));
        let mut others: BTreeMap<String, Query> =
            of_b.iter().map(|query| (query.name.clone(), query.clone())).collect();
        let common =
            of_a.iter().filter_map(|query| Some(Pair::of(query.clone(), others.remove(&query.name)?)));
        let pairs: Vec<Pair> = common.collect();
        if pairs.is_empty() {
            return Err(none());
        }
        let mut body = ComparisonBody {
            headers: [header::facts(&runs[0]), header::facts(&runs[1])],
            names: [&a.0.pipeline, &b.0.pipeline],
            differences: Differences::of(&Diff::of(a.0, b.0)),
            meaning: crate::results::SCORE_MEANING,
            alone: alone(&pairs, [&of_a, &of_b]),
            shown: Shown::default(),
            columns: pairs
                .iter()
                .map(|pair| &pair.facts)
                .find(|facts| !facts.is_empty())
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
            pairs,
        };
        let sizes = Sizes { query: options.thumbnail * 2, thumbnail: options.thumbnail };
        let sprite = shared.pictures.load(sizes);
        let html = fit(&mut body, &sprite, sizes, options.top, options.max_size)?;
        Ok(Self { html })
    }

    /// The page.
    pub fn html(&self) -> &str {
        &self.html
    }
}

/// The queries that only one run has.
fn alone(pairs: &[Pair], queries: [&[Query]; 2]) -> [Vec<String>; 2] {
    let common = |query: &&Query| !pairs.iter().any(|pair| pair.sides[0].query.name == query.name);
    queries.map(|queries| queries.iter().filter(common).map(|query| query.name.clone()).collect())
}

/// A query in both runs.
#[derive(Debug, Clone)]
struct Pair {
    id: String,
    sides: [Side; 2],
    /// Names and values; none where the rankings cannot be compared.
    facts: Vec<(String, String)>,
    plot: Option<Plot>,
}

/// One of its rankings.
#[derive(Debug, Clone)]
struct Side {
    letter: &'static str,
    query: Query,
    /// For each row, where the other has it.
    moves: Vec<Move>,
}

/// How far an image is from its place in the other ranking.
#[derive(Debug, Clone, Default)]
struct Move {
    class: &'static str,
    words: String,
}

/// Ranks against ranks, as SVG has them.
#[derive(Debug, Clone)]
struct Plot {
    points: String,
    first: String,
    line: String,
    ticks: Vec<[Tick; 2]>,
    words: String,
}

impl Pair {
    fn of(a: Query, b: Query) -> Self {
        let read = |query: &Query| {
            let [scores, ranks] = query.arrays.as_ref()?;
            Some(Arrays::read(scores, Some(ranks))?.ranks)
        };
        let ranks = read(&a).zip(read(&b));
        let ranks = ranks.filter(|(a, _)| !a.is_empty());
        let compared = ranks.as_ref().and_then(|(a, b)| rankings::of(a, b).zip(rankings::kendall(a, b)));
        let found = ranks.filter(|_| compared.is_some()).and_then(|(a, b)| places(&a).zip(places(&b)));
        let moves = |rows: &[RowView], letter: &str, other: Option<&Vec<usize>>| {
            rows.iter()
                .map(|row| {
                    other.map_or_else(Move::default, |other| Move::of(row.rank, other[row.index] + 1, letter))
                })
                .collect()
        };
        let of_a = moves(&a.rows, "B", found.as_ref().map(|(_, b)| b));
        let of_b = moves(&b.rows, "A", found.as_ref().map(|(a, _)| a));
        Self {
            id: a.id.clone(),
            plot: found.map(|(a, b)| Plot::of(&a, &b)),
            facts: compared.as_ref().map(facts).unwrap_or_default(),
            sides: [Side { letter: "A", query: a, moves: of_a }, Side { letter: "B", query: b, moves: of_b }],
        }
    }
}

/// How alike two rankings are, in names and values.
fn facts((found, kendall): &(Compared, f64)) -> Vec<(String, String)> {
    let tops =
        found.top.iter().map(|(size, both)| (format!("in both tops of {size}"), format!("{both} of {size}")));
    let correlations = [("Spearman's correlation", found.correlation), ("Kendall's correlation", *kendall)];
    tops.chain(correlations.map(|(name, value)| (name.to_owned(), digits(value, 4)))).collect()
}

impl Move {
    fn of(here: usize, there: usize, other: &str) -> Self {
        let (class, words) = match here.cmp(&there) {
            std::cmp::Ordering::Equal => ("", "same rank".to_owned()),
            std::cmp::Ordering::Less => ("up-by", format!("\u{25b2} {} ({other}: {there})", there - here)),
            std::cmp::Ordering::Greater => {
                ("down-by", format!("\u{25bc} {} ({other}: {there})", here - there))
            }
        };
        Self { class, words }
    }
}

impl Plot {
    /// From the place of each image in both.
    fn of(a: &[usize], b: &[usize]) -> Self {
        let most = a.len() as f64;
        let x = Scale::new([0.0, most.log10()], [LEFT, SIDE - 8.0]);
        let y = Scale::new([0.0, most.log10()], [8.0, SIDE - LEFT]);
        let log = |place: usize| ((place + 1) as f64).log10();
        let shown = |top: usize| {
            let images = a.iter().zip(b).filter(move |(a, b)| **a < top || **b < top);
            images.map(|(a, b)| format!("M{} {}h.01", place(x.at(log(*a))), place(y.at(log(*b)))))
        };
        let powers = [1_usize, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
        let tick = |rank: usize| {
            let at = |scale: &Scale| place(scale.at((rank as f64).log10()));
            [&x, &y].map(|scale| Tick { at: at(scale), label: rank.to_string() })
        };
        let plotted = shown(PLOTTED).count();
        Self {
            points: shown(PLOTTED).collect(),
            first: shown(FIRST).collect(),
            line: format!(
                "M{} {}L{} {}",
                place(x.at(0.0)),
                place(y.at(0.0)),
                place(SIDE - 8.0),
                place(SIDE - LEFT)
            ),
            ticks: powers.into_iter().filter(|rank| *rank <= a.len()).map(tick).collect(),
            words: format!(
                "{} that are among the first {PLOTTED} of A or B: rank in A across, in B down, both in logarithms. On the dashed \
                 line both ranks are equal. Orange: among the first {FIRST} of A or B.",
                count(plotted, "image", "images")
            ),
        }
    }
}

/// What differs between the runs.
#[derive(Debug, Clone)]
struct Differences {
    /// Keys, values in both, and the stages that they are of.
    rows: Vec<[String; 4]>,
    more: usize,
    same_results: bool,
}

impl Differences {
    fn of(diff: &Diff) -> Self {
        let mut found: BTreeMap<[String; 3], Vec<&str>> = BTreeMap::new();
        let run = [("run".to_owned(), diff.run.clone())];
        for (stage, differences) in run.iter().chain(&diff.recipes) {
            for Difference { key, a, b } in differences {
                // Digests of inputs follow from what the stages before have.
                if !key.starts_with("inputs.")
                    || diff
                        .recipes
                        .iter()
                        .all(|(_, all)| all.iter().all(|one| one.key.starts_with("inputs.")))
                {
                    let value = |value: &Option<String>| redact::text(value.as_deref().unwrap_or("absent"));
                    found.entry([key.clone(), value(a), value(b)]).or_default().push(stage);
                }
            }
        }
        let more = found.len().saturating_sub(DIFFERENCES);
        let stages = |stages: Vec<&str>| match stages.as_slice() {
            [one, two, three, rest @ ..] if !rest.is_empty() => {
                format!("{one}, {two}, {three} and {} more", rest.len())
            }
            few => few.join(", "),
        };
        let rows = found.into_iter().take(DIFFERENCES).map(|([key, a, b], of)| [key, a, b, stages(of)]);
        Self { rows: rows.collect(), more, same_results: diff.same_results() }
    }
}

#[derive(Template)]
#[template(path = "comparison.html")]
struct ComparisonBody<'a> {
    headers: [Vec<(&'static str, String)>; 2],
    names: [&'a str; 2],
    differences: Differences,
    meaning: &'static str,
    /// The names of facts.
    columns: Vec<String>,
    pairs: Vec<Pair>,
    alone: [Vec<String>; 2],
    shown: Shown,
}

impl Body for ComparisonBody<'_> {
    fn title(&self) -> String {
        "Comparison: attrflow report".to_owned()
    }

    fn cut(&mut self, rows: usize) {
        let sides = self.pairs.iter_mut().flat_map(|pair| &mut pair.sides);
        sides.for_each(|side| side.query.rows.truncate(rows));
    }

    fn used(&self, pictures: usize) -> Vec<bool> {
        used(self.pairs.iter().flat_map(|pair| &pair.sides).map(|side| &side.query), pictures)
    }

    fn shown(&mut self) -> &mut Shown {
        &mut self.shown
    }
}
