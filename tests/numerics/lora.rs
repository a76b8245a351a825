//! Low-rank adapters against diffusers and PEFT: merged into weights, and kept as layers with gradients of their own.

use std::collections::BTreeMap;
use std::path::Path;

use attrflow::io::lora::{Lora, Network};
use attrflow::io::tensor_file::TensorFile;
use attrflow::method::diffusion_loss::DenoisingRows;
use attrflow::method::fisher::squared_gradients;
use attrflow::method::schedule::{BetaSchedule, NoiseSchedule, ScheduleConfig};
use attrflow::method::selection::Selection;
use attrflow::method::train::mean_gradient;
use attrflow::models::clip::text::TextEncoder;
use attrflow::models::lora::Adapters;
use attrflow::models::unet::{ModelMode, Precision, UNet, UNetFiles};
use tch::{Device, Kind, Tensor};

use crate::golden::{assert_close, assert_within, load, path};

const FILES: [&str; 4] = ["diffusers", "diffusers_old", "diffusers_processor", "kohya"];

fn network(file: &str, adapters: Adapters, mode: ModelMode) -> UNet {
    let (folder, file) =
        (path("tests/golden/lora/unet"), path(&format!("tests/golden/lora/{file}.safetensors")));
    let files = UNetFiles { lora: Some((&file, adapters)), ..UNetFiles::new(&folder) };
    UNet::load_files(&files, Device::Cpu, mode).unwrap()
}

fn schedule() -> NoiseSchedule {
    NoiseSchedule::new(ScheduleConfig {
        beta_schedule: BetaSchedule::ScaledLinear,
        beta_start: 0.00085,
        beta_end: 0.012,
        ..ScheduleConfig::default()
    })
}

fn rows(golden: &BTreeMap<String, Tensor>) -> DenoisingRows {
    let of = |name: &str| golden[name].shallow_clone();
    DenoisingRows {
        latents: of("sample"),
        noise: of("noise"),
        timesteps: of("timesteps"),
        conditioning: of("texts").into(),
    }
}

#[test]
fn every_form_of_a_file_is_merged_as_diffusers_does_it() {
    let golden = load("lora/expected");
    for file in FILES {
        let unet = network(file, Adapters::Merged, ModelMode::Inference(Precision::Fp32));
        let weights = golden
            .iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(&format!("{file}/unet/"))?, tensor)));
        let mut count = 0;
        for (name, expected) in weights {
            assert_within(&format!("{file}: {name}"), &unet.parameters()[name], expected, 1e-6);
            count += 1;
        }
        assert!(count >= 3, "{file}: {count} weights");
        let output = tch::no_grad(|| {
            unet.forward(&golden["sample"], &golden["timesteps"], &golden["texts"].shallow_clone().into())
        });
        assert_close(&format!("{file}: output"), &output, &golden[&format!("{file}/output")]);
    }
}

#[test]
fn adapters_kept_as_layers_give_the_output_of_merged_ones() {
    let golden = load("lora/expected");
    for file in FILES {
        for mode in [ModelMode::Gradients(Precision::Fp32), ModelMode::Inference(Precision::Fp32)] {
            let unet = network(file, Adapters::Layers, mode);
            let output = tch::no_grad(|| {
                unet.forward(&golden["sample"], &golden["timesteps"], &golden["texts"].shallow_clone().into())
            });
            assert_within(file, &output, &golden[&format!("{file}/output")], 1e-4);
        }
    }
}

#[test]
fn a_text_encoder_is_merged_too() {
    let golden = load("lora/expected");
    let (folder, file) =
        (path("tests/golden/lora/text_encoder"), path("tests/golden/lora/kohya.safetensors"));
    let forward = |lora: Option<&Path>| {
        let encoder = TextEncoder::load(&folder, lora, Device::Cpu).unwrap();
        tch::no_grad(|| encoder.forward(&golden["ids"]))
    };
    assert_close("text", &forward(Some(&file)), &golden["kohya/text_encoder/output"]);
    assert_ne!(forward(None), forward(Some(&file)));
}

