//! `model`: a diffusers folder and single files give the same parts, and what is not supported is named before anything runs.

use std::path::{Path, PathBuf};

use attrflow::io::tensor_file::TensorFile;

use crate::project::{DEMO, INDEX, Project, copy};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/single_file");

/// A project with a pipeline that reads `source`, and the tiny model as a diffusers folder in `tiny/`.
fn project(source: &str, config: &str) -> Project {
    let project = Project::new(1);
    let tiny = project.path("tiny");
    copy(&Path::new(GOLDEN).join("diffusers"), &tiny);
    for part in ["tokenizer", "scheduler"] {
        copy(&Path::new(DEMO).join("model").join(part), &tiny.join(part));
    }
    project.write("tiny/model_index.json", INDEX);
    pipeline(&project, source, config);
    project
}

fn pipeline(project: &Project, source: &str, config: &str) {
    let inputs = format!("source = \"{source}\"\n{config}");
    project.write(
        "pipelines/model.toml",
        format!("[stages.model]\nkind = \"model\"\n[stages.model.inputs]\n{inputs}\n"),
    );
}

const RUN: [&str; 2] = ["run", "pipelines/model.toml"];
const CONFIG: &str = "config = \"../tiny\"";

/// The only file of weights in a folder.
fn weights(folder: &Path) -> PathBuf {
    let names = ["diffusion_pytorch_model", "model"].map(|name| folder.join(format!("{name}.safetensors")));
    names.into_iter().find(|file| file.is_file()).unwrap()
}

fn assert_equal(project: &Project, part: &str) {
    let found = TensorFile::open(weights(&project.path("results/model/model").join(part))).unwrap();
    let expected = TensorFile::open(weights(&Path::new(GOLDEN).join("diffusers").join(part))).unwrap();
    assert_eq!(found.headers().len(), expected.headers().len(), "{part}");
    for header in expected.headers() {
        let own = found.header(&header.name).unwrap();
        assert_eq!(own.shape, header.shape, "{part}: {}", header.name);
        let same = found.bytes_as(own, header.dtype).unwrap() == expected.bytes(header).unwrap();
        assert!(same, "{part}: {}", header.name);
    }
}

#[test]
fn a_folder_and_single_files_give_the_same_parts() {
    let file = |name: &str| format!("{GOLDEN}/{name}");
    let project = project("../tiny", "");
    for (source, config) in
        [("../tiny".to_owned(), ""), (file("sd1.safetensors"), CONFIG), (file("sd1.ckpt"), CONFIG)]
    {
        pipeline(&project, &source, config);
        let ran = project.attrflow(RUN);
        assert_eq!(ran.code, 0, "{source}: {ran:?}");
        for part in ["unet", "vae", "text_encoder"] {
            assert_equal(&project, part);
        }
        for file in ["tokenizer/vocab.json", "scheduler/scheduler_config.json", "report.json"] {
            assert!(project.path("results/model/model").join(file).is_file(), "{source}: {file}");
        }
    }
}

#[test]
fn a_single_file_with_two_text_encoders_gives_the_parts_of_its_folder() {
    let project = Project::new(1);
    let config = project.path("xl");
    copy(&Path::new(GOLDEN).join("sdxl"), &config);
    for part in ["tokenizer", "scheduler"] {
        copy(&Path::new(DEMO).join("model").join(part), &config.join(part));
    }
    copy(&config.join("tokenizer"), &config.join("tokenizer_2"));
    let scheduler = config.join("scheduler/scheduler_config.json");
    let text = fs_err::read_to_string(&scheduler).unwrap();
    let file = format!("{GOLDEN}/sdxl.safetensors");
    let stage = |params: &str| {
        let inputs = format!("source = \"{file}\"\nconfig = \"../xl\"");
        let text = format!("[stages.model]\nkind = \"model\"\n{params}\n[stages.model.inputs]\n{inputs}\n");
        project.write("pipelines/model.toml", text);
        project.attrflow(RUN)
    };
    let ran = stage("");
    assert!(ran.code != 0 && ran.err.contains("set `sdxl = true` of this stage"), "{ran:?}");
    assert!(text.contains("prediction_type"));
    let ran = stage("params = { sdxl = true }");
    assert_eq!(ran.code, 0, "{ran:?}");
    let folder = project.path("results/model/model");
    for part in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        let found = TensorFile::open(weights(&folder.join(part))).unwrap();
        let expected = TensorFile::open(weights(&Path::new(GOLDEN).join("sdxl").join(part))).unwrap();
        assert_eq!(found.headers().len(), expected.headers().len(), "{part}");
        for header in expected.headers() {
            let own = found
                .header(&header.name)
                .or_else(|| found.header(&format!("text_model.{}", header.name)))
                .unwrap_or_else(|| panic!("{part}: {}", header.name));
            assert_eq!(own.shape, header.shape, "{part}: {}", header.name);
            let same = found.bytes_as(own, header.dtype).unwrap() == expected.bytes(header).unwrap();
            assert!(same, "{part}: {}", header.name);
        }
    }
    assert!(folder.join("tokenizer_2/vocab.json").is_file());
}

