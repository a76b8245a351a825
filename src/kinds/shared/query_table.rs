//! The table of `query-loss`: a line for each query.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueryRow {
    /// The query's name.
    pub query: String,
    /// Its loss: a mean over timesteps.
    pub loss: f64,
    /// The mean square difference between its picture and the model's own, of values from 0 to 1.
    #[serde(default)]
    pub pixel_mse: Option<f64>,
    /// The cosine between its latent and the model's own.
    #[serde(default)]
    pub latent_cosine: Option<f64>,
    /// The cosine between CLIP's vectors of its picture and of the model's own.
    #[serde(default)]
    pub clip_cosine: Option<f64>,
}

/// The name of a row of an item: the item's, with the number of the row if it has several.
pub(crate) fn name(item: &str, row: usize, rows: usize) -> String {
    match (item, rows) {
        (item, 1) if !item.is_empty() => item.to_owned(),
        ("", _) => row.to_string(),
        (item, _) => format!("{item}/{row}"),
    }
}

/// Writes the table, with CLIP's column where it is known.
pub(crate) fn write(path: &Path, rows: &[QueryRow]) -> anyhow::Result<()> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(fs_err::File::create(path)?);
    let clip = rows.iter().any(|row| row.clip_cosine.is_some());
    let columns = ["query", "loss", "pixel_mse", "latent_cosine", "clip_cosine"];
    let count = if clip { 5 } else { 4 };
    writer.write_record(&columns[..count])?;
    for QueryRow { query, loss, pixel_mse, latent_cosine, clip_cosine } in rows {
        let known = (query, loss, pixel_mse, latent_cosine);
        match clip {
            true => writer.serialize((known, clip_cosine))?,
            false => writer.serialize(known)?,
        }
    }
    Ok(writer.flush()?)
}

/// Reads the table.
///
/// # Errors
/// The file and the line that is none, or the query that occurs twice.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<QueryRow>> {
    let mut reader = csv::Reader::from_reader(fs_err::File::open(path)?);
    let rows: Vec<QueryRow> =
        reader.deserialize().collect::<Result<_, _>>().with_context(|| path.display().to_string())?;
    for (place, row) in rows.iter().enumerate() {
        let QueryRow { query, loss, .. } = row;
        let first = rows.iter().position(|other| other.query == *query);
        ensure!(first == Some(place), "{}: the query `{query}` occurs twice", path.display());
        ensure!(
            loss.is_finite() && *loss >= 0.0,
            "{}: the loss of `{query}` is {loss}, expected 0 or more",
            path.display()
        );
        let distances = [row.pixel_mse, row.latent_cosine, row.clip_cosine];
        let wrong = distances.into_iter().flatten().find(|distance| !distance.is_finite());
        ensure!(
            wrong.is_none(),
            "{}: a distance of `{query}` is {wrong:?}, expected finite numbers",
            path.display()
        );
    }
    Ok(rows)
}
