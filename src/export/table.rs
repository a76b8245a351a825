//! The scores of all training images and queries as one table, Parquet or CSV: what people join with metadata of their own.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde::Deserialize;

use super::{Batch, ExportError};
use crate::io::captions::coco::Captions;
use crate::io::json;
use crate::io::npy::Npy;
use crate::io::rankings::{self, percentile, places};

/// The columns; empty in a CSV file where they are null.
const SCHEMA: &str = "message scores {
    required binary query (STRING);
    required int64 index;
    optional binary id (STRING);
    optional binary file (STRING);
    optional binary caption (STRING);
    required float score;
    optional float standard_error;
    required int64 rank;
    required double percentile;
    required boolean exact;
}";
const HEADER: [&str; 10] =
    ["query", "index", "id", "file", "caption", "score", "standard_error", "rank", "percentile", "exact"];

/// The results of a query.
#[derive(Debug, Clone)]
pub struct QueryFiles {
    /// Its name.
    pub query: String,
    /// float32 [N]
    pub influence: PathBuf,
    /// int64 [N]: image indices by descending influence
    pub rank: PathBuf,
    /// A captions file in COCO's layout.
    pub captions: Option<PathBuf>,
    /// float32 [N]: standard errors; NaN where there is none
    pub errors: Option<PathBuf>,
    /// Which scores are exact, where some are estimates.
    pub top_k: Option<PathBuf>,
}

/// The part of `top_k.json` that says which scores are exact.
#[derive(Deserialize)]
struct TopK {
    exact: Vec<usize>,
}

/// Captions files: those of many queries are one.
type CaptionFiles = HashMap<PathBuf, Rc<Captions>>;

impl QueryFiles {
    fn read(&self, files: &mut CaptionFiles) -> Result<QueryScores, ExportError> {
        let scores = Npy::vector(&self.influence)?;
        let images = scores.len();
        let same = |path: &Path, found: usize| match found == images {
            true => Ok(()),
            false => Err(ExportError::Images { path: path.to_owned(), found, expected: images }),
        };
        let places = rankings::read(&self.rank)?.and_then(|order| places(&order));
        let places = places.ok_or_else(|| ExportError::Ranks { path: self.rank.clone() })?;
        same(&self.rank, places.len())?;
        let captions = match &self.captions {
            None => None,
            Some(path) => {
                if !files.contains_key(path) {
                    files.insert(path.clone(), Rc::new(Captions::read_all(path)?));
                }
                same(path, files[path].items.len())?;
                Some(Rc::clone(&files[path]))
            }
        };
        let errors = self.errors.as_ref().map(Npy::vector).transpose()?;
        if let (Some(path), Some(errors)) = (&self.errors, &errors) {
            same(path, errors.len())?;
        }
        let exact = match &self.top_k {
            None => None,
            Some(path) => {
                let mut flags = vec![false; images];
                for index in json::read::<TopK>(path)?.exact {
                    *flags.get_mut(index).ok_or_else(|| ExportError::Ranks { path: path.clone() })? = true;
                }
                Some(flags)
            }
        };
        let ranks = places.into_iter().map(|place| place + 1).collect();
        Ok(QueryScores { query: self.query.clone(), captions, scores, ranks, errors, exact })
    }
}

/// The scores of a query.
#[derive(Debug, Clone)]
struct QueryScores {
    query: String,
    captions: Option<Rc<Captions>>,
    /// [N], by index.
    scores: Vec<f32>,
    /// The rank of each image, from 1.
    ranks: Vec<usize>,
    errors: Option<Vec<f32>>,
    exact: Option<Vec<bool>>,
}

/// A row.
struct Row<'a> {
    query: &'a str,
    index: usize,
    id: Option<String>,
    file: Option<&'a str>,
    caption: Option<&'a str>,
    score: f32,
    error: Option<f32>,
    rank: usize,
    percentile: f64,
    exact: bool,
}

