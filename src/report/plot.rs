//! Places on a chart: scales, ticks and paths. Charts have no colours: these are the page's.

use std::fmt::Write as _;

/// Maps a range of values to one of places.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    pub fn new([low, high]: [f64; 2], [from, to]: [f64; 2]) -> Self {
        // A range without width has its value in the middle.
        let half = if high > low { 0.0 } else { (low.abs() / 2.0).max(1e-12) };
        Self { low: low - half, high: high + half, from, to }
    }

    pub fn at(&self, value: f64) -> f64 {
        let share = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        self.from + share * (self.to - self.from)
    }
}

/// A tick of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    /// Its place, as SVG has it.
    pub at: String,
    pub label: String,
}

/// Round values within a range, about `count` of them.
pub(super) fn nice(low: f64, high: f64, count: usize) -> Vec<f64> {
    let span = high - low;
    if !(span.is_finite() && span > 0.0) {
        return vec![low];
    }
    let rough = span / count as f64;
    let power = 10.0_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    let step = steps.into_iter().find(|step| *step >= rough * 0.999).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|number| number as f64 * step).collect()
}

/// Ticks at round values, with as many digits as they need.
pub(super) fn ticks(scale: &Scale, low: f64, high: f64, count: usize) -> Vec<Tick> {
    let values = nice(low, high, count);
    let step = if values.len() > 1 { values[1] - values[0] } else { high.abs().max(1e-12) };
    let exponent = step.log10().floor();
    let label = |value: f64| match exponent {
        _ if value.abs() < step / 2.0 => "0".to_owned(),
        -5.0..=5.0 => format!("{value:.*}", (-exponent).max(0.0) as usize),
        _ => format!("{value:.1e}"),
    };
    values.into_iter().map(|value| Tick { at: place(scale.at(value)), label: label(value) }).collect()
}

/// A place with one digit, without a useless zero.
pub(super) fn place(value: f64) -> String {
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

/// A line through points.
pub(super) fn line(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (x, y) in points {
        let letter = if path.is_empty() { 'M' } else { ' ' };
        let _ = write!(path, "{letter}{} {}", place(x), place(y));
    }
    path
}

/// An interval with its estimate, on a scale of its own 100 wide.
#[derive(Debug, Clone)]
pub(super) struct Strip {
    /// The interval; empty where there is none.
    pub bar: String,
    /// The estimate, as a line without length.
    pub dot: String,
    /// The place of zero, or of chance.
    pub zero: String,
}

impl Strip {
    /// `range` is that of all strips that are compared.
    pub fn new(value: f64, interval: Option<[f64; 2]>, zero: f64, range: [f64; 2]) -> Self {
        let scale = Scale::new(range, [3.0, 97.0]);
        let at = |value: f64| place(scale.at(value));
        let bar = interval.map_or_else(String::new, |[low, high]| {
            let (low, high) = (at(low), at(high));
            format!("M{low} 5H{high}M{low} 2V8M{high} 2V8")
        });
        Self { bar, dot: format!("M{} 5h.01", at(value)), zero: format!("M{} 0V10", at(zero)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let labels = |low, high| {
            let ticks = ticks(&Scale::new([low, high], [0.0, 100.0]), low, high, 5);
            ticks.into_iter().map(|tick| tick.label).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(labels(-0.013, 0.104), "0 0.05 0.10");
        assert_eq!(labels(0.0, 1.0), "0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(-3e-9, 9e-9), "0 5.0e-9");
        assert_eq!(labels(2.0, 2.0), "2");
    }

    #[test]
    fn a_strip_has_its_places() {
        let strip = Strip::new(0.5, Some([0.25, 0.75]), 0.0, [0.0, 1.0]);
        assert_eq!((strip.dot.as_str(), strip.zero.as_str()), ("M50 5h.01", "M3 0V10"));
        assert_eq!(strip.bar, "M26.5 5H73.5M26.5 2V8M73.5 2V8");
        assert!(Strip::new(1.0, None, 0.0, [1.0, 1.0]).bar.is_empty(), "and no division by zero");
    }
}
