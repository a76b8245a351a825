//! Graphs as SVG, in layers from top to bottom: each box is one layer below the lowest box that it reads.

use super::{Drawing, State, TOUCHED};
use crate::io::xml::escaped;

const HEIGHT: f64 = 44.0;
const BETWEEN: f64 = 56.0;
const GAP: f64 = 22.0;
const MARGIN: f64 = 24.0;
/// The advance of a character of the 12 pixel monospaced font.
const ADVANCE: f64 = 7.25;
/// With more bends than this, long arrows are straight.
const MAX_BENDS: usize = 20_000;
const SWEEPS: usize = 12;

/// A box, or a bend of an arrow that crosses a layer.
struct Spot {
    layer: usize,
    width: f64,
    /// The middle.
    x: f64,
    up: Vec<usize>,
    down: Vec<usize>,
}

/// The graph as SVG.
pub fn svg(drawing: &Drawing) -> String {
    let (mut spots, paths) = spots(drawing);
    let depth = spots.iter().map(|spot| spot.layer + 1).max().unwrap_or(0);
    let mut layers: Vec<Vec<usize>> = vec![Vec::new(); depth];
    for (index, spot) in spots.iter().enumerate() {
        layers[spot.layer].push(index);
    }
    arrange(&mut spots, &mut layers);
    let left = spots.iter().map(|spot| spot.x - spot.width / 2.0).fold(f64::INFINITY, f64::min);
    let left = if left.is_finite() { left } else { 0.0 };
    spots.iter_mut().for_each(|spot| spot.x += MARGIN - left);
    let right = spots.iter().map(|spot| spot.x + spot.width / 2.0).fold(0.0, f64::max);
    let bottom = MARGIN + depth as f64 * (HEIGHT + BETWEEN);
    let (legend, legend_width) = legend(drawing, bottom);
    let (width, height) = ((right + MARGIN).max(legend_width), bottom + 40.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"12\">\n<title>{}</title>\n<defs><marker id=\"arrow\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\" fill=\"#666666\"/></marker></defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        escaped(&drawing.name)
    );
    out += "<g fill=\"none\" stroke=\"#666666\" stroke-width=\"1.2\" marker-end=\"url(#arrow)\">\n";
    for path in &paths {
        out += &format!("<path d=\"{}\" marker-end=\"url(#arrow)\"/>\n", curve(path, &spots));
    }
    out += "</g>\n";
    for (node, spot) in drawing.nodes.iter().zip(&spots) {
        let state = node.words();
        let touch = node.touch().map(|touch| format!(", {touch}")).unwrap_or_default();
        let (x, y) = (spot.x - spot.width / 2.0, top(spot.layer));
        let (fill, border) = node.state().colors();
        let (border, stroke) = if node.touched > 0 { (TOUCHED, 3.0) } else { (border, 1.2) };
        out += &format!(
            "<g><title>{0} ({1}): {state}{touch}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{2:.1}\" height=\"{HEIGHT}\" rx=\"7\" fill=\"{fill}\" stroke=\"{border}\" stroke-width=\"{stroke}\"/><text x=\"{3:.1}\" y=\"{4:.1}\" text-anchor=\"middle\" font-weight=\"bold\">{0}</text><text x=\"{3:.1}\" y=\"{5:.1}\" text-anchor=\"middle\" fill=\"#444444\">{6}</text></g>\n",
            escaped(&node.title()),
            escaped(&node.kind),
            spot.width,
            spot.x,
            y + 18.0,
            y + 35.0,
            escaped(&second(node)),
        );
    }
    out + &legend + "</svg>\n"
}

/// The second line in a box.
fn second(node: &super::GraphNode) -> String {
    format!("{}: {}", node.kind, node.words())
}

fn top(layer: usize) -> f64 {
    MARGIN + layer as f64 * (HEIGHT + BETWEEN)
}

/// The boxes, then the bends of arrows; and each arrow as a list of spots.
fn spots(drawing: &Drawing) -> (Vec<Spot>, Vec<Vec<usize>>) {
    let mut spots: Vec<Spot> = Vec::new();
    for node in &drawing.nodes {
        let letters = node.title().chars().count().max(second(node).chars().count());
        let width = letters as f64 * ADVANCE + 24.0;
        spots.push(Spot { layer: 0, width, x: 0.0, up: Vec::new(), down: Vec::new() });
    }
    // Boxes come after the boxes that they read; an arrow backwards closes a cycle and moves nothing.
    let sources = drawing.sources();
    for to in 0..spots.len() {
        let lowest = sources[to].iter().filter(|from| **from < to).map(|from| spots[*from].layer + 1).max();
        spots[to].layer = lowest.unwrap_or(0);
    }
    let span = |from: usize, to: usize, spots: &[Spot]| spots[to].layer.saturating_sub(spots[from].layer + 1);
    let bends: usize = drawing.edges.iter().map(|(from, to)| span(*from, *to, &spots)).sum();
    let mut paths = Vec::new();
    for &(from, to) in &drawing.edges {
        let mut path = vec![from];
        if bends <= MAX_BENDS {
            for layer in spots[from].layer + 1..spots[to].layer {
                spots.push(Spot { layer, width: 8.0, x: 0.0, up: Vec::new(), down: Vec::new() });
                path.push(spots.len() - 1);
            }
        }
        path.push(to);
        for pair in path.windows(2) {
            if spots[pair[1]].layer == spots[pair[0]].layer + 1 {
                spots[pair[0]].down.push(pair[1]);
                spots[pair[1]].up.push(pair[0]);
            }
        }
        paths.push(path);
    }
    (spots, paths)
}