impl QueryScores {
    fn rows(&self) -> Vec<Row<'_>> {
        let of = |index: usize| {
            let item = self.captions.as_ref().map(|captions| &captions.items[index]);
            Row {
                query: &self.query,
                index,
                id: item.map(|item| plain(&item.id)),
                file: item.map(|item| item.file_name.as_str()),
                caption: item.and_then(|item| item.captions.first()).map(String::as_str),
                score: self.scores[index],
                error: self.errors.as_ref().map(|errors| errors[index]).filter(|error| !error.is_nan()),
                rank: self.ranks[index],
                percentile: percentile(self.ranks[index], self.scores.len()),
                exact: self.exact.as_ref().is_none_or(|exact| exact[index]),
            }
        };
        (0..self.scores.len()).map(of).collect()
    }
}

/// An id without the quotation marks that JSON gives a text.
fn plain(id: &str) -> String {
    serde_json::from_str(id).unwrap_or_else(|_| id.to_owned())
}

/// Writes a table of all queries, one after the other, each by index: Parquet or CSV, as the name ends.
///
/// # Errors
/// The name ends otherwise, results are not of the same images, or a file cannot be read or written.
pub fn table(batch: &mut Batch, name: &str, queries: &[QueryFiles]) -> Result<(), ExportError> {
    let mut files = CaptionFiles::new();
    write(batch, name, queries.iter().map(|query| query.read(&mut files)))
}

fn write(
    batch: &mut Batch,
    name: &str,
    queries: impl Iterator<Item = Result<QueryScores, ExportError>>,
) -> Result<(), ExportError> {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending {
        "parquet" => parquet(&batch.file(name)?, queries),
        "csv" => csv(&batch.file(name)?, queries),
        _ => Err(ExportError::Ending { name: name.to_owned() }),
    }
}

fn csv(
    path: &Path,
    queries: impl Iterator<Item = Result<QueryScores, ExportError>>,
) -> Result<(), ExportError> {
    let failed = |error: csv::Error| ExportError::Io(error.into());
    let mut writer = csv::Writer::from_writer(fs_err::File::create(path)?);
    writer.write_record(HEADER).map_err(failed)?;
    for query in queries {
        for row in query?.rows() {
            let [index, score, rank, percentile, exact] = [
                row.index.to_string(),
                row.score.to_string(),
                row.rank.to_string(),
                row.percentile.to_string(),
                row.exact.to_string(),
            ];
            let error = row.error.map(|error| error.to_string()).unwrap_or_default();
            let [id, file, caption] =
                [row.id.as_deref(), row.file, row.caption].map(Option::unwrap_or_default);
            let record = [row.query, &index, id, file, caption, &score, &error, &rank, &percentile, &exact];
            writer.write_record(record).map_err(failed)?;
        }
    }
    Ok(writer.flush()?)
}

/// One row group for each query.
fn parquet(
    path: &Path,
    queries: impl Iterator<Item = Result<QueryScores, ExportError>>,
) -> Result<(), ExportError> {
    let schema = Arc::new(parse_message_type(SCHEMA)?);
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let file = fs_err::File::create(path)?.into_parts().0;
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties))?;
    for query in queries {
        let query = query?;
        let rows = query.rows();
        let mut group = writer.next_row_group()?;
        texts(&mut group, rows.iter().map(|row| Some(row.query)), false)?;
        column::<Int64Type>(&mut group, rows.iter().map(|row| Some(row.index as i64)), false)?;
        texts(&mut group, rows.iter().map(|row| row.id.as_deref()), true)?;
        texts(&mut group, rows.iter().map(|row| row.file), true)?;
        texts(&mut group, rows.iter().map(|row| row.caption), true)?;
        column::<FloatType>(&mut group, rows.iter().map(|row| Some(row.score)), false)?;
        column::<FloatType>(&mut group, rows.iter().map(|row| row.error), true)?;
        column::<Int64Type>(&mut group, rows.iter().map(|row| Some(row.rank as i64)), false)?;
        column::<DoubleType>(&mut group, rows.iter().map(|row| Some(row.percentile)), false)?;
        column::<BoolType>(&mut group, rows.iter().map(|row| Some(row.exact)), false)?;
        group.close()?;
    }
    writer.close()?;
    Ok(())
}

fn texts<'a>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: impl Iterator<Item = Option<&'a str>>,
    optional: bool,
) -> Result<(), ParquetError> {
    column::<ByteArrayType>(group, values.map(|text| text.map(ByteArray::from)), optional)
}

