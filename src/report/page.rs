//! The page of a run.

use std::io::{Seek, Write};

use super::archive::{self, FullSize};
use super::budget::fit;
use super::evaluation::{Evaluation, evaluations};
use super::graph::Graph;
use super::options::{Options, ReportError};
use super::pictures::Sizes;
use super::provenance::Provenance;
use super::query::{Query, Shared, queries, used};
use super::shell::{Body, Shown};
use super::stages::{StageRow, ended, stages};
use super::timeline::Timeline;
use super::words::seconds;
use super::{embed, header};
use crate::results::Files;
use crate::results::Run;
use askama::Template;
use attrflow_engine::provenance::manifest::Manifest;

/// With more queries than this, histograms have no tables and query pictures are smaller.
const FEW: usize = 24;

/// The page of a run: one HTML file that needs no other.
#[derive(Debug)]
pub struct Page {
    html: String,
    /// What it links to.
    pictures: Vec<FullSize>,
    redacted: bool,
}

impl Page {
    /// Reads what a run left and makes its page. Results that are gone are shown as gone.
    ///
    /// # Errors
    /// The page cannot be written. A missing or damaged file is none.
    pub fn read(manifest: &Manifest, files: &dyn Files, options: &Options) -> Result<Self, ReportError> {
        let run = Run::new(manifest, files);
        let mut shared = Shared::default();
        let queries = queries(&run, options, &mut shared);
        let few = queries.len() <= FEW;
        let sizes =
            Sizes { query: options.thumbnail * if few { 4 } else { 2 }, thumbnail: options.thumbnail };
        let stages = stages(&run);
        let names: Vec<&str> = stages.iter().map(|row| row.name.as_str()).collect();
        let provenance = Provenance::of(&run, options.redact)?;
        let mut body = PageBody {
            header: header::facts(&run),
            meaning: crate::results::SCORE_MEANING,
            evaluations: evaluations(&run),
            graph: Graph::of(&stages),
            timeline: Timeline::of(&files.tasks(), &names, options.redact),
            embedded: embed::element(&provenance.json),
            redact: options.redact,
            ended: ended(&run),
            duration: seconds(manifest.seconds),
            name: &manifest.pipeline,
            full_sizes: full_sizes(&shared, options),
            shown: Shown::default(),
            few,
            queries,
            stages,
            provenance,
        };
        let sprite = shared.pictures.load(sizes);
        let html = fit(&mut body, &sprite, sizes, options.top.max(options.bottom), options.max_size)?;
        let is_shown = |(number, _): &(usize, &FullSize)| body.full_size(&Some(*number)).is_some();
        let shown = body.full_sizes.iter().enumerate().filter(is_shown);
        let pictures = shown.map(|(_, picture)| picture.clone()).collect();
        Ok(Self { html, pictures, redacted: options.redact })
    }

    /// The page.
    pub fn html(&self) -> &str {
        &self.html
    }

    /// Writes the page as `report.html` and its pictures in full size to a zip archive: the same bytes for the same files.
    /// [`Options::full_size`] makes the page link to them.
    ///
    /// # Errors
    /// A picture that cannot be read any more, or a write that failed.
    pub fn write_zip(&self, out: impl Write + Seek) -> Result<(), ReportError> {
        archive::write(&self.html, &self.pictures, self.redacted, out)
    }
}

/// The pictures beside the page, by number; none without an archive.
fn full_sizes(shared: &Shared, options: &Options) -> Vec<FullSize> {
    let paths = shared.pictures.paths().enumerate().filter(|_| options.full_size);
    paths.map(|(number, path)| FullSize::new(number, path, options.redact)).collect()
}

/// What is between header and footer.
#[derive(Template)]
#[template(path = "page.html")]
struct PageBody<'a> {
    name: &'a str,
    header: Vec<(&'static str, String)>,
    meaning: &'static str,
    ended: &'static str,
    duration: String,
    queries: Vec<Query>,
    evaluations: Vec<Evaluation>,
    stages: Vec<StageRow>,
    timeline: Option<Timeline>,
    graph: Option<Graph>,
    provenance: Provenance,
    embedded: String,
    redact: bool,
    shown: Shown,
    few: bool,
    full_sizes: Vec<FullSize>,
}

impl PageBody<'_> {
    /// Whether a fact of a query is on its card.
    fn on_card(&self, name: &str) -> bool {
        ["seed", "largest score", "median score", "exact scores", "certified recall"].contains(&name)
    }

    /// Where a picture that is shown is in full size.
    fn full_size(&self, picture: &Option<usize>) -> Option<&str> {
        self.shown.symbol(picture)?;
        Some(&self.full_sizes.get((*picture)?)?.name)
    }

    fn has_memory(&self) -> bool {
        self.stages.iter().any(|row| row.memory.is_some())
    }
}

impl Body for PageBody<'_> {
    fn title(&self) -> String {
        format!("{}: attrflow report", self.name)
    }

    fn cut(&mut self, rows: usize) {
        for query in &mut self.queries {
            query.rows.truncate(rows);
            query.bottom.truncate(rows);
            let shown: Vec<f32> = query.rows.iter().map(|row| row.value).collect();
            query.histogram = query.distribution.as_ref().map(|all| all.chart(&shown, self.few));
        }
    }

    fn used(&self, pictures: usize) -> Vec<bool> {
        used(&self.queries, pictures)
    }

    fn shown(&mut self) -> &mut Shown {
        &mut self.shown
    }
}
