//! The captions of a row of a table.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value as Json;

/// Names that columns of captions have.
const USUAL: [&str; 5] = ["text", "caption", "captions", "prompt", "additional_feature"];

/// A column, with a sample of its values where it has texts.
pub(super) struct Column {
    pub name: String,
    pub sample: Option<String>,
}

/// The columns of a row in JSON.
pub(super) fn columns(row: &Json) -> Vec<Column> {
    let object = row.as_object().into_iter().flatten();
    object.map(|(name, value)| Column { name: name.clone(), sample: sample(value) }).collect()
}

/// A text of a value, shortened.
fn sample(value: &Json) -> Option<String> {
    let text = match value {
        Json::String(text) => text,
        Json::Array(list) => return sample(list.first()?),
        Json::Object(object) => return object.values().find_map(sample),
        _ => return None,
    };
    const LONGEST: usize = 40;
    Some(match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.clone(),
    })
}

/// The column of captions: the wanted one, or the only one with a usual name.
///
/// # Errors
/// The columns of texts, with a value of each.
pub(super) fn caption_column(columns: &[Column], wanted: Option<&str>) -> anyhow::Result<String> {
    let listed = || {
        let texts = columns.iter().filter_map(|column| Some((&column.name, column.sample.as_ref()?)));
        let texts: Vec<String> = texts.map(|(name, sample)| format!("`{name}` ({sample:?})")).collect();
        if texts.is_empty() {
            "none has texts".to_owned()
        } else {
            format!("those of texts are {}", texts.join(", "))
        }
    };
    let has = |name: &str| columns.iter().any(|column| column.name == name);
    if let Some(wanted) = wanted {
        let first = wanted.split('.').next().unwrap_or_default();
        ensure!(has(wanted) || has(first), "there is no column `{wanted}`: {}", listed());
        return Ok(wanted.to_owned());
    }
    let usual: Vec<&str> = USUAL.into_iter().filter(|name| has(name)).collect();
    match usual.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => bail!("no column of captions is known: {}; choose one by `caption_column`", listed()),
        several => bail!(
            "several columns may be the captions: {}; choose one by `caption_column`",
            several.join(", ")
        ),
    }
}

/// The value of a column, or of a key of an object in it.
pub(super) fn value<'j>(row: &'j Json, column: &str) -> &'j Json {
    match (row.get(column), column.split_once('.')) {
        (Some(found), _) => found,
        (None, Some((first, rest))) => row.get(first).map_or(&Json::Null, |inner| value(inner, rest)),
        (None, None) => &Json::Null,
    }
}

/// The captions that a value is: a text, or a list of texts. None for null and the empty text.
pub(super) fn captions(value: &Json, column: &str) -> anyhow::Result<Vec<String>> {
    match value {
        Json::Null => Ok(Vec::new()),
        Json::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        Json::String(text) => Ok(vec![text.clone()]),
        Json::Array(list) => {
            let one = |value: &Json| {
                let text = value
                    .as_str()
                    .with_context(|| format!("`{column}` has {value} in its list, expected texts"));
                text.map(str::to_owned)
            };
            list.iter().map(one).collect()
        }
        Json::Object(object) => {
            let keys: Vec<String> = object.keys().map(|key| format!("`{column}.{key}`")).collect();
            bail!("`{column}` is an object: choose one of {} by `caption_column`", keys.join(", "))
        }
        other => bail!("`{column}` is {other}, expected a text or a list of texts"),
    }
}
