//! The scores of an image and of its mirror image, and how they go over the timesteps.

use crate::io::words::score;
use std::path::Path;

use super::plot::{Scale, line, place};
use crate::io::npy::Npy;

/// Most points of a curve.
const POINTS: usize = 48;

/// What is known of both sides of an image.
#[derive(Debug, Clone, Default)]
pub(super) struct Sides {
    /// The score of the image and that of its mirror image.
    pub scores: Option<[f64; 2]>,
    pub curves: Option<Curves>,
}

/// Scores per timestep as SVG has them, in a box of 100 x 24.
#[derive(Debug, Clone)]
pub(super) struct Curves {
    pub own: String,
    pub mirrored: String,
    pub zero: String,
    pub words: String,
}

/// The files that say something of both sides.
#[derive(Default)]
pub(super) struct SideFiles {
    per_timestep: Option<Npy>,
    losses: Option<[Npy; 2]>,
}

impl SideFiles {
    /// `losses` are those after and before unlearning.
    pub fn open(per_timestep: Option<&Path>, losses: [Option<&Path>; 2]) -> Self {
        let open = |path: Option<&Path>| Npy::open(path?).ok();
        let [after, before] = losses.map(open);
        Self {
            per_timestep: open(per_timestep),
            losses: after.zip(before).map(|(after, before)| [after, before]),
        }
    }

    /// Of the image with this index, of so many.
    pub fn of(&self, index: usize, images: usize) -> Sides {
        let places = [index, images + index];
        if let Some(npy) = &self.per_timestep
            && [images, 2 * images].contains(&npy.rows())
        {
            let (steps, draws) = match *npy.shape() {
                [_, steps] => (steps, 1),
                [_, steps, draws] => (steps, draws),
                _ => return Sides::default(),
            };
            let rows: Vec<Vec<f64>> = places
                .into_iter()
                .filter(|place| *place < npy.rows())
                .filter_map(|place| Some(over_time(&row(npy, place)?, steps, draws)))
                .collect();
            let scores = rows.iter().map(|row| mean(row)).collect::<Vec<_>>();
            return Sides { scores: scores.try_into().ok(), curves: curves(&rows) };
        }
        let Some([after, before]) = &self.losses else { return Sides::default() };
        if after.rows() != 2 * images || before.rows() != 2 * images {
            return Sides::default();
        }
        let rise = |place| Some(row(after, place)?.first()? - row(before, place)?.first()?);
        let scores = places.map(rise);
        Sides { scores: scores[0].zip(scores[1]).map(|(own, mirrored)| [own, mirrored]), curves: None }
    }
}

fn row(npy: &Npy, place: usize) -> Option<Vec<f64>> {
    let mut values = Vec::new();
    npy.read_f32(place..place + 1, &mut values).ok()?;
    Some(values.into_iter().map(f64::from).collect())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The mean over draws at each timestep.
fn over_time(values: &[f64], steps: usize, draws: usize) -> Vec<f64> {
    match values.len() == steps * draws && draws > 0 {
        true => values.chunks(draws).map(mean).collect(),
        false => Vec::new(),
    }
}

fn curves(rows: &[Vec<f64>]) -> Option<Curves> {
    let steps = rows.first().map_or(0, Vec::len);
    if steps < 2 {
        return None;
    }
    let together = steps.div_ceil(POINTS);
    let rows: Vec<Vec<f64>> = rows.iter().map(|row| row.chunks(together).map(mean).collect()).collect();
    let all = || rows.iter().flatten().copied();
    let (low, high) = (all().fold(0.0, f64::min), all().fold(0.0, f64::max));
    let y = Scale::new([low, high], [22.0, 2.0]);
    let curve = |row: &Vec<f64>| {
        let x = Scale::new([0.0, (row.len() - 1).max(1) as f64], [1.0, 99.0]);
        line(row.iter().enumerate().map(|(step, value)| (x.at(step as f64), y.at(*value))))
    };
    Some(Curves {
        own: curve(&rows[0]),
        mirrored: rows.get(1).map(curve).unwrap_or_default(),
        zero: format!("M0 {}H100", place(y.at(0.0))),
        words: format!(
            "At {steps} timesteps: from {} to {}{}",
            score(low),
            score(high),
            if rows.len() > 1 { "; dashed: the mirror image" } else { "" }
        ),
    })
}
