//! Parquet files that hold images, as `datasets` writes them with `push_to_hub`: a column of structs `{bytes, path}`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use parquet::file::reader::FileReader;
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value as Json;

use super::columns::{Column, caption_column, captions, value};
use super::folders::{has_extension, is_metadata, walk};
use super::{Item, Options, Picture, Visit, of_split};
use crate::io::mistaken::mistaken;
use crate::io::names;

/// Rows that are decoded at once: an image may have megabytes.
const AT_ONCE: usize = 8;

fn open(file: &Path) -> anyhow::Result<SerializedFileReader<File>> {
    let at = || file.display().to_string();
    let opened = fs_err::File::open(file)?.into_parts().0;
    SerializedFileReader::new(opened).with_context(|| {
        let start = fs_err::read(file).unwrap_or_default();
        match mistaken(&start[..start.len().min(512)]) {
            Some(found) => format!("{}: it is {found}", at()),
            None => format!("{}: not a parquet file", at()),
        }
    })
}

/// Calls `visit` with each row of a table without images, counted from 1.
pub(super) fn rows(
    file: &Path,
    visit: &mut dyn FnMut(usize, Json) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let reader = open(file)?;
    for (place, row) in reader.get_row_iter(None).with_context(|| file.display().to_string())?.enumerate() {
        visit(place + 1, row.with_context(|| file.display().to_string())?.to_json_value())?;
    }
    Ok(())
}

pub(super) fn read(path: &Path, options: &Options, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    let files: Vec<PathBuf> = match path.is_dir() {
        true => walk(path)?
            .into_iter()
            .filter(|file| has_extension(file, &["parquet"]) && !is_metadata(file))
            .map(|file| path.join(file))
            .collect(),
        false => vec![path.to_owned()],
    };
    let files = of_split(files, options.split.as_deref()).with_context(|| path.display().to_string())?;
    ensure!(!files.is_empty(), "{}: no .parquet file", path.display());
    let mut count = 0;
    for file in files {
        let at = |row: usize| format!("{}: row {row}", file.display());
        let reader = open(&file)?;
        let columns = Columns::of(&reader, options).with_context(|| file.display().to_string())?;
        let mut number = 0;
        for group in 0..reader.num_row_groups() {
            let group = reader.get_row_group(group)?;
            let projection = Some(columns.projection.clone());
            let rows = RowIter::from_row_group(projection, group.as_ref())?.with_batch_size(AT_ONCE);
            for row in rows {
                number += 1;
                columns.visit(&row.with_context(|| at(number))?, count, visit).with_context(|| at(number))?;
                count += 1;
            }
        }
    }
    Ok(())
}

/// The columns that are read.
struct Columns {
    image: String,
    caption: String,
    projection: Type,
}

impl Columns {
    fn of(reader: &SerializedFileReader<File>, options: &Options) -> anyhow::Result<Self> {
        let file = reader.metadata().file_metadata();
        let schema = file.schema();
        let features = file.key_value_metadata().into_iter().flatten().find(|pair| pair.key == "huggingface");
        let features: Option<Json> =
            features.and_then(|pair| serde_json::from_str(pair.value.as_deref()?).ok());
        let is_marked = |name: &str| {
            let features = features.as_ref().map(|json| &json["info"]["features"][name]["_type"]);
            features.and_then(Json::as_str) == Some("Image")
        };
        let fields = schema.get_fields();
        let image = match &options.image_column {
            Some(wanted) => fields.iter().find(|field| field.name() == wanted),
            None => {
                let marked = fields.iter().find(|field| is_marked(field.name()));
                marked.or_else(|| fields.iter().find(|field| is_image(field)))
            }
        };
        let Some(image) = image else {
            let listed: Vec<String> = fields.iter().map(|field| format!("`{}`", field.name())).collect();
            match &options.image_column {
                Some(wanted) => bail!("there is no column `{wanted}`: there are {}", listed.join(", ")),
                None => {
                    bail!(
                        "no column holds pictures (bytes, or structs with `bytes`) among {}: `image_column` chooses one",
                        listed.join(", ")
                    )
                }
            }
        };
        let others: Vec<&Arc<Type>> = fields.iter().filter(|field| field.name() != image.name()).collect();
        let first = first_row(reader, schema, &others)?;
        let columns: Vec<Column> = super::columns::columns(&first);
        let caption = caption_column(&columns, options.caption_column.as_deref())?;
        let root = caption.split('.').next().unwrap_or_default();
        let is_read = |field: &&Arc<Type>| [image.name(), root, caption.as_str()].contains(&field.name());
        let read: Vec<Arc<Type>> = fields.iter().filter(is_read).cloned().collect();
        Ok(Self { image: image.name().to_owned(), projection: group(schema, read)?, caption })
    }