/// Orders each layer by the mean position of the connected spots, then moves its spots towards it.
fn arrange(spots: &mut [Spot], layers: &mut [Vec<usize>]) {
    for layer in layers.iter() {
        pack(spots, layer);
    }
    for sweep in 0..SWEEPS {
        let downwards = sweep % 2 == 0;
        let numbers: Vec<usize> = match downwards {
            true => (0..layers.len()).collect(),
            false => (0..layers.len()).rev().collect(),
        };
        // The last sweeps only move spots: an order that oscillates would never settle.
        let order = sweep + 4 < SWEEPS;
        for number in numbers {
            let layer = &mut layers[number];
            let wish = |spot: &Spot| {
                let beside = if downwards { &spot.up } else { &spot.down };
                let sum: f64 = beside.iter().map(|other| spots[*other].x).sum();
                if beside.is_empty() { spot.x } else { sum / beside.len() as f64 }
            };
            let mut wishes: Vec<(f64, usize)> =
                layer.iter().map(|index| (wish(&spots[*index]), *index)).collect();
            if order {
                wishes.sort_by(|a, b| a.0.total_cmp(&b.0));
                *layer = wishes.iter().map(|(_, index)| *index).collect();
            }
            let mut edge = f64::NEG_INFINITY;
            let mut moved = 0.0;
            for (wish, index) in &wishes {
                let spot = &mut spots[*index];
                spot.x = wish.max(edge + GAP + spot.width / 2.0);
                edge = spot.x + spot.width / 2.0;
                moved += spot.x - wish;
            }
            // Spots were pushed to the right only: moving all back by the mean centres them.
            let back = moved / wishes.len().max(1) as f64;
            wishes.iter().for_each(|(_, index)| spots[*index].x -= back);
        }
    }
}

/// Places a layer's spots side by side around 0.
fn pack(spots: &mut [Spot], layer: &[usize]) {
    let total: f64 = layer.iter().map(|index| spots[*index].width + GAP).sum();
    let mut x = -total / 2.0;
    for index in layer {
        let spot = &mut spots[*index];
        spot.x = x + spot.width / 2.0;
        x += spot.width + GAP;
    }
}

/// A smooth line through the spots of an arrow.
fn curve(path: &[usize], spots: &[Spot]) -> String {
    let mut out = String::new();
    for (number, pair) in path.windows(2).enumerate() {
        let (from, to) = (&spots[pair[0]], &spots[pair[1]]);
        let bottom = |spot: &Spot| top(spot.layer) + HEIGHT;
        if number == 0 {
            out += &format!("M{:.1} {:.1}", from.x, bottom(from));
        } else {
            out += &format!(" L{:.1} {:.1}", from.x, bottom(from));
        }
        let (start, end) = (bottom(from), top(to.layer) - 1.0);
        let half = (end - start).abs().max(BETWEEN) / 2.0;
        out += &format!(
            " C{:.1} {:.1} {:.1} {:.1} {:.1} {end:.1}",
            from.x,
            start + half,
            to.x,
            end - half,
            to.x
        );
    }
    out
}

/// The legend below the graph, and its right edge.
fn legend(drawing: &Drawing, y: f64) -> (String, f64) {
    let mut out = String::new();
    let mut x = MARGIN;
    let mut entry = |label: &str, fill: &str, border: &str, stroke: f64| {
        out += &format!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"14\" height=\"14\" rx=\"3\" fill=\"{fill}\" stroke=\"{border}\" stroke-width=\"{stroke}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
            y - 2.0,
            x + 20.0,
            y + 9.0,
            escaped(label)
        );
        x += 20.0 + label.chars().count() as f64 * ADVANCE + 18.0;
    };
    for state in State::ALL {
        let (fill, border) = state.colors();
        entry(state.meaning(), fill, border, 1.2);
    }
    if drawing.change {
        entry("touched by the change", "#ffffff", TOUCHED, 3.0);
    }
    (out, x)
}
