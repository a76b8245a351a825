//! Networks with two text encoders, as Stable Diffusion XL, against diffusers.

use std::path::PathBuf;

use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::fisher::squared_gradients;
use attrflow::method::schedule::NoiseSchedule;
use attrflow::method::selection::Selection;
use attrflow::method::train::random_weights;
use attrflow::models::clip::text::TextEncoder;
use attrflow::models::lora::Adapters;
use attrflow::models::tokenizer::Tokenizer;
use attrflow::models::unet::conditioning::Conditioning;
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles, text_rows};
use attrflow::models::vae::Vae;
use attrflow::models::weights::Weights;
use tch::{Device, Kind, Tensor};

use crate::golden::{Tensors, assert_close, load, path};

const LORAS: [&str; 2] = ["lora", "lora_peft"];

fn folder(part: &str) -> PathBuf {
    path(&format!("tests/golden/sdxl/model/{part}"))
}

fn cases() -> Tensors {
    load("sdxl/cases")
}

fn network(lora: Option<&str>, adapters: Adapters, mode: ModelMode) -> UNet {
    let file = lora.map(|name| path(&format!("tests/golden/sdxl/{name}.safetensors")));
    let unet = folder("unet");
    let files = UNetFiles { lora: file.as_deref().map(|file| (file, adapters)), ..UNetFiles::new(&unet) };
    UNet::load_files(&files, Device::Cpu, mode).unwrap()
}

/// The conditions of the six rows: two of each of the first three captions.
fn conditioning(case: &Tensors) -> Conditioning {
    let of = |name: &str| case[name].narrow(0, 0, 3);
    Conditioning { context: of("text"), pooled: Some(of("pooled")), size_ids: Some(of("size_ids")) }
}

fn rows(case: &Tensors) -> DenoisingRows {
    let of = |name: &str| case[name].shallow_clone();
    DenoisingRows {
        latents: of("latents"),
        noise: of("noise"),
        timesteps: of("timesteps"),
        conditioning: conditioning(case),
    }
}

fn schedule() -> NoiseSchedule {
    NoiseSchedule::load(&folder("scheduler")).unwrap()
}

/// Texts [n, L, D] and pooled texts [n, P] of token ids, by both encoders.
fn encoded(case: &Tensors, lora: Option<&str>) -> [Tensor; 2] {
    let file = lora.map(|name| path(&format!("tests/golden/sdxl/{name}.safetensors")));
    let first = TextEncoder::load(&folder("text_encoder"), file.as_deref(), Device::Cpu).unwrap();
    let second = TextEncoder::load_second(&folder("text_encoder_2"), file.as_deref(), Device::Cpu).unwrap();
    let own = first.hidden_states(&case["ids_1"]).penultimate;
    let other = second.hidden_states(&case["ids_2"]);
    [Tensor::cat(&[own, other.penultimate], -1), second.pooled(&case["ids_2"], &other.last)]
}

#[test]
fn texts_are_the_last_hidden_states_but_one_and_the_pooled_text_ends_at_the_first_end() {
    let case = cases();
    let [text, pooled] = tch::no_grad(|| encoded(&case, None));
    assert_close("text", &text, &case["text"]);
    assert_close("pooled", &pooled, &case["pooled"]);
}

#[test]
fn the_second_tokenizer_pads_with_its_own_token() {
    let case = cases();
    let captions: Vec<String> = serde_json::from_str(&metadata("captions")).unwrap();
    for (part, ids) in [("tokenizer", "ids_1"), ("tokenizer_2", "ids_2")] {
        let tokenizer = Tokenizer::load(folder(part)).unwrap();
        for (row, caption) in captions.iter().enumerate() {
            let expected: Vec<i64> = Vec::try_from(case[ids].get(row as i64)).unwrap();
            assert_eq!(tokenizer.encode(caption).unwrap(), expected, "{part}: {caption}");
        }
    }
    assert_ne!(case["ids_1"], case["ids_2"]);
}

fn metadata(key: &str) -> String {
    let file = path("tests/golden/sdxl/cases.safetensors");
    let file = attrflow::io::tensor_file::TensorFile::open(file).unwrap();
    file.metadata(key).unwrap().to_owned()
}

#[test]
fn losses_and_squared_gradients_of_all_weights() {
    let case = cases();
    let unet = network(None, Adapters::Merged, ModelMode::Gradients(Precision::Fp32));
    assert_close("losses", &tch::no_grad(|| rows(&case).losses(&unet, &schedule())), &case["losses"]);
    // Each row has a condition of its own, as in the Fisher information.
    let each = conditioning(&case).map(|x| x.repeat_interleave_self_int(2, 0, None));
    let rows = DenoisingRows { conditioning: each, ..rows(&case) };
    let found = squared_gradients(&unet, &schedule(), &rows, &Selection::All, 0).unwrap();
    let expected: Vec<(&str, &Tensor)> =
        case.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("fisher.")?, tensor))).collect();
    assert_eq!(expected.len(), unet.parameters().len());
    for (name, expected) in expected {
        assert_close(name, &found[name], expected);
    }
}

