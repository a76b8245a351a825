//! The loss with noise per image: what more timesteps, more images and changed rows compute, and that it is the same as
//! all of it computed from nothing.

use std::collections::BTreeMap;
use std::path::Path;

use attrflow::io::npy::writer;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::project::{DEMO, Project, Ran};

const PIPELINE: &str = r#"
config = "../configs/images.toml"

[stages.pretrain_loss]
kind = "pretrain-loss"
params = { loss = "${loss}" }

[stages.pretrain_loss.inputs]
unet = "../data/demo/model/unet"
scheduler = "../data/demo/model/scheduler"
latents = "../latents.npy"
text_embeddings = "../texts.npy"

[stages.influence]
kind = "influence"
each = { query = "${queries}" }

[stages.influence.inputs]
unet = "../data/demo/model/unet"
scheduler = "../data/demo/model/scheduler"
latents = "../latents.npy"
text_embeddings = "../texts.npy"
weights = "../${query.name}.safetensors"
pretrain_loss = "pretrain_loss.losses"
"#;

const CONFIG: &str = r#"
queries = [{ name = "one" }, { name = "two" }]
[loss]
time_samples = 2
captions = 1
noise = "per_image"
"#;

/// Side of a latent, tokens and width of a text.
const SIDE: usize = 8;
const TOKENS: usize = 3;
const WIDTH: usize = 64;
const STAGES: [&str; 3] = ["influence[one]", "influence[two]", "pretrain_loss"];

/// Numbers that look random and depend on their place alone.
fn number(place: usize) -> f32 {
    (place as f32 * 12.9898).sin()
}

/// Latents and texts, of which single images may be others.
struct Data {
    images: usize,
    latent: Option<usize>,
    /// Image and caption.
    text: Option<(usize, usize)>,
}

impl Data {
    fn write(&self, project: &Project) {
        let latent = 4 * SIDE * SIDE;
        let mut latents = Vec::new();
        for mirror in 0..2 {
            for image in 0..self.images {
                let other = if self.latent == Some(image) { 1_000_000 } else { 0 };
                let place = (image * 2 + mirror) * latent + other;
                latents.extend((0..latent).map(|at| number(place + at)));
            }
        }
        let text = TOKENS * WIDTH;
        let mut texts = Vec::new();
        for row in 0..2 * self.images {
            let other = if self.text == Some((row / 2, row % 2)) { 1_000_000 } else { 0 };
            texts.extend((0..text).map(|at| number(row * text + at + other)));
        }
        let shape = [2 * self.images, 4, SIDE, SIDE];
        writer::write_f32(project.path("latents.npy"), &shape, &latents).unwrap();
        writer::write_f32(project.path("texts.npy"), &[self.images, 2, TOKENS, WIDTH], &texts).unwrap();
    }
}

fn project(data: &Data) -> Project {
    let project = Project::new(1);
    project.write("pipelines/images.toml", PIPELINE);
    project.write("configs/images.toml", CONFIG);
    let file = fs_err::read(Path::new(DEMO).join("model/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let name = "conv_out.bias";
    for (query, scale) in [("one", 0x3f), ("two", 0x3e)] {
        // The exponents of all values: the network is another, and what it says is a number.
        let mut bytes = tensors.tensor(name).unwrap().data().to_vec();
        bytes.iter_mut().skip(3).step_by(4).for_each(|byte| *byte = scale);
        let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], &bytes).unwrap();
        project.write(&format!("{query}.safetensors"), safetensors::serialize([(name, view)], None).unwrap());
    }
    data.write(&project);
    project
}

fn run(project: &Project, time_samples: usize) -> Ran {
    let set = format!("loss.time_samples={time_samples}");
    let fixed =
        ["run", "pipelines/images.toml", "--json", "--device", "cpu", "--threads", "1", "--jobs", "2"];
    let ran = project.attrflow(fixed.into_iter().chain(["--set", &set]));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    ran
}

/// The units that a run computed, each with how many of the three stages computed it.
fn computed(ran: &Ran) -> BTreeMap<String, usize> {
    let mut units = BTreeMap::new();
    for unit in ran.events("unit_finished", "unit") {
        *units.entry(unit).or_default() += 1;
    }
    units
}

/// Units of all three stages.
fn all(blocks: &[&str], timesteps: &[usize]) -> BTreeMap<String, usize> {
    let name = |mirror: &str, block: &str, timestep| format!("{mirror}images {block} at timestep {timestep}");
    let of = |mirror: &'static str| {
        blocks.iter().flat_map(move |block| timesteps.iter().map(move |t| (name(mirror, block, *t), 3)))
    };
    of("").chain(of("mirror ")).collect()
}

#[test]
fn only_new_work_is_computed_and_results_equal_a_clean_run() {
    let plain = Data { images: 130, latent: None, text: None };
    let project = project(&plain);
    let both = ["0..128", "128..130"];
    assert_eq!(computed(&run(&project, 2)), all(&both, &[0, 500]));

    let more_timesteps = run(&project, 4);
    assert_eq!(computed(&more_timesteps), all(&both, &[250, 750]));
    assert_eq!(more_timesteps.computed(), STAGES);
    let four = project.results();
    assert_eq!(run(&project, 2).reused(), STAGES);

    let edits: [(Data, &[&str]); 5] = [
        // Two images more: full blocks are left alone, although all mirror images are elsewhere in the file.
        (Data { images: 132, ..plain }, &["128..132"]),
        (Data { latent: Some(129), ..plain }, &["128..130"]),
        (Data { text: Some((5, 0)), ..plain }, &["0..128"]),
        // The second caption of an image is read by nobody.
        (Data { text: Some((5, 1)), ..plain }, &[]),
        (plain, &[]),
    ];
    let mut last = BTreeMap::new();
    for (data, blocks) in edits {
        data.write(&project);
        assert_eq!(computed(&run(&project, 2)), all(blocks, &[0, 500]), "{blocks:?}");
        if data.images == 132 {
            last = project.results();
        }
    }

    // Another cache, and all at once.
    fs_err::remove_dir_all(project.path("cache")).unwrap();
    assert_eq!(computed(&run(&project, 4)), all(&both, &[0, 250, 500, 750]));
    assert_eq!(project.results(), four);
    fs_err::remove_dir_all(project.path("cache")).unwrap();
    Data { images: 132, latent: None, text: None }.write(&project);
    run(&project, 2);
    assert_eq!(project.results(), last);
}