#[test]
fn gradients_of_the_low_rank_maps_are_those_of_autograd() {
    let golden = load("lora/expected");
    let unet = network("diffusers", Adapters::Layers, ModelMode::Gradients(Precision::Fp32));
    let (schedule, rows) = (schedule(), rows(&golden));
    let losses = tch::no_grad(|| rows.losses(&unet, &schedule));
    assert_close("losses", &losses, &golden["gradients/loss"]);
    let squares = squared_gradients(&unet, &schedule, &rows, &Selection::Lora, 0).unwrap();
    let expected = golden.iter().filter_map(|(name, t)| Some((name.strip_prefix("gradients/squares/")?, t)));
    let expected: BTreeMap<&str, &Tensor> = expected.collect();
    assert!(squares.keys().map(String::as_str).eq(expected.keys().copied()));
    // Float32 itself is off by as much: 1.2e-5 relative between two ways to run it in torch.
    for (name, square) in &squares {
        assert_within(
            name,
            &square.to_kind(Kind::Float),
            &expected[name.as_str()].to_kind(Kind::Float),
            1e-4,
        );
    }
    let kv = squared_gradients(&unet, &schedule, &rows, &Selection::LoraKv, 0).unwrap();
    assert!(!kv.is_empty() && kv.len() < squares.len());
    assert!(kv.iter().all(|(name, square)| name.contains("attn2.to_") && square.equal(&squares[name])));
    let chosen: Vec<String> = squares.into_keys().collect();
    let slices = std::iter::once(Ok((rows, vec![0, 1])));
    let (mean, _) = mean_gradient(&unet, &schedule, &chosen, 2, slices).unwrap();
    for (name, gradient) in &mean {
        assert_within(name, gradient, &golden[&format!("gradients/mean/{name}")], 1e-4);
    }
}

#[test]
fn convolutions_with_adapters_have_gradients_too() {
    // Kohya's file has adapters of 1x1 and 3x3 convolutions: the sum of per-sample gradients is that of autograd.
    let golden = load("lora/expected");
    let unet = network("kohya", Adapters::Layers, ModelMode::Gradients(Precision::Fp32));
    let (schedule, rows) = (schedule(), rows(&golden));
    let names: Vec<String> =
        unet.parameters().keys().filter(|name| Selection::Lora.matches(name)).cloned().collect();
    assert!(
        names.iter().any(|name| name.contains("conv1.lora_A"))
            && names.iter().any(|name| name.contains("proj_in"))
    );
    for row in 0..2 {
        let one = rows.slice(row..row + 1);
        let squares = squared_gradients(&unet, &schedule, &one, &Selection::Lora, 0).unwrap();
        let slices = std::iter::once(Ok((one, vec![0])));
        let (gradient, _) = mean_gradient(&unet, &schedule, &names, 1, slices).unwrap();
        for name in &names {
            let expected = gradient[name].to_kind(Kind::Double).square();
            assert_within(name, &squares[name], &expected, 1e-5);
        }
    }
}

