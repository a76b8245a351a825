//! The distribution of all scores of a query: a histogram, quantiles, and the share of negative ones.

use crate::io::words::score;
use std::fmt::Write as _;

use super::plot::{Scale, Tick, place, ticks};
use super::words::percent;
use attrflow_statistics::interval::quantile;

const BINS: usize = 64;
/// Bins of the histogram in a row of its table.
const TOGETHER: usize = 4;
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 140.0;
const QUANTILES: [(f64, &str); 9] = [
    (0.0, "least"),
    (0.01, "1 %"),
    (0.05, "5 %"),
    (0.25, "25 %"),
    (0.5, "median"),
    (0.75, "75 %"),
    (0.95, "95 %"),
    (0.99, "99 %"),
    (1.0, "largest"),
];

/// All scores of a query, in numbers that do not grow with theirs.
#[derive(Debug, Clone)]
pub(super) struct Distribution {
    pub count: usize,
    /// Names and values of quantiles.
    pub quantiles: Vec<(&'static str, f64)>,
    /// The share of scores below zero.
    pub negative: f64,
    low: f64,
    high: f64,
    bins: [usize; BINS],
}

impl Distribution {
    /// `None` without a finite score.
    pub fn of(scores: &[f32]) -> Option<Self> {
        let mut sorted: Vec<f64> =
            scores.iter().copied().filter(|score| score.is_finite()).map(f64::from).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (&low, &high) = (sorted.first()?, sorted.last()?);
        let mut bins = [0; BINS];
        let step = if high > low { (high - low) / BINS as f64 } else { 1.0 };
        for &score in &sorted {
            bins[(((score - low) / step) as usize).min(BINS - 1)] += 1;
        }
        let negative = sorted.partition_point(|score| *score < 0.0) as f64 / sorted.len() as f64;
        let quantiles = QUANTILES.map(|(share, name)| (name, quantile(&sorted, share)));
        Some(Self { count: sorted.len(), quantiles: quantiles.into(), negative, low, high, bins })
    }

    pub fn median(&self) -> f64 {
        self.quantiles[4].1
    }

    pub fn largest(&self) -> f64 {
        self.high
    }

    /// The histogram, with a mark for each of the scores `shown`.
    pub fn chart(&self, shown: &[f32], with_table: bool) -> Histogram {
        let x = Scale::new([self.low, self.high], [LEFT, WIDTH - 8.0]);
        let most = self.bins.iter().copied().max().unwrap_or(1);
        let y = Scale::new([0.0, (most as f64).ln_1p()], [BOTTOM, 10.0]);
        let step = (WIDTH - 8.0 - LEFT) / BINS as f64;
        let mut bars = String::new();
        for (number, count) in self.bins.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (left, top) = (LEFT + number as f64 * step, y.at((*count as f64).ln_1p()));
            let _ = write!(bars, "M{} {BOTTOM}V{}h{}V{BOTTOM}z", place(left), place(top), place(step - 0.8));
        }
        let mut rug: Vec<String> = shown
            .iter()
            .map(|score| format!("M{} {}v9", place(x.at((*score).into())), BOTTOM + 2.0))
            .collect();
        rug.dedup();
        let counts = [0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000];
        let counts = counts.into_iter().filter(|count| *count <= most);
        let crosses_zero = self.low < 0.0 && self.high > 0.0;
        Histogram {
            bars,
            rug: rug.concat(),
            zero: (crosses_zero || self.low == 0.0).then(|| place(x.at(0.0))),
            median: place(x.at(self.median())),
            across: ticks(&x, self.low, self.high, 7),
            up: counts
                .map(|count| Tick { at: place(y.at((count as f64).ln_1p())), label: count.to_string() })
                .collect(),
            width: place(WIDTH),
            height: place(HEIGHT + 14.0),
            left: place(LEFT),
            right: place(WIDTH - 8.0),
            bottom: place(BOTTOM),
            labels: place(BOTTOM + 25.0),
            words: format!(
                "{} scores from {} to {}, median {}; {} are below zero. The height of a bar is the logarithm of the count.",
                self.count,
                score(self.low),
                score(self.high),
                score(self.median()),
                percent(self.negative)
            ),
            table: if with_table { self.table() } else { Vec::new() },
        }
    }

    /// Ranges of scores and how many are in each.
    fn table(&self) -> Vec<[String; 3]> {
        let edge = |bin: usize| self.low + (self.high - self.low) * bin as f64 / BINS as f64;
        let rows = self.bins.chunks(TOGETHER).enumerate().map(|(row, bins)| {
            let (from, to) = (edge(row * TOGETHER), edge((row + 1) * TOGETHER));
            [score(from), score(to), bins.iter().sum::<usize>().to_string()]
        });
        rows.collect()
    }
}

/// A histogram as SVG has it.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    pub bars: String,
    pub rug: String,
    pub zero: Option<String>,
    pub median: String,
    pub across: Vec<Tick>,
    pub up: Vec<Tick>,
    pub width: String,
    pub height: String,
    pub left: String,
    pub right: String,
    pub bottom: String,
    pub labels: String,
    pub words: String,
    pub table: Vec<[String; 3]>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_bins_are_those_of_all_scores() {
        let scores: Vec<f32> = (0..=100).rev().map(|score| score as f32 - 10.0).collect();
        let found = Distribution::of(&scores).unwrap();
        let quantiles: Vec<f64> = found.quantiles.iter().map(|(_, value)| *value).collect();
        assert_eq!(quantiles, [-10.0, -9.0, -5.0, 15.0, 40.0, 65.0, 85.0, 89.0, 90.0]);
        assert_eq!((found.bins.iter().sum::<usize>(), found.count), (101, 101));
        assert!((found.negative - 10.0 / 101.0).abs() < 1e-12);
        let table = found.chart(&[90.0], true).table;
        assert_eq!(table.iter().map(|row| row[2].parse::<usize>().unwrap()).sum::<usize>(), 101);
    }

    #[test]
    fn equal_scores_and_none_are_no_fault() {
        assert!(Distribution::of(&[f32::NAN]).is_none() && Distribution::of(&[]).is_none());
        let one = Distribution::of(&[0.5; 3]).unwrap();
        assert_eq!((one.bins[0], one.median()), (3, 0.5));
        assert!(!one.chart(&[0.5], true).bars.contains("NaN"));
    }
}
