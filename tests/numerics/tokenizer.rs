//! Token ids against transformers (`tests/golden/make_vae_clip.py`).

use std::path::Path;

use attrflow::models::tokenizer::Tokenizer;
use serde::Deserialize;

use crate::golden;

const DEMO: &str = "data/demo/model/tokenizer";

#[derive(Deserialize)]
struct Golden {
    texts: Vec<String>,
    demo: Vec<Vec<i64>>,
    stable_diffusion_1: Vec<Vec<i64>>,
    padding_in_config: Vec<Vec<i64>>,
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

/// The demo's folder in the layout of Stable Diffusion's, whose map of special tokens names the padding `pad`.
fn stable_diffusion(pad: &str) -> tempfile::TempDir {
    let token = |text: &str, more: &str| {
        format!(r#"{{{more}"content": "{text}", "normalized": true, "lstrip": false}}"#)
    };
    let tokens = |more: &str, pad: &str| {
        let (start, end) = (token("<|startoftext|>", more), token("<|endoftext|>", more));
        format!(r#""bos_token": {start}, "eos_token": {end}, "unk_token": {end}, "pad_token": "{pad}""#)
    };
    let typed = tokens(r#""__type": "AddedToken", "#, "<|endoftext|>");
    variant(&[
        ("special_tokens_map.json", &format!("{{{}}}", tokens("", pad))),
        ("tokenizer_config.json", &format!(r#"{{"model_max_length": 16, {typed}}}"#)),
    ])
}

#[test]
fn stable_diffusion_1_pads_with_the_end() {
    let golden = golden_ids();
    let tokenizer = Tokenizer::load(stable_diffusion("<|endoftext|>").path()).unwrap();
    compare(&tokenizer, &golden.texts, &golden.stable_diffusion_1);
}

#[test]
fn the_special_tokens_map_of_stable_diffusion_2_overrides_the_padding() {
    let golden = golden_ids();
    let tokenizer = Tokenizer::load(stable_diffusion("!").path()).unwrap();
    compare(&tokenizer, &golden.texts, &golden.pads_with_exclamation_marks);
}

#[test]
fn the_padding_may_be_only_in_the_configuration() {
    let config = r#"{"model_max_length": 16, "pad_token": "!"}"#;
    let golden = golden_ids();
    let tokenizer = Tokenizer::load(variant(&[("tokenizer_config.json", config)]).path()).unwrap();
    compare(&tokenizer, &golden.texts, &golden.padding_in_config);
}

#[test]
fn faults_of_a_folder_are_named() {
    let error = |files: &[(&str, &str)]| Tokenizer::load(variant(files).path()).err().unwrap().to_string();
    let found = error(&[("tokenizer_config.json", r#"{"model_max_length": 16, "pad_token": "<pad>"}"#)]);
    assert!(found.ends_with("the padding token \"<pad>\" is not in the vocabulary"), "{found}");
    let found = error(&[("tokenizer_config.json", r#"{"model_max_length": 1}"#)]);
    assert!(found.ends_with("model_max_length is 1, expected at least 2"), "{found}");
    let found = error(&[("tokenizer_config.json", "{}")]);
    assert!(found.contains("missing field `model_max_length` at line 1"), "{found}");
    for (text, said) in [
        (r#"{"model_max_length": 16, "padding_side": "left"}"#, "`padding_side` is left, supported: right"),
        (
            r#"{"model_max_length": 16, "truncation_side": "left"}"#,
            "`truncation_side` is left, supported: right",
        ),
    ] {
        let found = error(&[("tokenizer_config.json", text)]);
        assert!(found.ends_with(said), "{found}");
    }
    let found = error(&[("merges.txt", "#version: 0.2\n")]);
    assert!(found.ends_with("merges.txt: it has no merges"), "{found}");
    let found = error(&[("merges.txt", "version https://git-lfs.github.com/spec/v1\n")]);
    assert!(found.contains("merges.txt: it is a Git LFS pointer"), "{found}");
    let found = error(&[("merges.txt", "#version: 0.2\nqqq zzz\n")]);
    assert!(found.contains("no byte-pair vocabulary"), "{found}");
    assert!(
        Tokenizer::load("/nowhere").err().unwrap().to_string().contains("/nowhere/tokenizer_config.json")
    );
}
