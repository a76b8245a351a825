//! Graphs as SVG, in layers from top to bottom: each box is one layer below the lowest box that it reads.

use super::layered::{Layered, Spot};
use super::{Drawing, GraphNode, State, TOUCHED};
use crate::io::xml::escaped;

const HEIGHT: f64 = 44.0;
const BETWEEN: f64 = 56.0;
const GAP: f64 = 22.0;
const MARGIN: f64 = 24.0;
/// The advance of a character of the 12 pixel monospaced font.
const ADVANCE: f64 = 7.25;

/// The graph as SVG.
pub fn svg(drawing: &Drawing) -> String {
    let width = |node: &GraphNode| {
        let letters = node.title().chars().count().max(second(node).chars().count());
        letters as f64 * ADVANCE + 24.0
    };
    let widths = drawing.nodes.iter().map(width);
    let edges: Vec<(usize, usize)> = drawing.edges.iter().copied().collect();
    let Layered { spots, paths, depth, right } = Layered::new(widths, &edges, GAP, MARGIN);
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
fn second(node: &GraphNode) -> String {
    format!("{}: {}", node.kind, node.words())
}

fn top(layer: usize) -> f64 {
    MARGIN + layer as f64 * (HEIGHT + BETWEEN)
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
