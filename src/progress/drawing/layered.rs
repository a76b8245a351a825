//! Boxes in layers from top to bottom, each one layer below the lowest box that it reads, with arrows between them.

const SWEEPS: usize = 12;
/// The last sweeps only move spots: an order that oscillates would never settle.
const MOVING: usize = 4;
/// With more bends than this, long arrows are straight.
const MAX_BENDS: usize = 20_000;
/// The width that a bend takes.
const BEND: f64 = 8.0;

/// A box, or a bend of an arrow that crosses a layer.
pub struct Spot {
    /// Its layer, from 0 at the top.
    pub layer: usize,
    /// Its width.
    pub width: f64,
    /// Its middle.
    pub x: f64,
    up: Vec<usize>,
    down: Vec<usize>,
}

/// Boxes and arrows with their places.
pub struct Layered {
    /// The boxes in their order, then the bends of arrows.
    pub spots: Vec<Spot>,
    /// Each arrow as a list of spots.
    pub paths: Vec<Vec<usize>>,
    /// How many layers there are.
    pub depth: usize,
    /// The right edge of all.
    pub right: f64,
}

impl Layered {
    /// Places boxes of these widths and arrows between them (from, to), with a gap between neighbours and a margin on the left.
    ///
    /// Boxes come after the boxes that they read; an arrow backwards closes a cycle and moves nothing.
    pub fn new(
        widths: impl IntoIterator<Item = f64>,
        edges: &[(usize, usize)],
        gap: f64,
        margin: f64,
    ) -> Self {
        let spot = |layer, width| Spot { layer, width, x: 0.0, up: Vec::new(), down: Vec::new() };
        let mut spots: Vec<Spot> = widths.into_iter().map(|width| spot(0, width)).collect();
        let mut sources = vec![Vec::new(); spots.len()];
        edges.iter().for_each(|(from, to)| sources[*to].push(*from));
        for to in 0..spots.len() {
            let above = sources[to].iter().filter(|from| **from < to);
            spots[to].layer = above.map(|from| spots[*from].layer + 1).max().unwrap_or(0);
        }
        let span = |(from, to): &(usize, usize)| spots[*to].layer.saturating_sub(spots[*from].layer + 1);
        let bends = edges.iter().map(span).sum::<usize>() <= MAX_BENDS;
        let mut paths = Vec::new();
        for &(from, to) in edges {
            let mut path = vec![from];
            for layer in (spots[from].layer + 1..spots[to].layer).filter(|_| bends) {
                path.push(spots.len());
                spots.push(spot(layer, BEND));
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
        let depth = spots.iter().map(|spot| spot.layer + 1).max().unwrap_or(0);
        arrange(&mut spots, depth, gap);
        let left = spots.iter().map(|spot| spot.x - spot.width / 2.0).fold(f64::INFINITY, f64::min);
        let left = if left.is_finite() { left } else { 0.0 };
        spots.iter_mut().for_each(|spot| spot.x += margin - left);
        let right = spots.iter().map(|spot| spot.x + spot.width / 2.0).fold(0.0, f64::max);
        Self { spots, paths, depth, right }
    }
}

/// Orders each layer by the mean position of the connected spots, then moves its spots towards it.
fn arrange(spots: &mut [Spot], depth: usize, gap: f64) {
    let mut layers: Vec<Vec<usize>> = vec![Vec::new(); depth];
    for (index, spot) in spots.iter().enumerate() {
        layers[spot.layer].push(index);
    }
    for layer in &layers {
        pack(spots, layer, gap);
    }
    for sweep in 0..SWEEPS {
        let downwards = sweep % 2 == 0;
        for step in 0..depth {
            let layer = &mut layers[if downwards { step } else { depth - 1 - step }];
            let wish = |spot: &Spot| {
                let beside = if downwards { &spot.up } else { &spot.down };
                let sum: f64 = beside.iter().map(|other| spots[*other].x).sum();
                if beside.is_empty() { spot.x } else { sum / beside.len() as f64 }
            };
            let mut wishes: Vec<(f64, usize)> =
                layer.iter().map(|index| (wish(&spots[*index]), *index)).collect();
            if sweep + MOVING < SWEEPS {
                wishes.sort_by(|a, b| a.0.total_cmp(&b.0));
                *layer = wishes.iter().map(|(_, index)| *index).collect();
            }
            let mut edge = f64::NEG_INFINITY;
            let mut moved = 0.0;
            for (wish, index) in &wishes {
                let spot = &mut spots[*index];
                spot.x = wish.max(edge + gap + spot.width / 2.0);
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
fn pack(spots: &mut [Spot], layer: &[usize], gap: f64) {
    let total: f64 = layer.iter().map(|index| spots[*index].width + gap).sum();
    let mut x = -total / 2.0;
    for index in layer {
        let spot = &mut spots[*index];
        spot.x = x + spot.width / 2.0;
        x += spot.width + gap;
    }
}
