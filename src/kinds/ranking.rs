//! What people read of an influence: the top of the ranking as table and picture.

use std::path::Path;

use anyhow::Context as _;
use image::RgbImage;
use serde::Serialize;

use crate::io::captions::coco::Captions;
use crate::io::image::contact_sheet::{Cell, contact_sheet};
use crate::io::image::load_rgb;

/// One training image of the ranking.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// 1 for the most influential.
    pub rank: usize,
    /// Position in the data set.
    pub index: usize,
    /// The image's file.
    pub file_name: String,
    /// Rise of its loss.
    pub influence: f32,
    /// Its captions.
    pub captions: Vec<String>,
    /// Whether the influence is exact, where some are estimates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
}

/// The first `k` of a ranking.
pub(crate) fn top(
    ranks: &[i64],
    influence: &[f32],
    captions: &Captions,
    k: usize,
) -> anyhow::Result<Vec<Row>> {
    anyhow::ensure!(
        captions.items.len() == influence.len(),
        "the captions file has {} images, the latents have {}: they must be of one data set",
        captions.items.len(),
        influence.len()
    );
    let rows = ranks.iter().take(k).enumerate().map(|(place, &index)| {
        let item = &captions.items[index as usize];
        Row {
            rank: place + 1,
            index: index as usize,
            file_name: item.file_name.clone(),
            influence: influence[index as usize],
            captions: item.captions.clone(),
            exact: None,
        }
    });
    Ok(rows.collect())
}

/// Writes rank, index, file name, influence and first caption, one image per line; where some influences are estimates,
/// whether it is exact as well.
pub(crate) fn write_csv(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let mut writer = csv::Writer::from_writer(fs_err::File::create(path)?);
    let marked = rows.iter().any(|row| row.exact.is_some());
    let mut header = vec!["rank", "index", "file_name", "influence", "caption"];
    header.extend(marked.then_some("exact"));
    writer.write_record(header)?;
    for row in rows {
        let caption = row.captions.first().cloned().unwrap_or_default();
        let (rank, index, influence) =
            (row.rank.to_string(), row.index.to_string(), row.influence.to_string());
        let mut record = vec![rank, index, row.file_name.clone(), influence, caption];
        record.extend(row.exact.map(|exact| exact.to_string()));
        writer.write_record(record)?;
    }
    writer.flush()?;
    Ok(())
}

/// Writes the rows with all captions.
pub(crate) fn write_json(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec_pretty(rows)?;
    text.push(b'\n');
    Ok(fs_err::write(path, text)?)
}

/// Draws the query and, below it, the training images with rank, influence and first caption.
pub(crate) fn draw(query: &RgbImage, heading: &str, rows: &[Row], images: &Path) -> anyhow::Result<RgbImage> {
    let cells = rows.iter().map(|row| {
        let path = images.join(&row.file_name);
        let image = load_rgb(&path).with_context(|| format!("training image {}", row.index))?;
        let title = format!("{}. {:+.3e}", row.rank, row.influence);
        Ok(Cell { image, title, lines: row.captions.iter().take(1).cloned().collect() })
    });
    Ok(contact_sheet(query, heading, &cells.collect::<anyhow::Result<Vec<_>>>()?))
}