/// Writes the next column.
fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, File>,
    values: impl Iterator<Item = Option<T::T>>,
    optional: bool,
) -> Result<(), ParquetError> {
    let mut levels = Vec::new();
    let mut present = Vec::new();
    for value in values {
        levels.push(i16::from(value.is_some()));
        present.extend(value);
    }
    let Some(mut column) = group.next_column()? else {
        return Err(ParquetError::General("more columns than the schema has".into()));
    };
    column.typed::<T>().write_batch(&present, optional.then_some(levels.as_slice()), None)?;
    column.close()
}

#[cfg(test)]
mod tests {
    use parquet::file::reader::FileReader as _;
    use parquet::file::serialized_reader::SerializedFileReader;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::io::captions::coco::Item;

    fn query(name: &str, errors: Option<Vec<f32>>, exact: Option<Vec<bool>>) -> QueryScores {
        let item = |id: &str, file: &str, caption: Option<&str>| Item {
            id: id.into(),
            file_name: file.into(),
            captions: caption.map(str::to_owned).into_iter().collect(),
        };
        let items = vec![
            item("7", "7.png", Some("red, \"round\"")),
            item("8", "8.png", None),
            item("\"frog\"", "9.png", Some("蛙")),
        ];
        QueryScores {
            query: name.into(),
            captions: Some(Rc::new(Captions { items })),
            scores: vec![0.1, -2.5e-9, 0.3],
            ranks: vec![2, 3, 1],
            errors,
            exact,
        }
    }

    fn written(name: &str, queries: &[QueryScores]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let mut batch = Batch::new(folder.path()).unwrap();
        write(&mut batch, name, queries.iter().cloned().map(Ok)).unwrap();
        Batch::finish(&[batch], false).unwrap();
        let path = folder.path().join(name);
        (folder, path)
    }

    #[test]
    fn a_csv_table_has_a_row_for_each_image_and_query() {
        let known = query("apple", Some(vec![0.01, f32::NAN, 0.02]), None);
        let bare = QueryScores { captions: None, ..query("joy", None, Some(vec![false, true, true])) };
        let (_folder, path) = written("a.csv", &[known, bare]);
        let expected = "query,index,id,file,caption,score,standard_error,rank,percentile,exact\n\
            apple,0,7,7.png,\"red, \"\"round\"\"\",0.1,0.01,2,50,true\n\
            apple,1,8,8.png,,-0.0000000025,,3,0,true\n\
            apple,2,frog,9.png,蛙,0.3,0.02,1,100,true\n\
            joy,0,,,,0.1,,2,50,false\n\
            joy,1,,,,-0.0000000025,,3,0,true\n\
            joy,2,,,,0.3,,1,100,true\n";
        assert_eq!(fs_err::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn a_parquet_table_has_types_and_nulls() {
        let (_folder, path) = written(
            "a.parquet",
            &[query("apple", Some(vec![0.5, f32::NAN, 0.25]), None), query("joy", None, None)],
        );
        let reader = SerializedFileReader::new(fs_err::File::open(path).unwrap().into_parts().0).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let rows: Vec<Json> =
            reader.get_row_iter(None).unwrap().map(|row| row.unwrap().to_json_value()).collect();
        assert_eq!(rows.len(), 6);
        let first = json!({ "query": "apple", "index": 0, "id": "7", "file": "7.png", "caption": "red, \"round\"",
            "score": 0.1_f32, "standard_error": 0.5, "rank": 2, "percentile": 50.0, "exact": true });
        assert_eq!(rows[0], first);
        assert_eq!((&rows[1]["caption"], &rows[1]["standard_error"]), (&Json::Null, &Json::Null));
        assert_eq!((&rows[5]["query"], &rows[5]["caption"]), (&json!("joy"), &json!("蛙")));
    }

    #[test]
    fn other_endings_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut batch = Batch::new(folder.path()).unwrap();
        let error = table(&mut batch, "a.xlsx", &[]).unwrap_err().to_string();
        assert_eq!(error, "a.xlsx: expected a name that ends in .parquet or .csv");
    }
}