#[test]
fn changed_maps_take_the_place_of_the_files() {
    let golden = load("lora/expected");
    let kept = network("diffusers", Adapters::Layers, ModelMode::Gradients(Precision::Fp32));
    let (name, tensor) = kept.parameters().iter().find(|(name, _)| name.contains("lora_B")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("changed.safetensors");
    Tensor::write_safetensors(&[(name.as_str(), tensor + 0.5)], &changed).unwrap();
    let (unet, lora) = (path("tests/golden/lora/unet"), path("tests/golden/lora/diffusers.safetensors"));
    let forward = |adapters, changed| {
        let files = UNetFiles { folder: &unet, checkpoint: None, lora: Some((&lora, adapters)), changed };
        let unet = UNet::load_files(&files, Device::Cpu, ModelMode::Gradients(Precision::Fp32)).unwrap();
        tch::no_grad(|| {
            unet.forward(&golden["sample"], &golden["timesteps"], &golden["texts"].shallow_clone().into())
        })
    };
    let merged = forward(Adapters::Merged, Some(changed.as_path()));
    assert_within("merged", &merged, &forward(Adapters::Layers, Some(&changed)), 1e-4);
    let moved = (merged - forward(Adapters::Merged, None)).abs().max().double_value(&[]);
    assert!(moved > 1e-3, "{moved}");
}

#[test]
fn every_file_that_is_no_fitting_lora_is_named() {
    let network =
        TensorFile::open(path("tests/golden/lora/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let open = |file: &Path| {
        Lora::open(file, Network::Unet, network.headers()).map(drop).map_err(|error| error.to_string())
    };
    for (file, expected) in [
        ("wrong/dora", "lora_magnitude_vector` is of DoRA, which is not supported"),
        ("wrong/dora_kohya", "dora_scale` is of DoRA, which is not supported"),
        ("wrong/lycoris", "is of LyCORIS (LoHa), which is not supported"),
        ("wrong/lokr", "is of LyCORIS (LoKr), which is not supported"),
        ("wrong/unfit", "2 keys fit no layer of the UNet: unet.down_blocks.1.attentions.0"),
        (
            "wrong/shape",
            "is [3, 20], expected [3, 12] as the network's layer has it: is the LoRA for another model?",
        ),
        ("wrong/half", "attn2.to_v` has no map up (B)"),
        ("wrong/reg", "`ss_num_reg_images` is 7"),
        ("unet/diffusion_pytorch_model", "no key of a LoRA"),
    ] {
        let file = path(&format!("tests/golden/lora/{file}.safetensors"));
        let error = open(&file).unwrap_err();
        assert!(error.starts_with(&file.display().to_string()) && error.contains(expected), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = open(folder.path()).unwrap_err();
    assert!(error.contains("no LoRA, looked for pytorch_lora_weights.safetensors"), "{error}");
}

/// A folder as PEFT saves an adapter, with this configuration, or none.
fn peft(config: Option<&str>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let own = load("lora/diffusers");
    let named: Vec<(String, Tensor)> = own
        .iter()
        .map(|(name, tensor)| (name.replacen("unet.", "base_model.model.", 1), tensor.shallow_clone()))
        .collect();
    Tensor::write_safetensors(&named, folder.path().join("adapter_model.safetensors")).unwrap();
    if let Some(config) = config {
        fs_err::write(folder.path().join("adapter_config.json"), config).unwrap();
    }
    folder
}

fn scales(file: &Path) -> Result<BTreeMap<String, f64>, String> {
    let network =
        TensorFile::open(path("tests/golden/lora/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let lora = Lora::open(file, Network::Unet, network.headers()).map_err(|error| error.to_string())?;
    Ok(lora.adapters.into_iter().map(|adapter| (adapter.layer, adapter.scale)).collect())
}

#[test]
fn a_folder_of_peft_has_its_alpha_beside_the_maps() {
    let golden = load("lora/expected");
    let folder = peft(Some(r#"{"r": 3, "lora_alpha": 6}"#));
    let unet = path("tests/golden/lora/unet");
    let files = UNetFiles { lora: Some((folder.path(), Adapters::Merged)), ..UNetFiles::new(&unet) };
    let merged = UNet::load_files(&files, Device::Cpu, ModelMode::Gradients(Precision::Fp32)).unwrap();
    let output = tch::no_grad(|| {
        merged.forward(&golden["sample"], &golden["timesteps"], &golden["texts"].shallow_clone().into())
    });
    assert_close("output", &output, &golden["diffusers/output"]);
    let file = folder.path().join("adapter_model.safetensors");
    assert!(scales(&file).unwrap_err().contains("connect the folder that has both"));
    assert!(scales(peft(None).path()).unwrap_err().contains("connect the folder that has both"));
}

#[test]
fn an_alpha_of_its_own_and_the_root_of_the_rank_count() {
    let rslora = peft(Some(r#"{"lora_alpha": 6, "use_rslora": true}"#));
    assert!(scales(rslora.path()).unwrap().values().all(|scale| (scale - 6.0 / 3f64.sqrt()).abs() < 1e-12));
    let own = peft(Some(r#"{"lora_alpha": 6, "alpha_pattern": {"attn2.to_k": 12}}"#));
    for (layer, scale) in scales(own.path()).unwrap() {
        assert_eq!(scale, if layer.ends_with("attn2.to_k") { 4.0 } else { 2.0 }, "{layer}");
    }
    for (config, expected) in [
        (r#"{"alpha_pattern": {".*to_k": 12}}"#, "`alpha_pattern` names `.*to_k`"),
        (r#"{"init_lora_weights": "pissa_niter_4"}"#, "a LoRA that changes its base"),
        (r#"{"use_dora": true}"#, "`use_dora` is of DoRA"),
    ] {
        let error = scales(peft(Some(config)).path()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_loss_that_is_not_computed_and_maps_of_integers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.safetensors");
    let layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
    let write = |metadata: &str, dtype: &str, bytes: usize| {
        let header = format!(
            r#"{{"__metadata__":{{{metadata}}},"unet.{layer}.lora_A.weight":{{"dtype":"{dtype}","shape":[1,12],"data_offsets":[0,{a}]}},"unet.{layer}.lora_B.weight":{{"dtype":"{dtype}","shape":[16,1],"data_offsets":[{a},{b}]}}}}"#,
            a = 12 * bytes,
            b = 28 * bytes
        );
        let length = (header.len() as u64).to_le_bytes();
        fs_err::write(&file, [&length[..], header.as_bytes(), &vec![0; 28 * bytes]].concat()).unwrap();
        scales(&file)
    };
    let error = write(r#""ss_loss_type":"huber""#, "F32", 4).unwrap_err();
    assert!(error.contains("`ss_loss_type` is huber in its metadata: it was trained with a loss"), "{error}");
    let error = write(r#""ss_loss_type":"l2""#, "I64", 8).unwrap_err();
    assert!(error.contains("expected a float type"), "{error}");
}
