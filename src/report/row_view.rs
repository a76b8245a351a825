//! A training image of a ranking as the page has it.

use std::path::Path;

use super::pictures::{Pictures, Use};
use super::plot::Strip;
use super::sides::{Curves, SideFiles};
use super::words::{ALT, percent};
use crate::io::names;
use crate::io::words::{cut, digits, score};
use crate::results::{Method, Row};

/// A row, with its numbers as texts.
#[derive(Debug, Clone)]
pub(super) struct RowView {
    pub id: String,
    pub rank: usize,
    pub index: usize,
    /// The score as the array has it.
    pub value: f32,
    pub score: String,
    /// The standard error.
    pub error: Option<String>,
    /// The lower bound of the interval, for sorting.
    pub low: Option<String>,
    /// `exact` or `estimate`, where a ranking has both.
    pub mark: Option<&'static str>,
    pub tied: bool,
    pub strip: Strip,
    /// The number of its picture.
    pub picture: Option<usize>,
    /// What stands where there is no picture.
    pub label: String,
    pub alt: String,
    pub caption: Option<String>,
    pub more_captions: Vec<String>,
    /// What else is known of it, line by line.
    pub lines: String,
    pub curves: Option<Curves>,
}

/// What the rows of a query share.
pub(super) struct Scene<'a> {
    pub id: &'a str,
    pub images: Option<&'a Path>,
    pub sides: &'a SideFiles,
    /// How many images are ranked.
    pub count: usize,
    pub redact: bool,
    pub method: Option<&'a Method>,
}

impl Scene<'_> {
    pub fn rows(&self, rows: &[Row], letter: &str, pictures: &mut Pictures) -> Vec<RowView> {
        let bounds = rows.iter().flat_map(|row| {
            let score = f64::from(row.score);
            row.error.map_or([score; 2], |error| [error.low, error.high])
        });
        let range = bounds.fold([0.0_f64; 2], |[low, high], bound| [low.min(bound), high.max(bound)]);
        rows.iter().map(|row| self.row(row, letter, range, pictures)).collect()
    }

    fn row(&self, row: &Row, letter: &str, range: [f64; 2], pictures: &mut Pictures) -> RowView {
        let value = f64::from(row.score);
        let file = row.file_name.as_deref().and_then(|name| names::inside(name).ok());
        let picture = self.images.zip(file.as_deref()).map(|(images, file)| images.join(file));
        let name = file.filter(|_| !self.redact);
        let label = name.clone().unwrap_or_else(|| format!("image {}", row.index));
        let mut captions = row.captions.clone();
        let caption = (!captions.is_empty()).then(|| captions.remove(0));
        let said = caption.as_deref().filter(|caption| !caption.is_empty()).unwrap_or(&label);
        let sides = self.sides.of(row.index, self.count);
        let mut lines = vec![match &name {
            Some(name) => format!("{name}, index {}", row.index),
            None => format!("index {}", row.index),
        }];
        if let Some((error, method)) = row.error.zip(self.method) {
            let ranks = match error.rank_low == error.rank_high {
                true => format!("rank {}", error.rank_low),
                false => format!("ranks {} to {}", error.rank_low, error.rank_high),
            };
            lines.push(format!(
                "{} interval: {} to {}; {ranks}; among the first {} with probability {}",
                percent(method.level),
                score(error.low),
                score(error.high),
                method.top,
                digits(error.p_top, 2)
            ));
        }
        lines.extend(sides.scores.map(|[own, mirrored]| {
            format!("The image alone {}, its mirror image {}", score(own), score(mirrored))
        }));
        lines.extend(sides.curves.as_ref().map(|curves| curves.words.clone()));
        RowView {
            id: format!("{}-{letter}{}", self.id, row.rank),
            rank: row.rank,
            index: row.index,
            value: row.score,
            score: score(value),
            error: row.error.map(|error| digits(error.standard_error, 2)),
            low: row.error.map(|error| score(error.low)),
            mark: row.exact.map(|exact| if exact { "exact" } else { "estimate" }),
            tied: row.error.is_some_and(|error| error.tied),
            strip: Strip::new(value, row.error.map(|error| [error.low, error.high]), 0.0, range),
            picture: picture.map(|path| pictures.add(&path, Use::Thumbnail)),
            alt: format!("rank {}: {}, score {}", row.rank, cut(said, ALT), score(value)),
            label,
            caption,
            more_captions: captions,
            lines: lines.join("\n"),
            curves: sides.curves,
        }
    }
}
