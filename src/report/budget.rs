//! Keeps a page within its size: smaller pictures first, then fewer rows.

use super::options::ReportError;
use super::pictures::{Sizes, Sprite};
use super::shell::{Body, Shown};
use crate::io::words::count;
use attrflow_engine::store::format_bytes as bytes;

/// No picture gets smaller than this.
const SMALLEST: u32 = 40;
/// No query gets fewer rows.
const FEWEST: usize = 5;

/// The page with as much as fits into `most` bytes.
pub(super) fn fit(
    body: &mut impl Body,
    sprite: &Sprite,
    asked: Sizes,
    rows: usize,
    most: usize,
) -> Result<String, ReportError> {
    let (mut sizes, mut shown) = (asked, rows);
    loop {
        body.cut(shown);
        let (symbols, places) = sprite.symbols(sizes, &body.used(sprite.len()));
        let pictures: usize = symbols.iter().map(|symbol| symbol.data.len()).sum();
        let notes = notes(asked, sizes, rows, shown, most);
        let html = body.html(&symbols, Shown { notes, places: places.clone() })?;
        let rest = html.len() - pictures;
        if html.len() <= most {
            return Ok(html);
        }
        if sizes.thumbnail > SMALLEST {
            // The bytes of a picture go with its area.
            let share = (most.saturating_sub(rest) as f64 / pictures.max(1) as f64).sqrt() * 0.96;
            let scaled = |side: u32| (f64::from(side) * share.min(0.95)) as u32;
            sizes = Sizes {
                query: scaled(sizes.query).max(2 * SMALLEST),
                thumbnail: scaled(sizes.thumbnail).max(SMALLEST),
            };
        } else if shown > FEWEST {
            shown = (shown * 2 / 3).max(FEWEST);
        } else {
            let text = format!("The page is larger than the {} that it may have.", bytes(most as u64));
            return body.html(&symbols, Shown { notes: vec![text], places });
        }
    }
}

fn notes(asked: Sizes, sizes: Sizes, rows: usize, shown: usize, most: usize) -> Vec<String> {
    let mut notes = Vec::new();
    if sizes != asked {
        notes.push(format!(
            "Pictures are at most {} pixels wide or high, not {}, to keep this page below {}.",
            sizes.thumbnail,
            asked.thumbnail,
            bytes(most as u64)
        ));
    }
    if shown < rows {
        notes.push(format!(
            "Each query shows {}, not {rows}, for the same reason.",
            count(shown, "image", "images")
        ));
    }
    notes
}