#[test]
fn rows_of_arrays_give_what_their_parts_give() {
    let case = cases();
    let unet = network(None, Adapters::Merged, ModelMode::Inference(Precision::Fp32));
    let joined = text_rows::join(&conditioning(&case));
    assert_eq!(joined.size()[1], case["text"].size()[1] + 1);
    let predict = |given: Conditioning| {
        let schedule = schedule();
        let xt = schedule.add_noise(&case["latents"], &case["noise"], &case["timesteps"]);
        tch::no_grad(|| unet.forward(&xt, &case["timesteps"], &given))
    };
    assert_close("predicted", &predict(unet.conditioning(joined.shallow_clone())), &case["predicted"]);
    assert_eq!(predict(unet.conditioning(joined)), predict(conditioning(&case)));
}

#[test]
fn guidance_without_a_text_is_by_zeros() {
    let case = cases();
    let unet = network(None, Adapters::Merged, ModelMode::Inference(Precision::Fp32));
    let with = conditioning(&case).narrow(0, 1);
    let sizes = with.size_ids.as_ref().map(Tensor::shallow_clone);
    let without = Conditioning { size_ids: sizes, ..with.map(Tensor::zeros_like) };
    let first = |name: &str| case[name].narrow(0, 0, 1);
    let xt = schedule().add_noise(&first("latents"), &first("noise"), &first("timesteps"));
    let [with, without] =
        [with, without].map(|given| tch::no_grad(|| unet.forward(&xt, &first("timesteps"), &given)));
    assert_close("guided", &(&without + (with - &without) * 5.0), &case["guided"]);
}

#[test]
fn latents_have_the_scale_of_the_autoencoder() {
    let case = cases();
    let vae = Vae::load(&folder("vae"), Device::Cpu).unwrap();
    assert_eq!(vae.scaling_factor(), 0.13025);
    let mode = tch::no_grad(|| vae.encode(&case["pixels"]).mode());
    assert_close("latent", &(mode * vae.scaling_factor()), &case["latent_mode"]);
}

#[test]
fn loras_of_all_three_networks_are_merged_in_both_ways_to_write_them() {
    let case = cases();
    let xt = schedule().add_noise(&case["latents"], &case["noise"], &case["timesteps"]);
    for lora in LORAS {
        for adapters in [Adapters::Merged, Adapters::Layers] {
            let unet = network(Some(lora), adapters, ModelMode::Inference(Precision::Fp32));
            let found = tch::no_grad(|| unet.forward(&xt, &case["timesteps"], &conditioning(&case)));
            assert_close(&format!("{lora}: predicted"), &found, &case["fused_predicted"]);
        }
        let [text, pooled] = tch::no_grad(|| encoded(&case, Some(lora)));
        assert_close(&format!("{lora}: text"), &text, &case["fused_text"]);
        assert_close(&format!("{lora}: pooled"), &pooled, &case["fused_pooled"]);
    }
}

/// A row through the network in its full size, with random weights, which take 10 GB twice.
#[test]
#[ignore = "takes 20 GB of memory"]
fn a_row_goes_through_the_full_size() {
    let config = path("tests/golden/sdxl/base/config.json");
    let zeros = UNet::new(&config, Weights::zeros()).unwrap();
    assert_eq!(zeros.parameters().values().map(Tensor::numel).sum::<usize>(), 2_567_463_684);
    let weights = random_weights(zeros.parameters(), 0, Device::Cpu);
    drop(zeros);
    let unet = UNet::new(&config, Weights::new(weights)).unwrap();
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let sizes = Tensor::from_slice(&[1024f32, 1024.0, 0.0, 0.0, 1024.0, 1024.0]).unsqueeze(0);
    let given = Conditioning {
        context: random(&[1, 77, 2048]),
        pooled: Some(random(&[1, 1280])),
        size_ids: Some(sizes),
    };
    let rows = text_rows::join(&given);
    assert_eq!(rows.size(), [1, 78, 2048]);
    let found = tch::no_grad(|| {
        unet.forward(&random(&[1, 4, 64, 64]), &Tensor::from_slice(&[500i64]), &unet.conditioning(rows))
    });
    assert_eq!(found.size(), [1, 4, 64, 64]);
    assert_eq!(found.isfinite().all().int64_value(&[]), 1);
    assert!(found.std(true).double_value(&[]) > 0.0);
}