    fn visit(&self, row: &Row, count: usize, visit: &mut Visit<'_>) -> anyhow::Result<()> {
        let field =
            |name: &str| row.get_column_iter().find(|(found, _)| *found == name).map(|(_, field)| field);
        let (bytes, path) = match field(&self.image) {
            Some(Field::Bytes(bytes)) => (bytes.data(), None),
            Some(Field::Group(parts)) => {
                let part = |name: &str| {
                    parts.get_column_iter().find(|(found, _)| *found == name).map(|(_, part)| part)
                };
                let path = match part("path") {
                    Some(Field::Str(path)) => Some(path.as_str()),
                    _ => None,
                };
                match part("bytes") {
                    Some(Field::Bytes(bytes)) => (bytes.data(), path),
                    _ => bail!(
                        "`{}` has no bytes, only the path {:?}: the file does not hold its image",
                        self.image,
                        path.unwrap_or_default()
                    ),
                }
            }
            Some(Field::Str(text)) => {
                bail!(
                    "`{}` holds texts ({text:?}), not pictures: the file does not hold its images",
                    self.image
                )
            }
            _ => bail!("`{}` holds no image", self.image),
        };
        let mut texts = serde_json::Map::new();
        for (name, field) in row.get_column_iter().filter(|(name, _)| **name != self.image) {
            texts.insert(name.clone(), field.to_json_value());
        }
        let captions = captions(value(&Json::Object(texts), &self.caption), &self.caption)?;
        let name = match path.map(names::inside) {
            Some(Ok(name)) => name,
            _ => format!("{:06}.{}", count + 1, ending(bytes)),
        };
        visit(Item { name, picture: Picture::Bytes(bytes), captions, id: None })
    }
}

/// Whether a column holds images: bytes, or a struct with bytes.
fn is_image(field: &Type) -> bool {
    let is_binary = |field: &Type| {
        field.is_primitive()
            && field.get_physical_type() == parquet::basic::Type::BYTE_ARRAY
            && field.get_basic_info().logical_type_ref().is_none()
            && field.get_basic_info().converted_type() == parquet::basic::ConvertedType::NONE
    };
    match field.is_group() {
        true => field.get_fields().iter().any(|part| part.name() == "bytes" && is_binary(part)),
        false => is_binary(field),
    }
}

fn group(schema: &Type, fields: Vec<Arc<Type>>) -> anyhow::Result<Type> {
    Ok(Type::group_type_builder(schema.name()).with_fields(fields).build()?)
}

/// The first row without its image.
fn first_row(
    reader: &SerializedFileReader<File>,
    schema: &Type,
    fields: &[&Arc<Type>],
) -> anyhow::Result<Json> {
    let projection = group(schema, fields.iter().map(|field| Arc::clone(field)).collect())?;
    let mut rows = reader.get_row_iter(Some(projection))?;
    Ok(rows.next().transpose()?.map_or(Json::Object(serde_json::Map::new()), |row| row.to_json_value()))
}

/// The ending of a picture's file, by its first bytes.
fn ending(bytes: &[u8]) -> &'static str {
    match image::guess_format(bytes) {
        Ok(format) => format.extensions_str().first().copied().unwrap_or("image"),
        Err(_) => "image",
    }
}
