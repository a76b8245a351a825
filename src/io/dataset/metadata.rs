//! Images with a table beside them, as `datasets` reads an `imagefolder`: metadata.csv, .jsonl or .parquet.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value as Json};

use super::columns::{caption_column, captions, columns, value};
use super::folders::{has_extension, is_metadata, walk};
use super::{Item, Options, Picture, Source, Visit, parquet};
use crate::io::names;

pub(super) fn read(source: &Source<'_>, options: &Options, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    let files = match source.captions {
        // Names are relative to the folder of the images.
        Some(file) => vec![(file.to_owned(), PathBuf::new())],
        None => of_folder(source.path, options)?,
    };
    for (file, folder) in files {
        let mut reader = Reader::default();
        rows(&file, &mut |number, row| {
            let at = || format!("{}: row {number}", file.display());
            let item = reader.item(&row, source.path, &folder, options).with_context(at)?;
            visit(item)
        })?;
    }
    Ok(())
}

/// Names of folders that `datasets` takes for splits.
const SPLITS: [&str; 9] =
    ["train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval"];

/// The tables of a folder, each with its own folder.
fn of_folder(root: &Path, options: &Options) -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let mut files: Vec<PathBuf> = walk(root)?.into_iter().filter(|file| is_metadata(file)).collect();
    let top =
        |file: &PathBuf| file.iter().next().filter(|_| file.iter().count() > 1).map(|name| name.to_owned());
    let mut splits: Vec<_> =
        files.iter().filter_map(top).filter(|name| SPLITS.iter().any(|split| name == split)).collect();
    splits.dedup();
    let listed: Vec<String> = splits.iter().map(|split| format!("`{}`", split.to_string_lossy())).collect();
    match &options.split {
        None => ensure!(
            splits.len() < 2,
            "{}: the folders are of several splits: {}; choose one by `split`",
            root.display(),
            listed.join(", ")
        ),
        Some(split) => {
            files.retain(|file| file.starts_with(split));
            ensure!(
                !files.is_empty(),
                "{}: `split` is `{split}`, found {}",
                root.display(),
                listed.join(", ")
            );
        }
    }
    ensure!(!files.is_empty(), "{}: no metadata.csv, metadata.jsonl or metadata.parquet", root.display());
    let ending = |file: &PathBuf| file.extension().unwrap_or_default().to_ascii_lowercase();
    if let Some(other) = files.iter().find(|file| ending(file) != ending(&files[0])) {
        bail!(
            "{}: {} and {} are of two kinds, expected one",
            root.display(),
            files[0].display(),
            other.display()
        );
    }
    let folder = |file: &Path| file.parent().unwrap_or(Path::new("")).to_owned();
    Ok(files.into_iter().map(|file| (root.join(&file), folder(&file))).collect())
}

/// Which columns of a table are read, once its first row is there.
#[derive(Default)]
struct Reader {
    columns: Option<[String; 2]>,
}

impl Reader {
    fn item(
        &mut self,
        row: &Json,
        root: &Path,
        folder: &Path,
        options: &Options,
    ) -> anyhow::Result<Item<'static>> {
        let [name_column, caption_column] = match &self.columns {
            Some(columns) => columns,
            None => {
                let found = columns(row);
                let named = |column: &&super::columns::Column| {
                    column.name == "file_name" || column.name.ends_with("_file_name")
                };
                let names: Vec<&str> =
                    found.iter().filter(named).map(|column| column.name.as_str()).collect();
                let name = match names.as_slice() {
                    [one] => (*one).to_owned(),
                    [] => {
                        let listed = found
                            .iter()
                            .map(|column| format!("`{}`", column.name))
                            .collect::<Vec<_>>()
                            .join(", ");
                        let hint = match found.as_slice() {
                            [one] if one.name.contains([';', '\t']) => ": separate columns by commas",
                            _ => "",
                        };
                        bail!("no column `file_name`: there are {listed}{hint}")
                    }
                    several => bail!("several columns of file names: {}, expected one", several.join(", ")),
                };
                self.columns.insert([name, caption_column(&found, options.caption_column.as_deref())?])
            }
        };
        let name = value(row, name_column).as_str().with_context(|| format!("no text in `{name_column}`"))?;
        ensure!(!name.contains("://"), "`{name_column}` is {name:?}, expected a file of the folder");
        let inside =
            names::inside(name).map_err(|why| anyhow::anyhow!("`{name_column}` is {name:?}: {why}"))?;
        let name = folder.join(inside).to_string_lossy().into_owned();
        let image = root.join(&name);
        ensure!(image.is_file(), "`{name_column}` names {}, which does not exist", image.display());
        let captions = captions(value(row, caption_column), caption_column)?;
        Ok(Item { name, picture: Picture::File(image), captions, id: None })
    }
}

/// Calls `visit` with each row of a table, counted from 1.
fn rows(file: &Path, visit: &mut dyn FnMut(usize, Json) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let at = || file.display().to_string();
    if has_extension(file, &["parquet"]) {
        return parquet::rows(file, visit);
    }
    let text = String::from_utf8(fs_err::read(file)?).with_context(at)?;
    let text = text.trim_start_matches('\u{feff}');
    if has_extension(file, &["csv"]) {
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let header = reader.headers().with_context(at)?.clone();
        for (place, record) in reader.records().enumerate() {
            let record = record.with_context(at)?;
            let cells = header.iter().zip(&record).map(|(name, cell)| (name.to_owned(), Json::from(cell)));
            visit(place + 1, Json::Object(cells.collect::<Map<_, _>>()))?;
        }
        return Ok(());
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    for (place, line) in lines.enumerate() {
        let row: Json = serde_json::from_str(line).with_context(|| format!("{}: row {}", at(), place + 1))?;
        ensure!(row.is_object(), "{}: row {}: expected an object", at(), place + 1);
        visit(place + 1, row)?;
    }
    Ok(())
}
