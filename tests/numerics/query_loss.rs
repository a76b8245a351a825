//! `query-loss` through the program, against numbers made in Python (`tests/golden/make_query_loss.py`).

use attrflow::io::NpyWriter;
use attrflow::io::npy::{Dtype, Npy};
use attrflow::models::clip::image::ImageEncoder;
use attrflow::models::vision::PictureEncoder as _;
use image::RgbImage;
use tch::{Device, Tensor};

use crate::golden::{self, TOLERANCE, Tensors, assert_close, path};
use crate::project::{Project, copy};

const ITEMS: [&str; 2] = ["pair", "single"];

const STAGES: &str = r#"
[stages.loss]
kind = "query-loss"
params = { time_samples = 8, seed = 3 }
[stages.loss.inputs]
unet = "../golden/unet"
scheduler = "../golden/scheduler"
latents = ["../golden/latents/pair.npy", "../golden/latents/single.npy"]
text_embeddings = ["../golden/text_embeddings/pair.npy", "../golden/text_embeddings/single.npy"]
drawn_latents = ["../golden/drawn_latents/pair.npy", "../golden/drawn_latents/single.npy"]
images = ["../golden/images/pair", "../golden/images/single"]
drawn_images = ["../golden/drawn_images/pair", "../golden/drawn_images/single"]
clip = "../golden/clip"
"#;

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().iter().map(|&size| size as usize).collect()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(tch::Kind::Double).flatten(0, -1)).unwrap()
}

fn project(golden: &Tensors) -> Project {
    let project = Project::new(6);
    project.write("pipelines/golden.toml", STAGES);
    let root = project.path("golden");
    for folder in ["latents", "text_embeddings", "drawn_latents"] {
        fs_err::create_dir_all(root.join(folder)).unwrap();
    }
    copy(&path("tests/golden/unet/conv"), &root.join("unet"));
    copy(&path("tests/golden/clip_image"), &root.join("clip"));
    let linear = r#"{ "_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02 }"#;
    project.write("golden/scheduler/scheduler_config.json", linear);
    for item in ITEMS {
        for port in ["latents", "text_embeddings", "drawn_latents"] {
            let tensor = &golden[&format!("{item}/{port}")];
            let file = root.join(format!("{port}/{item}.npy"));
            let mut writer = NpyWriter::create(&file, Dtype::F32, &shape(tensor)).unwrap();
            writer.write_f32(&Vec::try_from(tensor.flatten(0, -1)).unwrap()).unwrap();
            writer.finish().unwrap();
        }
        for port in ["images", "drawn_images"] {
            fs_err::create_dir_all(root.join(port).join(item)).unwrap();
            for row in 0..golden[&format!("{item}/latents")].size()[0] {
                let pixels = &golden[&format!("{item}/{port}/{row}")];
                picture(pixels).save(root.join(format!("{port}/{item}/{row}.png"))).unwrap();
            }
        }
    }
    project
}

fn picture(pixels: &Tensor) -> RgbImage {
    let size = pixels.size();
    let bytes = Vec::<u8>::try_from(pixels.flatten(0, -1)).unwrap();
    RgbImage::from_raw(size[1] as u32, size[0] as u32, bytes).unwrap()
}

#[test]
fn losses_and_distances_of_drawings_are_pythons() {
    let golden = golden::load("query_loss");
    let project = project(&golden);
    let ran = project.attrflow(["run", "pipelines/golden.toml"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let folder = project.path("results/golden/loss");
    let table = fs_err::read_to_string(folder.join("query_loss.csv")).unwrap();
    let mut rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let columns = rows.next().unwrap();
    assert_eq!(columns, ["query", "loss", "pixel_mse", "latent_cosine", "clip_cosine"]);
    let rows: Vec<Vec<&str>> = rows.collect();
    assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), ["pair/0", "pair/1", "single"]);
    for (column, name) in columns.iter().enumerate().skip(1) {
        let expected = ITEMS.iter().flat_map(|item| values(&golden[&format!("{item}/{name}")]));
        for (row, expected) in rows.iter().zip(expected) {
            let found: f64 = row[column].parse().unwrap();
            assert!((found - expected).abs() <= TOLERANCE * expected.abs(), "{name}: {found}, {expected}");
        }
    }
    let npy = Npy::open(folder.join("query_loss.npy")).unwrap();
    let mut found = Vec::new();
    npy.read_f32(0..3, &mut found).unwrap();
    let expected = Tensor::cat(&ITEMS.map(|item| &golden[&format!("{item}/losses")]), 0);
    assert_close("losses", &Tensor::from_slice(&found).view([3, 8]), &expected);
}

#[test]
fn the_image_encoder_is_transformers() {
    let golden = golden::load("query_loss");
    let clip = ImageEncoder::load(&path("tests/golden/clip_image"), Device::Cpu).unwrap();
    for item in ITEMS {
        let rows = golden[&format!("{item}/prepared")].size()[0];
        let prepared: Vec<Tensor> =
            (0..rows).map(|row| clip.prepare(&picture(&golden[&format!("{item}/images/{row}")]))).collect();
        let prepared = Tensor::stack(&prepared, 0);
        assert_close("prepared", &prepared, &golden[&format!("{item}/prepared")]);
        assert_close("embeds", &clip.forward(&prepared), &golden[&format!("{item}/embeds")]);
    }
}

#[test]
fn pictures_that_cannot_be_compared_are_refused() {
    let project = project(&golden::load("query_loss"));
    let refused = |expected: &str| {
        let ran = project.attrflow(["run", "pipelines/golden.toml"]);
        assert!(ran.code != 0 && ran.err.contains(expected), "{expected}: {ran:?}");
    };
    let stages = |old: &str, new: &str| project.write("pipelines/golden.toml", STAGES.replace(old, new));
    stages("drawn_images = [\"../golden/drawn_images/pair\", \"../golden/drawn_images/single\"]\n", "");
    refused("`images` and `drawn_images` are compared with each other: connect both or none");
    stages("../golden/clip\"", "../golden/unet\"");
    refused("`model_type` is");
    stages("", "");
    let pair = project.path("golden/drawn_images/pair/1.png");
    fs_err::copy(project.path("golden/images/pair/0.png"), &pair).unwrap();
    refused("drawn_images/pair/1.png: (41, 23) pixels, expected (42, 32), as ");
}
