//! The training images of a ranking: what `ranking` wrote of each, else what the arrays say.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::Deserialize;

use crate::io::captions::coco::Captions;
use crate::io::json;
use crate::io::npy::Npy;
use crate::io::rankings;

/// The file top.json.
#[derive(Debug, Default, Deserialize)]
pub struct Top {
    /// What it says of all scores.
    #[serde(default)]
    pub summary: Summary,
    /// The first images of the ranking.
    #[serde(default)]
    pub rows: Vec<TopRow>,
}

impl Top {
    /// `None` for a file that is none.
    pub fn read(path: &Path) -> Option<Self> {
        json::read(path).ok()
    }
}

/// What it says of all scores.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// How much the query's own loss rose.
    pub query_rise: Option<f64>,
    /// How much it should have risen to first order.
    pub query_rise_predicted: Option<f64>,
    /// What speaks against the ranking.
    pub warnings: Vec<String>,
    /// Why there are no error bars.
    pub no_error_bars: Option<String>,
    /// How error bars were computed.
    pub error_bars: Option<Method>,
}

/// How its error bars were computed.
#[derive(Debug, Clone, Deserialize)]
pub struct Method {
    /// Its name.
    pub method: String,
    /// Timesteps of a loss.
    pub timesteps: usize,
    /// Draws of noise at each.
    pub draws: usize,
    /// The probability with which intervals hold.
    pub level: f64,
    /// The k of `p_top`.
    pub top: usize,
}

/// One of its rows.
#[derive(Debug, Clone, Deserialize)]
pub struct TopRow {
    /// Index in the data set.
    pub index: usize,
    /// Its file below the folder of images.
    #[serde(default)]
    pub file_name: String,
    /// All its captions.
    #[serde(default)]
    pub captions: Vec<String>,
    /// Whether its score is exact, where some are estimates.
    pub exact: Option<bool>,
    /// How sure its score and rank are.
    #[serde(flatten)]
    pub error: Option<ErrorBar>,
}

/// How sure a score and a rank are.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct ErrorBar {
    /// The standard error of the score.
    pub standard_error: f64,
    /// The bounds of its interval.
    pub low: f64,
    /// The upper one.
    pub high: f64,
    /// The probability that the image is among the first k.
    pub p_top: f64,
    /// The bounds of the interval of its rank.
    pub rank_low: usize,
    /// The upper one.
    pub rank_high: usize,
    /// Whether this interval overlaps that of the next image.
    pub tied: bool,
}

/// A training image in a ranking.
#[derive(Debug, Clone)]
pub struct Row {
    /// 1 for the most influential image.
    pub rank: usize,
    /// Index in the data set.
    pub index: usize,
    /// The rise of its loss.
    pub score: f32,
    /// Its file below the folder of images.
    pub file_name: Option<String>,
    /// All its captions.
    pub captions: Vec<String>,
    /// Whether its score is exact, where some are estimates.
    pub exact: Option<bool>,
    /// How sure its score and rank are.
    pub error: Option<ErrorBar>,
}

/// Scores and ranks of a query.
pub struct Arrays {
    /// By index.
    pub scores: Vec<f32>,
    /// Indices from the most influential image on.
    pub ranks: Vec<usize>,
}

impl Arrays {
    /// `None` for files that are no scores and ranks of the same images. Without a file of ranks, the scores give them.
    pub fn read(scores: &Path, ranks: Option<&Path>) -> Option<Self> {
        let scores = Npy::vector(scores).ok()?;
        let ranks = match ranks {
            Some(path) => rankings::read(path).ok()??,
            None => {
                let mut ranks: Vec<usize> = (0..scores.len()).collect();
                ranks.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
                ranks
            }
        };
        let fits = ranks.len() == scores.len() && ranks.iter().all(|index| *index < scores.len());
        fits.then_some(Self { scores, ranks })
    }
}

/// Captions files, each read once, and only if `top.json` does not say enough.
#[derive(Default)]
pub struct CaptionFiles(HashMap<PathBuf, Option<Rc<Captions>>>);

impl CaptionFiles {
    /// The captions in a file; `None` for one that cannot be read.
    pub fn get(&mut self, path: &Path) -> Option<Rc<Captions>> {
        let read = || Captions::read_all(path).ok().map(Rc::new);
        self.0.entry(path.to_path_buf()).or_insert_with(read).clone()
    }
}

/// The rows at these places of the ranking, from 0.
pub fn rows(
    arrays: &Arrays,
    places: std::ops::Range<usize>,
    top: &Top,
    captions: Option<&Path>,
    files: &mut CaptionFiles,
) -> Vec<Row> {
    let known: HashMap<usize, &TopRow> = top.rows.iter().map(|row| (row.index, row)).collect();
    let of = |place: usize| {
        let index = arrays.ranks[place];
        let mut row = Row {
            rank: place + 1,
            index,
            score: arrays.scores[index],
            file_name: None,
            captions: Vec::new(),
            exact: None,
            error: None,
        };
        if let Some(found) = known.get(&index) {
            row.file_name = Some(found.file_name.clone()).filter(|name| !name.is_empty());
            row.captions.clone_from(&found.captions);
            (row.exact, row.error) = (found.exact, found.error);
        } else if let Some(file) = captions.and_then(|path| files.get(path))
            && let Some(item) = file.items.get(index)
        {
            row.file_name = Some(item.file_name.clone());
            row.captions.clone_from(&item.captions);
        }
        row
    };
    places.map(of).collect()
}
