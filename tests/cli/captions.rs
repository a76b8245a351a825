//! Generating images for a list of captions: what an image depends on, and what is generated again.

use attrflow::io::npy::Npy;
use safetensors::SafeTensors;

use crate::project::{Project, Ran};

const PIPELINE: &str = r#"
config = "../configs/draw.toml"

[stages.draw]
kind = "generate"
params = "${draw}"

[stages.draw.inputs]
unet = "../data/demo/model/unet"
scheduler = "../data/demo/model/scheduler"
vae = "../data/demo/model/vae"
text_encoder = "../data/demo/model/text_encoder"
tokenizer = "../data/demo/model/tokenizer"
captions = "../captions.txt"
"#;

const CAPTIONS: &str = "an emoji of grinning face\na food emoji, pizza with fruit\na dog\n";

fn project() -> Project {
    let project = Project::finished();
    project.write("pipelines/draw.toml", PIPELINE);
    project.write("configs/draw.toml", "[draw]\nsteps = 4\nguidance_scale = 3.0\n");
    project.write("captions.txt", CAPTIONS);
    project
}

fn draw(project: &Project, sets: &[&str]) -> Ran {
    let fixed = ["run", "pipelines/draw.toml", "--json", "--device", "cpu", "--threads", "1", "--jobs", "2"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let ran = project.attrflow(fixed.into_iter().chain(sets));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    ran
}

fn drawn(ran: &Ran) -> Vec<String> {
    ran.events("unit_finished", "unit")
}

fn image(project: &Project, place: usize) -> Vec<u8> {
    fs_err::read(project.path(format!("results/draw/draw/images/{place}.png"))).unwrap()
}

fn latents(project: &Project) -> Vec<f32> {
    let npy = Npy::open(project.path("results/draw/draw/latents.npy")).unwrap();
    let mut values = Vec::new();
    npy.read_f32(0..npy.rows(), &mut values).unwrap();
    values
}

/// The same up to the rounding of sums in another order.
fn close(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().map(|value| value.abs()).fold(0.0, f32::max);
    let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(found.len() == expected.len() && apart <= 1e-4 * largest, "{apart} of {largest}");
}

#[test]
fn a_batch_shares_its_noise_and_is_a_unit() {
    let project = project();
    let ran = draw(&project, &["draw.batch_size=2"]);
    assert_eq!(drawn(&ran), ["captions 0..2", "captions 2..3"]);
    let shape = |name: &str| {
        Npy::open(project.path(format!("results/draw/draw/{name}.npy"))).unwrap().shape().to_vec()
    };
    assert_eq!(shape("latents"), [3, 4, 16, 16]);
    assert_eq!(shape("text_embeddings"), [3, 1, 16, 64]);
    let (pairs, before) = ((0..3).map(|place| image(&project, place)).collect::<Vec<_>>(), latents(&project));

    // The last batch draws for two whether it holds one or two: what was there stays, but for rounding.
    project.write("captions.txt", format!("{CAPTIONS}a cat\n"));
    assert_eq!(drawn(&draw(&project, &["draw.batch_size=2"])), ["captions 2..4"]);
    assert!(image(&project, 0) == pairs[0] && image(&project, 1) == pairs[1]);
    close(&latents(&project)[..before.len()], &before);

    // Another batch size is other noise, except for the first draw of all.
    project.write("captions.txt", CAPTIONS);
    // The first caption alone is a query of the demo, of the same seed, and its drawing is there.
    assert_eq!(drawn(&draw(&project, &[])), ["captions 1..2", "captions 2..3"]);
    assert!((1..3).all(|place| image(&project, place) != pairs[place]));
    let alone = fs_err::read(project.result("generate/grin/images/0.png")).unwrap();
    assert!(image(&project, 0) == alone);
    // The second batch continues the stream: the same caption at another index gives another image.
    project.write("captions.txt", "a cat\nan emoji of grinning face\n");
    draw(&project, &[]);
    assert!(image(&project, 1) != alone);
}

#[test]
fn noise_of_their_own_makes_captions_independent() {
    let project = project();
    let own = "draw.noise=per_image";
    assert_eq!(drawn(&draw(&project, &[own])), ["captions 0..1", "captions 1..2", "captions 2..3"]);
    let single = latents(&project);
    project.write("captions.txt", format!("{CAPTIONS}a cat\n"));
    assert_eq!(drawn(&draw(&project, &[own])), ["captions 3..4"]);
    assert!(latents(&project)[..single.len()] == single);

    // The batch size is not hashed, so it is generated again only when forced.
    let batched = [own, "draw.batch_size=3"];
    assert_eq!(drawn(&draw(&project, &batched)), [""; 0]);
    project.write("captions.txt", CAPTIONS);
    fs_err::remove_dir_all(project.path("cache/recipes-v2")).unwrap();
    assert_eq!(drawn(&draw(&project, &batched)), ["captions 0..3"]);
    close(&latents(&project), &single);
}

#[test]
fn line_ends_are_not_captions() {
    let project = project();
    draw(&project, &[]);
    project.write("captions.txt", CAPTIONS.replace('\n', "\r\n") + "\r\n\n");
    let ran = draw(&project, &[]);
    assert_eq!((ran.computed(), drawn(&ran)), (vec!["draw".to_owned()], Vec::new()));

    for (text, part) in [
        ("a cat\n\na dog\n", "captions.txt: line 2 is blank, expected a caption on every line"),
        ("\n", "captions.txt: no captions, expected one per line"),
    ] {
        project.write("captions.txt", text);
        let ran = project.attrflow(["run", "pipelines/draw.toml", "--json", "--device", "cpu"]);
        let errors = ran.events("stage_failed", "error");
        assert!(ran.code == 1 && errors.len() == 1 && errors[0].ends_with(part), "{ran:?}");
    }
}

#[test]
fn latents_that_are_not_finite_name_caption_and_timestep() {
    let project = project();
    let mut bytes =
        fs_err::read(project.path("data/demo/model/unet/diffusion_pytorch_model.safetensors")).unwrap();
    let (header, file) = SafeTensors::read_metadata(&bytes).unwrap();
    let bias = 8 + header + file.info("conv_out.bias").unwrap().data_offsets.0;
    // Finite in the file, and no longer after guidance.
    bytes[bias..bias + 4].copy_from_slice(&f32::MAX.to_le_bytes());
    project.write("spoilt.bin", bytes);
    project.edit("pipelines/draw.toml", "captions =", "checkpoint = \"../spoilt.bin\"\ncaptions =");
    let ran = project.attrflow(["run", "pipelines/draw.toml", "--json", "--device", "cpu", "--jobs", "1"]);
    let errors = ran.events("stage_failed", "error");
    assert_eq!(ran.code, 1);
    assert_eq!(errors, ["the latents of caption 0 are not finite after the step at timestep 750"]);
}

#[test]
fn a_caption_or_captions() {
    let project = project();
    let refused = |parts: &[&str]| {
        let ran = project.attrflow(["plan", "pipelines/draw.toml"]);
        assert_eq!((ran.code, ran.err.matches("error: ").count()), (2, 1), "{ran:?}");
        assert!(parts.iter().all(|part| ran.err.contains(part)), "{}", ran.err);
    };
    project.edit("configs/draw.toml", "steps = 4", "caption = \"a cat\"\nsteps = 4");
    refused(&["`caption` and the input `captions` exclude each other", "configs/draw.toml:2:1"]);
    project.edit("configs/draw.toml", "caption = \"a cat\"\n", "");
    project.edit("pipelines/draw.toml", "captions = \"../captions.txt\"\n", "");
    refused(&["nothing to draw: expected the parameter `caption` or the input `captions`", "draw.toml:4:9"]);
}
