//! The configurations of kohya's scripts that may lie beside images (`config_util.py`): what they do with captions.

use std::path::Path;

use toml::{Table, Value};

/// Keys with which a training sees another text than the one that is written, or one of several.
const VARYING: [&str; 6] = [
    "shuffle_caption",
    "enable_wildcard",
    "caption_prefix",
    "caption_suffix",
    "caption_tag_dropout_rate",
    "token_warmup_step",
];

/// Whether a file is such a configuration that changes captions.
pub(super) fn varies_captions(file: &Path) -> bool {
    // A FIFO would be waited for.
    let is_file = fs_err::metadata(file).is_ok_and(|found| found.is_file());
    let text = if is_file { fs_err::read_to_string(file).unwrap_or_default() } else { String::new() };
    text.parse::<Table>().is_ok_and(|table| table.contains_key("datasets") && varies(&table))
}

/// Whether one of the keys is set here or in a table below.
fn varies(table: &Table) -> bool {
    table.iter().any(|(key, value)| match value {
        Value::Boolean(set) => *set && VARYING.contains(&key.as_str()),
        Value::Integer(number) => *number > 0 && VARYING.contains(&key.as_str()),
        Value::Float(number) => *number > 0.0 && VARYING.contains(&key.as_str()),
        Value::String(text) => !text.is_empty() && VARYING.contains(&key.as_str()),
        Value::Table(below) => varies(below),
        Value::Array(items) => items.iter().filter_map(Value::as_table).any(varies),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_counts_where_it_changes_captions() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("set.toml");
        for (text, expected) in [
            ("[general]\nshuffle_caption = true\n[[datasets]]\n", true),
            (
                "[[datasets]]\n[[datasets.subsets]]\nimage_dir = \"a\"\ncaption_prefix = \"a photo of \"\n",
                true,
            ),
            ("[general]\nshuffle_caption = false\n[[datasets]]\n", false),
            ("[[datasets]]\ncaption_prefix = \"\"\n", false),
            ("[[datasets]]\ncaption_tag_dropout_rate = 0.1\n", true),
            ("[[datasets]]\ntoken_warmup_step = 0\n", false),
            ("shuffle_caption = true\n", false),
            ("[[datasets]\n", false),
        ] {
            fs_err::write(&file, text).unwrap();
            assert_eq!(varies_captions(&file), expected, "{text}");
        }
        assert!(!varies_captions(&folder.path().join("none.toml")));
    }
}