#[test]
fn of_a_folder_the_preferred_weights_alone_are_taken_whole_or_in_several_files() {
    let project = project("../tiny", "");
    let unet = project.path("tiny/unet");
    fs_err::copy(
        Path::new(GOLDEN).join("fp16/diffusion_pytorch_model.fp16.safetensors"),
        unet.join("diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    assert_eq!(project.attrflow(RUN).code, 0);
    let taken = |name: &str| project.path("results/model/model/unet").join(name).is_file();
    assert!(
        taken("diffusion_pytorch_model.safetensors") && !taken("diffusion_pytorch_model.fp16.safetensors")
    );
    fs_err::remove_dir_all(&unet).unwrap();
    copy(&Path::new(GOLDEN).join("sharded"), &unet);
    assert_eq!(project.attrflow(RUN).code, 0);
    assert!(taken("diffusion_pytorch_model.safetensors.index.json"));
    assert!(taken("diffusion_pytorch_model-00003-of-00003.safetensors"));
}

#[test]
fn what_is_no_supported_model_is_named_by_plan() {
    let project = project("../tiny", "");
    let index = |from: &str, to: &str| project.write("tiny/model_index.json", INDEX.replace(from, to));
    let refused = |expected: &str| {
        let ran = project.attrflow(["plan", "pipelines/model.toml"]);
        let said = format!("{}{}", ran.out, ran.err).replace('\n', " ");
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(said.contains(expected), "{expected}: {ran:?}");
    };
    index("StableDiffusionPipeline", "FluxPipeline");
    refused("`_class_name` is FluxPipeline, supported: StableDiffusionPipeline");
    index("StableDiffusionPipeline", "StableDiffusionXLPipeline");
    refused("a StableDiffusionXLPipeline without `text_encoder_2`, supported: with both text encoders");
    // As the refiner's.
    let refiner = r#"{"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [null, null],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "requires_aesthetics_score": true}"#;
    project.write("tiny/model_index.json", refiner);
    refused(
        "without `text_encoder`, supported: with both text encoders; the refiner of Stable Diffusion XL is not",
    );
    index("CLIPTextModel", "XLMRobertaModel");
    refused("`text_encoder` is of the class XLMRobertaModel, supported: CLIPTextModel");
    index("\"tokenizer\"", "\"other\"");
    refused("`tokenizer` is of the class missing, supported: CLIPTokenizer");
    index("", "");
    project.write("tiny/unet/diffusion_pytorch_model.safetensors.index.json", "{}");
    refused("one is left over from another save");
    fs_err::remove_file(project.path("tiny/model_index.json")).unwrap();
    refused("one is left over from another save");
    fs_err::remove_dir_all(project.path("tiny/vae")).unwrap();
    refused("no model_index.json, expected a diffusers folder with it, or with unet, vae,");
    copy(&Path::new(GOLDEN).join("diffusers/vae"), &project.path("tiny/vae"));
    pipeline(&project, &format!("{GOLDEN}/sd1.safetensors"), "");
    refused("a checkpoint in a single file has no configurations and no tokenizer");
    pipeline(&project, &format!("{GOLDEN}/../lora/kohya.safetensors"), CONFIG);
    refused("this is a LoRA");
    pipeline(&project, &format!("{GOLDEN}/diffusers/unet/diffusion_pytorch_model.safetensors"), CONFIG);
    refused("this is the UNet of a diffusers folder");
    project.write("model.ckpt", "no checkpoint at all, but text");
    pipeline(&project, "../model.ckpt", CONFIG);
    refused("neither a safetensors nor a torch.save file");
}
