//! Reads a model's `config.json` and refuses what this crate would compute differently.
//!
//! Keys that we don't know are allowed, since the Hugging Face libraries add some with every release. Those
//! that would change the computation are listed as [`OptionGuard`]s by each model.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::io::json::{self, JsonError};

/// What can be wrong with a model's folder.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says what its fields are")]
pub enum ModelError {
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error("{}: no checkpoint, looked for {names}", folder.display())]
    NoCheckpoint { folder: PathBuf, names: String },
    #[error(
        "{} and {}: one is left over from another save, and nothing says which; expected one of them",
        file.display(),
        index.display()
    )]
    TwoCheckpoints { file: PathBuf, index: PathBuf },
    #[error("{}: an index of several files; connect the folder that has them, without `checkpoint`", file.display())]
    IndexAlone { file: PathBuf },
    #[error("{}: tensor `{tensor}`: the value at {index:?} is {value}, expected finite values", file.display())]
    NotFinite { file: PathBuf, tensor: String, index: Vec<i64>, value: f64 },
    #[error(transparent)]
    Tensors(#[from] crate::io::tensor_file::TensorFileError),
    #[error("{}: {faults}", file.display())]
    Keys { file: PathBuf, faults: super::KeyErrors },
    #[error(transparent)]
    Lora(#[from] crate::io::lora::LoraError),
    #[error(transparent)]
    Config(#[from] JsonError),
    #[error("{}: `{key}` is {found}, supported: {supported}", file.display())]
    Unsupported { file: PathBuf, key: String, found: String, supported: String },
}

/// A key whose value selects what is computed, with the values (as JSON) that are built in.
///
/// An absent key passes: it has the library's default, which must be among the supported values.
pub struct OptionGuard(pub &'static str, pub &'static [&'static str]);

/// Reads `file` into `T` and checks it against `guards`.
///
/// # Errors
/// The file can't be read, isn't the JSON that `T` describes, or holds a value that is not supported.
pub fn read<T: DeserializeOwned>(file: &Path, guards: &[OptionGuard]) -> Result<T, ModelError> {
    let text = fs_err::read(file)?;
    let value: Value = json::parse(&text, file)?;
    for OptionGuard(key, supported) in guards {
        if let Some(found) = value.get(key)
            && !supported.iter().any(|text| same(found, text))
        {
            return Err(unsupported(file, key, json::written(found), &supported.join(", ")));
        }
    }
    check_sizes(file, &value)?;
    // Parsed from the text, not from the value, so that an error has a line and a column.
    Ok(json::parse(&text, file)?)
}

/// The error for a value that is not built in.
pub fn unsupported(file: &Path, key: &str, found: impl ToString, supported: &str) -> ModelError {
    let (found, supported) = (found.to_string(), supported.to_owned());
    ModelError::Unsupported { file: file.to_owned(), key: key.to_owned(), found, supported }
}

/// The keys of sizes, and the largest that a network may have: the memory for more would be asked for before a checkpoint is read.
const SIZES: [(&str, i64); 17] = [
    ("layers_per_block", 1_000),
    ("transformer_layers_per_block", 1_000),
    ("num_hidden_layers", 1_000),
    ("in_channels", 100_000),
    ("out_channels", 100_000),
    ("latent_channels", 100_000),
    ("block_out_channels", 100_000),
    ("norm_num_groups", 100_000),
    ("attention_head_dim", 100_000),
    ("num_attention_heads", 100_000),
    ("cross_attention_dim", 1_000_000),
    ("hidden_size", 1_000_000),
    ("intermediate_size", 1_000_000),
    ("max_position_embeddings", 1_000_000),
    ("projection_dim", 1_000_000),
    ("addition_time_embed_dim", 1_000_000),
    ("projection_class_embeddings_input_dim", 100_000_000),
];

/// Refuses sizes that no network has, in a number or a list of them.
fn check_sizes(file: &Path, config: &Value) -> Result<(), ModelError> {
    for (key, most) in SIZES {
        let found = config.get(key).unwrap_or(&Value::Null);
        let numbers: Vec<i64> = match found {
            Value::Array(list) => list.iter().filter_map(Value::as_i64).collect(),
            number => number.as_i64().into_iter().collect(),
        };
        if numbers.iter().any(|number| !(1..=most).contains(number)) {
            return Err(unsupported(file, key, found, &format!("1 to {most}")));
        }
    }
    Ok(())
}

/// Refuses a number of parts that does not divide a size.
///
/// # Errors
/// Both keys.
pub fn expect_divides(
    file: &Path,
    (key, parts): (&str, i64),
    (of, sizes): (&str, &[i64]),
) -> Result<(), ModelError> {
    match sizes.iter().find(|size| **size % parts != 0) {
        Some(size) => Err(unsupported(file, key, parts, &format!("a number that divides {size}, of {of}"))),
        None => Ok(()),
    }
}

/// Whether a value equals the one that `text` writes, 1 and 1.0 being the same number.
fn same(found: &Value, text: &str) -> bool {
    match (found.as_f64(), text.parse::<f64>()) {
        (Some(number), Ok(supported)) => number == supported,
        _ => serde_json::from_str::<Value>(text).is_ok_and(|supported| *found == supported),
    }
}

/// A value for all blocks, or one a block, as diffusers' configurations allow.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same for all blocks.
    One(i64),
    /// A value a block, from the finest resolution to the coarsest.
    Each(Vec<i64>),
}

impl Display for PerBlock {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            PerBlock::One(value) => write!(f, "{value}"),
            PerBlock::Each(values) => write!(f, "{values:?}"),
        }
    }
}

impl PerBlock {
    /// The values of `blocks` blocks, or nothing if the list has another length.
    pub fn of(&self, blocks: usize) -> Option<Vec<i64>> {
        match self {
            PerBlock::One(value) => Some(vec![*value; blocks]),
            PerBlock::Each(values) => (values.len() == blocks).then(|| values.clone()),
        }
    }
}
