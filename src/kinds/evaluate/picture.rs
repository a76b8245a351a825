//! The tests as a picture that explains itself.

use std::collections::BTreeMap;
use std::path::Path;

use attrflow_statistics::paired::Verdict;
use serde_json::Value as Json;

use super::removal::{Effects, Point};
use super::{Finding, percent};
use crate::io::image::chart::{Anchor, Chart, Color, Font};

const WIDTH: i32 = 900;
const MARGIN: i32 = 28;
/// The plot of effects: its left end, width and height.
const LEFT: i32 = 110;
const PLOT: [i32; 2] = [WIDTH - LEFT - MARGIN, 300];
const DARK: Color = [24; 3];
const SOFT: Color = [104; 3];
const GRID: Color = [226; 3];
const RANDOM: Color = [140; 3];
/// Colors of methods that stay apart for the color-blind (Okabe and Ito).
const METHODS: [Color; 6] =
    [[0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [230, 159, 0]];

fn color(verdict: Verdict) -> Color {
    match verdict {
        Verdict::Holds => [0, 110, 80],
        Verdict::DoesNotHold => [176, 32, 32],
        Verdict::Undecided => [120, 90, 0],
    }
}

/// Draws the effects, where there are any, and a line for each test, as SVG and PNG.
pub(super) fn draw(
    effects: &Effects,
    tests: &BTreeMap<String, Finding>,
    level: f64,
    [svg, png]: [&Path; 2],
) -> anyhow::Result<()> {
    let points = effects.points(level);
    let plot = if points.is_empty() { 0 } else { PLOT[1] + 150 };
    let line = Font::Plain.size()[1];
    let several = |test: &str| tests.values().filter(|other| other.test == test).count() > 1;
    // Methods of one test share its heading and rule.
    let mut groups: Vec<Vec<&Finding>> = Vec::new();
    for finding in tests.values() {
        match groups.iter_mut().find(|group| group[0].test == finding.test) {
            Some(group) => group.push(finding),
            None => groups.push(vec![finding]),
        }
    }
    let lines: usize = groups.iter().map(|group| 3 + group.len()).sum();
    let height = MARGIN * 2 + 40 + plot + lines as i32 * line + groups.len() as i32 * 8;
    let mut chart = Chart::new([WIDTH as u32, height as u32], "Is the attribution true?");
    chart.text([MARGIN, MARGIN], "Is the attribution true?", Font::Title, Anchor::Start, DARK);
    let mut y = MARGIN + 40;
    if !points.is_empty() {
        plot_effects(&mut chart, &points, level, y);
        y += plot;
    }
    for group in groups {
        chart.text([MARGIN, y], &group[0].test, Font::Bold, Anchor::Start, DARK);
        let rule = format!("holds if {}", group[0].rule);
        for (place, text) in broken(&rule).iter().enumerate() {
            chart.text([MARGIN, y + (1 + place as i32) * line], text, Font::Plain, Anchor::Start, SOFT);
        }
        y += 3 * line;
        for finding in group {
            let method = if several(&finding.test) { format!("{}: ", finding.method) } else { String::new() };
            let estimate = format!("{method}{}", estimate(finding, level));
            chart.text([MARGIN, y], &estimate, Font::Plain, Anchor::Start, DARK);
            let verdict = finding.verdict;
            chart.text([WIDTH - MARGIN, y], verdict.words(), Font::Bold, Anchor::End, color(verdict));
            y += line;
        }
        y += 8;
    }
    fs_err::write(svg, chart.svg())?;
    Ok(chart.save_png(png)?)
}

/// The estimate in one line.
fn estimate(finding: &Finding, level: f64) -> String {
    let queries = finding.details.get("queries").or_else(|| finding.details.get("exemplars"));
    let count = queries.map(|count| {
        format!(
            ", from {count} {}",
            if finding.details.get("exemplars").is_some() { "exemplars" } else { "queries" }
        )
    });
    let count = count.unwrap_or_default();
    let bound = |what: &str, value: Option<f64>| value.map(|value| format!("; {what} {}", number(value)));
    let chance = bound("by chance", finding.chance).unwrap_or_default();
    let ceiling = bound("at most", finding.details.get("ceiling").and_then(Json::as_f64)).unwrap_or_default();
    match (finding.estimate, finding.details.get("found")) {
        (Some(found), _) => format!(
            "{} ({} interval {} to {}){chance}{ceiling}{count}",
            number(found.mean),
            percent(level),
            number(found.low),
            number(found.high)
        ),
        (None, Some(found)) => match found.as_f64() {
            Some(share) => format!("share {}{count}", number(share)),
            None => format!("share {found}{count}"),
        },
        (None, None) => format!("too little data for an interval{count}"),
    }
}

/// A number of three digits; a small one with its power of ten.
fn number(value: f64) -> String {
    match value.abs() {
        size if size == 0.0 || size >= 0.01 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

/// The lines of a text that fit the width, two at most.
fn broken(text: &str) -> Vec<String> {
    let room = ((WIDTH - 2 * MARGIN) / Font::Plain.size()[0]) as usize;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let length = lines[last].chars().count() + 1 + word.chars().count();
        if length > room && lines.len() < 2 {
            lines.push(word.to_owned());
        } else {
            let space = if lines[last].is_empty() { "" } else { " " };
            lines[last] += &format!("{space}{word}");
        }
    }
    lines
}

/// Effect against K: a mark with its interval for each method, small points for its queries, random sets in grey.
fn plot_effects(chart: &mut Chart, points: &[Point], level: f64, top: i32) {
    let bounds = points.iter().flat_map(|point| {
        let ends = point.interval.map(|interval| [interval.low, interval.high]);
        point.values.iter().copied().chain(ends.into_iter().flatten()).chain([0.0])
    });
    let (low, high) = bounds.fold((0.0_f64, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let span = if high > low { high - low } else { 1.0 };
    let (low, span) = (low - 0.05 * span, 1.1 * span);
    let place = |value: f64| top + 44 + PLOT[1] - ((value - low) / span * f64::from(PLOT[1])).round() as i32;
    chart.text(
        [MARGIN, top],
        "Rise of the query's loss when images are left out of the training",
        Font::Bold,
        Anchor::Start,
        DARK,
    );
    let explained = format!(
        "Against a control with the same seed. Bars: {} interval of the mean; small points: queries, or random sets.",
        percent(level)
    );
    chart.text([MARGIN, top + 18], &explained, Font::Plain, Anchor::Start, SOFT);
    for tick in ticks(low, low + span) {
        let y = place(tick);
        chart.line([LEFT, y], [LEFT + PLOT[0], y], 1, if tick == 0.0 { SOFT } else { GRID });
        chart.text([LEFT - 8, y - 7], &number(tick), Font::Plain, Anchor::End, SOFT);
    }
    let mut sizes: Vec<usize> = points.iter().map(|point| point.k).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut methods: Vec<&str> = Vec::new();
    for point in points {
        if !methods.contains(&point.method.as_str()) {
            methods.push(&point.method);
        }
    }
    let paint = |method: &str| match methods.iter().position(|other| *other == method) {
        _ if method == "random" => RANDOM,
        place => METHODS[place.unwrap_or_default() % METHODS.len()],
    };
    let (column, bottom) = (PLOT[0] / sizes.len() as i32, top + 44 + PLOT[1]);
    for (at, k) in sizes.iter().enumerate() {
        let middle = LEFT + column * at as i32 + column / 2;
        chart.text([middle, bottom + 8], &format!("K = {k}"), Font::Plain, Anchor::Middle, DARK);
        let here: Vec<&Point> = points.iter().filter(|point| point.k == *k).collect();
        let apart = (column / (here.len() as i32 + 1)).min(120);
        for (place_in, point) in here.iter().enumerate() {
            let x = middle + apart * place_in as i32 - apart * (here.len() as i32 - 1) / 2;
            let color = paint(&point.method);
            for value in &point.values {
                chart.dot([x + 14, place(*value)], 2, color);
            }
            if let Some(interval) = point.interval {
                let [from, to] = [interval.low, interval.high].map(place);
                chart.line([x, from], [x, to], 3, color);
                [from, to].iter().for_each(|y| chart.line([x - 5, *y], [x + 5, *y], 2, color));
            }
            chart.dot([x, place(point.mean)], 5, color);
        }
    }
    let several = methods.iter().filter(|method| **method != "random").count() > 1;
    let [mut x, mut y] = [LEFT, bottom + 37];
    for method in &methods {
        let label = match *method {
            "random" => "random images".to_owned(),
            method if several => format!("highest by {method}"),
            method => format!("highest-scored images: {method}"),
        };
        let length = 18 + (label.chars().count() as i32 + 3) * Font::Plain.size()[0];
        if x > LEFT && x + length > WIDTH - MARGIN {
            [x, y] = [LEFT, y + Font::Plain.size()[1] + 4];
        }
        chart.dot([x + 6, y + 7], 5, paint(method));
        chart.text([x + 18, y], &label, Font::Plain, Anchor::Start, DARK);
        x += length;
    }
}

/// Round numbers between two bounds, about five.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let unit = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * unit)
        .find(|step| *step >= rough)
        .unwrap_or(unit);
    let first = (low / step).ceil() as i64;
    (first..).map(|place| place as f64 * step).take_while(|tick| *tick <= high).collect()
}
