//! What a user sees when a model's files don't fit.

use std::path::Path;

use attrflow::models::unet::UNet;
use attrflow::models::weights::Weights;
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, load, path};

const CONFIG: &str = "tests/golden/unet/conv/config.json";

fn weights() -> Tensors {
    load("unet/conv/diffusion_pytorch_model")
}

fn build(config: &Path, tensors: Tensors) -> String {
    UNet::new(config, Weights::named(Path::new("model.safetensors"), tensors)).err().unwrap().to_string()
}

/// The error for the tiny model's configuration with one thing replaced.
fn with_config(from: &str, to: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let text = fs_err::read_to_string(path(CONFIG)).unwrap();
    assert!(text.contains(from));
    fs_err::write(&file, text.replace(from, to)).unwrap();
    build(&file, weights()).replace(&folder.path().display().to_string(), "FOLDER")
}

#[test]
fn all_keys_that_do_not_fit_are_reported_at_once() {
    let mut tensors = weights();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let renamed = tensors.remove("mid_block.attentions.0.norm.weight").unwrap();
    tensors.insert("mid_block.attentions.0.norm.weights".into(), renamed);
    tensors.remove("conv_in.bias");
    tensors.insert("conv_out.bias".into(), zeros(&[7]));
    tensors.insert("label_embedding".into(), zeros(&[3]));
    insta::assert_snapshot!(build(&path(CONFIG), tensors), @"model.safetensors: the tensors do not fit the configuration; 2 missing: conv_in.bias, mid_block.attentions.0.norm.weight (the file has mid_block.attentions.0.norm.weights); 1 of another shape: conv_out.bias [7], expected [4]; 2 unexpected: label_embedding, mid_block.attentions.0.norm.weights");
}

#[test]
fn a_long_list_of_keys_is_cut() {
    insta::assert_snapshot!(build(&path(CONFIG), Tensors::new()), @"model.safetensors: the tensors do not fit the configuration; 208 missing: conv_in.weight, conv_in.bias, time_embedding.linear_1.weight, time_embedding.linear_1.bias, time_embedding.linear_2.weight, time_embedding.linear_2.bias, down_blocks.0.resnets.0.norm1.weight, down_blocks.0.resnets.0.norm1.bias and 200 more");
}

#[test]
fn what_is_not_supported_is_named_with_file_key_and_choices() {
    insta::assert_snapshot!(with_config("\"act_fn\": \"silu\"", "\"act_fn\": \"mish\""), @r#"FOLDER/config.json: `act_fn` is "mish", supported: "silu", "swish""#);
    insta::assert_snapshot!(with_config("\"DownBlock2D\"", "\"AttnDownBlock2D\""), @"FOLDER/config.json: `down_block_types` is AttnDownBlock2D, supported: DownBlock2D, CrossAttnDownBlock2D");
    insta::assert_snapshot!(with_config("\"attention_head_dim\": 2", "\"attention_head_dim\": 3"), @"FOLDER/config.json: `attention_head_dim` is 3, supported: a divisor of the block's 8 channels");
    insta::assert_snapshot!(with_config("\"attention_head_dim\": 2", "\"attention_head_dim\": [2]"), @"FOLDER/config.json: `attention_head_dim` is [2], supported: a positive number, or 2 of them (one for each of block_out_channels)");
    insta::assert_snapshot!(with_config("\"class_embed_type\": null", "\"class_embed_type\": \"timestep\""), @r#"FOLDER/config.json: `class_embed_type` is "timestep", supported: null"#);
    insta::assert_snapshot!(with_config("\"cross_attention_dim\": 12", "\"cross_attention_dim\": \"wide\""), @r#"FOLDER/config.json: invalid type: string "wide", expected i64 at line 19 column 31"#);
}

#[test]
fn keys_of_newer_releases_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let text = fs_err::read_to_string(path(CONFIG)).unwrap();
    fs_err::write(&file, text.replacen('{', "{\"novelty\": [1, 2],", 1)).unwrap();
    UNet::new(&file, Weights::new(weights())).unwrap();
}

#[test]
fn a_file_that_is_no_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weights.safetensors");
    let load = || Weights::load(&file, Device::Cpu).err().unwrap().to_string();
    assert!(load().contains("weights.safetensors"), "{}", load());
    fs_err::write(&file, "not a checkpoint").unwrap();
    assert!(
        load().contains("weights.safetensors: neither a safetensors nor a torch.save file"),
        "{}",
        load()
    );
}

#[test]
fn integers_in_place_of_weights_are_named() {
    let mut weights = weights();
    let bias = weights.get_mut("conv_in.bias").unwrap();
    *bias = bias.to_kind(Kind::Int);
    let error = UNet::new(&path(CONFIG), Weights::new(weights)).err().unwrap().to_string();
    assert!(error.ends_with("; 1 not of a float type: conv_in.bias (Int)"), "{error}");
}
