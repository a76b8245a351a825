//! Token ids against transformers (`tests/golden/make_vae_clip.py`).

use std::path::Path;

use attrflow::nn::tokenizer::Tokenizer;
use serde::Deserialize;

use crate::golden;

const DEMO: &str = "data/demo/model/tokenizer";

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    demo: Vec<Vec<i64>>,
    pads_with_exclamation_marks: Vec<Vec<i64>>,
}

fn golden_ids() -> Golden {
    serde_json::from_slice(&fs_err::read(golden::path("tests/golden/tokenizer.json")).unwrap()).unwrap()
}

/// The demo's tokenizer with further files.
fn variant(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        fs_err::copy(Path::new(DEMO).join(name), folder.path().join(name)).unwrap();
    }
    for (name, text) in files {
        fs_err::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[track_caller]
fn compare(tokenizer: &Tokenizer, texts: &[String], expected: &[Vec<i64>]) {
    assert!(texts.len() > 20 && texts.len() == expected.len());
    for (text, expected) in texts.iter().zip(expected) {
        assert_eq!(&tokenizer.encode(text).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn the_demos_ids_are_those_of_transformers() {
    let golden = golden_ids();
    let tokenizer = Tokenizer::load(DEMO).unwrap();
    assert_eq!(tokenizer.max_length(), 16);
    compare(&tokenizer, &golden.texts, &golden.demo);
}

#[test]
fn the_special_tokens_map_overrides_the_padding() {
    let token = |text: &str| format!(r#"{{"content": "{text}", "normalized": true, "lstrip": false}}"#);
    let (start, end) = (token("<|startoftext|>"), token("<|endoftext|>"));
    let map =
        format!(r#"{{"bos_token": {start}, "eos_token": {end}, "unk_token": {end}, "pad_token": "!"}}"#);
    let folder = variant(&[("special_tokens_map.json", &map)]);
    let golden = golden_ids();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    compare(&tokenizer, &golden.texts, &golden.pads_with_exclamation_marks);
}

#[test]
fn what_is_wrong_with_a_folder_is_said() {
    let error = |files: &[(&str, &str)]| Tokenizer::load(variant(files).path()).err().unwrap().to_string();
    let found = error(&[("tokenizer_config.json", r#"{"model_max_length": 16, "pad_token": "<pad>"}"#)]);
    assert!(found.ends_with("the padding token \"<pad>\" is not in the vocabulary"), "{found}");
    let found = error(&[("tokenizer_config.json", r#"{"model_max_length": 1}"#)]);
    assert!(found.ends_with("model_max_length is 1, expected at least 2"), "{found}");
    let found = error(&[("tokenizer_config.json", "{}")]);
    assert!(found.contains("missing field `model_max_length` at line 1"), "{found}");
    let found = error(&[("merges.txt", "#version: 0.2\nqqq zzz\n")]);
    assert!(found.contains("no byte-pair vocabulary"), "{found}");
    assert!(
        Tokenizer::load("/nowhere").err().unwrap().to_string().contains("/nowhere/tokenizer_config.json")
    );
}
