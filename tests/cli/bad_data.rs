//! Data that cannot be used: exit code 1, one message with the file, and nothing of the stage is kept.

use std::path::Path;

use attrflow_engine::provenance::manifest::{self, Outcome};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::project::{DEMO, Project, copy, files};

const LOSS: &str = r#"
[stages.loss]
kind = "pretrain-loss"
params = { loss = { time_samples = 2, captions = 2, noise = "per_image" } }
inputs = { unet = "../model/unet", scheduler = "../model/scheduler", latents = "../latents.npy", text_embeddings = "../texts.npy" }
"#;

const UNLEARN: &str = r#"
[stages.unlearn]
kind = "unlearn"
params = { grad_accum_steps = 1, batch_size = 2 }
inputs = { unet = "../model/unet", scheduler = "../model/scheduler", fisher = "../fisher.safetensors", latents = "../latents.npy", text_embeddings = "../texts.npy" }
"#;

const LATENTS: &str = r#"
[stages.latents]
kind = "latents"
params = { pixels = 32, captions = 2 }
inputs = { images = "../images", captions = "../captions.json", vae = "../model/vae", text_encoder = "../model/text_encoder", tokenizer = "../model/tokenizer" }
"#;

const UNET: &str = "model/unet/diffusion_pytorch_model.safetensors";

/// Small valid files, each read by the only stage of a pipeline.
struct Bench(Project);

impl Bench {
    fn new() -> Self {
        let project = Project::finished();
        copy(&Path::new(DEMO).join("model"), &project.path("model"));
        copy(&project.result("data/files/images"), &project.path("images"));
        for (name, from) in [
            ("captions.json", "data/files/captions.json"),
            ("latents.npy", "latents/latents.npy"),
            ("texts.npy", "latents/text_embeddings.npy"),
            ("fisher.safetensors", "fisher/fisher.safetensors"),
        ] {
            project.write(name, fs_err::read(project.result(from)).unwrap());
        }
        for (name, text) in [("loss", LOSS), ("unlearn", UNLEARN), ("latents", LATENTS)] {
            project.write(&format!("pipelines/{name}.toml"), text);
        }
        Self(project)
    }

    /// Runs a pipeline of one stage, which must fail with one line that holds all `parts`.
    fn fails(&self, pipeline: &str, parts: &[&str]) {
        let project = &self.0;
        let kept = |folder: &str| project.cached(folder);
        let before = [kept("objects"), kept("recipes-v2")];
        let ran = project.attrflow(["run", &format!("pipelines/{pipeline}.toml"), "--json"]);
        assert_eq!(ran.code, 1, "{parts:?}: {ran:?}");
        let errors = ran.events("stage_failed", "error");
        let [error] = errors.as_slice() else { panic!("{parts:?}: {errors:?}") };
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
        // One line, nothing said twice, no path as it was joined.
        assert!(
            !error.contains('\n') && !error.contains("..") | parts.iter().any(|p| p.contains("..")),
            "{error}"
        );
        let said: Vec<&str> = error.split(": ").collect();
        assert!(said.windows(2).all(|pair| pair[0] != pair[1]), "{error}");
        assert_eq!([kept("objects"), kept("recipes-v2")], before, "{error}");
        assert_eq!(kept("tmp"), ["gate"], "{error}");
        assert!(!project.path("results").join(pipeline).exists(), "{error}");
        let runs = manifest::list(&project.path("cache/runs").join(pipeline));
        let record = &manifest::read(&runs[0]).unwrap().stages[0];
        assert_eq!((record.outcome, record.error.as_ref()), (Outcome::Failed, Some(error)));
    }

    /// Damages a file, expects the failure, and puts the file back.
    fn with(&self, file: &str, damage: impl FnOnce(Vec<u8>) -> Vec<u8>, pipeline: &str, parts: &[&str]) {
        let good = fs_err::read(self.0.path(file)).unwrap();
        let bad = damage(good.clone());
        assert_ne!(bad, good, "{file}");
        self.0.write(file, bad);
        let path = self.0.path(file).display().to_string();
        self.fails(pipeline, &[parts, &[path.as_str()]].concat());
        self.0.write(file, good);
    }

    /// As [`Bench::with`], for a text that is replaced.
    fn edited(&self, file: &str, from: &str, to: &str, pipeline: &str, parts: &[&str]) {
        let damage = |bytes: Vec<u8>| {
            let text = String::from_utf8(bytes).unwrap();
            text.replacen(from, to, 1).into_bytes()
        };
        self.with(file, damage, pipeline, parts);
    }

    /// As [`Bench::with`] for parameters, without a file in the message.
    fn asked(&self, pipeline: &str, from: &str, to: &str, parts: &[&str]) {
        let file = format!("pipelines/{pipeline}.toml");
        let good = fs_err::read(self.0.path(&file)).unwrap();
        self.0.edit(&file, from, to);
        self.fails(pipeline, parts);
        self.0.write(&file, good);
    }
}

fn short(by: usize) -> impl FnOnce(Vec<u8>) -> Vec<u8> {
    move |mut bytes| {
        bytes.truncate(bytes.len() - by);
        bytes
    }
}

/// Replaces bytes of an array's header by as many others.
fn header(from: &str, to: &str) -> impl FnOnce(Vec<u8>) -> Vec<u8> {
    let (from, to) = (from.as_bytes().to_vec(), format!("{to:<width$}", width = from.len()).into_bytes());
    move |mut bytes| {
        let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(&to);
        bytes
    }
}

/// Writes tensors again after a change of their list.
fn tensors(
    change: impl FnOnce(&mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>),
) -> impl FnOnce(Vec<u8>) -> Vec<u8> {
    move |bytes| {
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let own = |(name, view): (String, TensorView<'_>)| {
            (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
        };
        let mut list: Vec<_> = file.tensors().into_iter().map(own).collect();
        list.sort();
        change(&mut list);
        let view = |(_, dtype, shape, data): &'_ (String, Dtype, Vec<usize>, Vec<u8>)| {
            (*dtype, shape.clone(), data.clone())
        };
        let parts: Vec<_> = list.iter().map(view).collect();
        let views = list.iter().zip(&parts).map(|((name, ..), (dtype, shape, data))| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize(views.collect::<Vec<_>>(), metadata).unwrap()
    }
}

#[test]
fn valid_data_runs() {
    let bench = Bench::new();
    for pipeline in ["loss", "unlearn", "latents"] {
        let ran = bench.0.attrflow(["run", &format!("pipelines/{pipeline}.toml")]);
        assert!(ran.code == 0 && !ran.err.contains("error"), "{pipeline}: {ran:?}");
    }
}

#[test]
fn arrays_that_do_not_fit_are_named() {
    let bench = Bench::new();
    bench.with(
        "latents.npy",
        short(5),
        "loss",
        &["truncated file: 49275 bytes, expected 49280 for float32 [12, 4, 16, 16]"],
    );
    bench.with(
        "latents.npy",
        |bytes| bytes[..9].to_vec(),
        "unlearn",
        &["not a npy file: it ends before its header does"],
    );
    bench.with("texts.npy", |_| b"no array at all".to_vec(), "loss", &["not a npy file"]);
    let shape = "(12, 4, 16, 16)";
    bench.with(
        "latents.npy",
        header(shape, "(12, 1024)"),
        "loss",
        &["shape [12, 1024], expected [_, _, _, _]"],
    );
    let expected = "shape [12, 8, 16, 8], expected [_, 4, _, _]";
    bench.with(
        "latents.npy",
        header(shape, "(12, 8, 16, 8)"),
        "loss",
        &["the latents do not fit the network", expected],
    );
    bench.with("latents.npy", header(shape, "(12, 8, 16, 8)"), "unlearn", &[expected]);
    let expected = "shape [6, 2, 64, 16], expected [_, _, _, 64]";
    bench.with("texts.npy", header("(6, 2, 16, 64)", "(6, 2, 64, 16)"), "loss", &[expected]);
    let n = "12 rows, expected 4 or 8 (with mirror images)";
    bench.with(
        "texts.npy",
        header("(6, 2, 16, 64)", "(4, 3, 16, 64)"),
        "loss",
        &[n, "has 4 rows", "latents.npy"],
    );
    bench.with("texts.npy", header("(6, 2, 16, 64)", "(4, 3, 16, 64)"), "unlearn", &[n]);
    let integers = |bytes: Vec<u8>| header(shape, "(6, 4, 16, 16)")(header("<f4", "<i8")(bytes));
    bench.with("latents.npy", integers, "loss", &["dtype int64, expected a float type"]);
    bench.asked(
        "loss",
        "captions = 2",
        "captions = 3",
        &["texts.npy: 2 captions per image, expected at least 3"],
    );
}

#[test]
fn a_value_that_is_not_finite_is_named_before_the_pass() {
    let bench = Bench::new();
    let before = bench.0.cached("recipes-v2");
    let with = |file: &str, from_end: usize, value: f32| {
        let mut bytes = fs_err::read(bench.0.path(file)).unwrap();
        let at = bytes.len() - from_end;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        bytes
    };
    // The last image of the data set, its mirror image, and the last word of the last caption.
    let cases = [
        ("latents.npy", with("latents.npy", 6 * 4096 + 4, f32::NAN), "[5, 3, 15, 15] is NaN"),
        ("latents.npy", with("latents.npy", 4, f32::NEG_INFINITY), "[11, 3, 15, 15] is -inf"),
        ("texts.npy", with("texts.npy", 4, f32::INFINITY), "[5, 1, 15, 63] is inf"),
    ];
    for (file, bytes, found) in cases {
        let good = fs_err::read(bench.0.path(file)).unwrap();
        bench.0.write(file, bytes);
        let ran = bench.0.attrflow(["run", "pipelines/loss.toml"]);
        let path = bench.0.path(file).display().to_string();
        let expected = format!("error: stage `loss`: {path}: the value at {found}, expected finite values\n");
        assert!(ran.code == 1 && ran.err.ends_with(&expected), "{ran:?}");
        // Nothing was computed, not even the units before it.
        assert_eq!(bench.0.cached("recipes-v2"), before);
        bench.0.write(file, good);
    }
}

#[test]
fn weights_that_do_not_fit_are_named() {
    let bench = Bench::new();
    let first = "conv_in.bias";
    let at = |list: &[(String, Dtype, Vec<usize>, Vec<u8>)]| {
        list.iter().position(|(name, ..)| name == first).unwrap()
    };
    bench.with(UNET, tensors(|list| drop(list.remove(at(list)))), "loss", &["1 missing: conv_in.bias"]);
    let renamed = &["1 missing: conv_in.bias (the file has conv_inn.bias)", "1 unexpected: conv_inn.bias"];
    bench.with(
        UNET,
        tensors(|list| {
            let at = at(list);
            list[at].0 = "conv_inn.bias".into()
        }),
        "loss",
        renamed,
    );
    let extra = ("zzz.weight".to_owned(), Dtype::F32, vec![1], vec![0; 4]);
    bench.with(UNET, tensors(|list| list.push(extra)), "unlearn", &["1 unexpected: zzz.weight"]);
    let shape = &["1 of another shape: conv_in.bias [4, 8], expected [32]"];
    bench.with(
        UNET,
        tensors(|list| {
            let at = at(list);
            list[at].2 = vec![4, 8]
        }),
        "loss",
        shape,
    );
    bench.with(
        UNET,
        short(100),
        "loss",
        &["neither a safetensors nor a torch.save file: incomplete metadata"],
    );
    bench.with(
        UNET,
        |bytes| bytes[..4].to_vec(),
        "loss",
        &["neither a safetensors nor a torch.save file: header too small"],
    );
    let config = "model/unet/config.json";
    bench.edited(config, "\"silu\"", "\"gelu\"", "loss", &["`act_fn` is \"gelu\", supported: \"silu\""]);
    bench.with(config, short(20), "loss", &["EOF while parsing a string at line"]);
    fs_err::remove_file(bench.0.path(config)).unwrap();
    bench.fails("loss", &["model/unet/config.json`: No such file"]);
}

#[test]
fn a_fisher_information_that_does_not_fit_is_named() {
    let bench = Bench::new();
    let fisher = "fisher.safetensors";
    let name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let zeros = format!("`{name}` is zero in 2 of 2048 places");
    let zeroed = || tensors(|list| list[0].3[..16].fill(0));
    bench.with(fisher, zeroed(), "unlearn", &[&zeros, "set `damping` or `relative_damping` to continue"]);
    bench.with(
        fisher,
        short(9),
        "unlearn",
        &["neither a safetensors nor a torch.save file: incomplete metadata"],
    );
    bench.with(
        fisher,
        tensors(|list| drop(list.remove(0))),
        "unlearn",
        &[&format!("it lacks 1 of the selected weights, for instance `{name}`")],
    );
    bench.with(
        fisher,
        tensors(|list| list[0].2 = vec![2048]),
        "unlearn",
        &["has the shape [2048], the parameter has [32, 64]"],
    );
    let lacks = &[
        "fisher.safetensors: it lacks 56 of the selected weights, for instance `down_blocks.0.attentions.0",
        "attn1.to_k.weight`",
    ];
    bench.asked("unlearn", "{ grad", "{ select = \"attn\", grad", lacks);
    let nothing = &["`select` is [\"nope\"], which no weight of the model has in its name"];
    bench.asked("unlearn", "{ grad", "{ select = [\"nope\"], grad", nothing);
    bench.asked(
        "unlearn",
        "{ grad",
        "{ index = 7, grad",
        &["`index` is 7, expected less than 6, the rows of ", "texts.npy"],
    );

    bench.0.write(fisher, zeroed()(fs_err::read(bench.0.path(fisher)).unwrap()));
    bench.0.edit("pipelines/unlearn.toml", "{ grad", "{ damping = 1e-9, grad");
    assert_eq!(bench.0.attrflow(["run", "pipelines/unlearn.toml"]).code, 0);
}

#[test]
fn images_and_captions_that_cannot_be_read_are_named() {
    let bench = Bench::new();
    let (captions, image) = ("captions.json", "images/000003.png");
    bench.with(
        captions,
        |bytes| bytes[..300].to_vec(),
        "latents",
        &["not a COCO captions file: EOF while parsing"],
    );
    bench.with(
        captions,
        |_| b"not json".to_vec(),
        "latents",
        &["not a COCO captions file: expected ident at line 1"],
    );
    bench.edited(
        captions,
        "000003.png",
        "000002.png",
        "latents",
        &["file_name 000002.png occurs twice in `images`"],
    );
    bench.asked(
        "latents",
        "captions = 2",
        "captions = 9",
        &["captions.json: 6 images have fewer than 9 captions"],
    );
    bench.with(image, |_| b"no image".to_vec(), "latents", &["not a readable image"]);
    bench.with(
        image,
        |bytes| bytes[..700].to_vec(),
        "latents",
        &["not a readable image: the file is cut off"],
    );
    fs_err::remove_file(bench.0.path(image)).unwrap();
    bench.fails("latents", &["/images: 1 of 6 images are missing, for instance 000003.png"]);
    std::os::unix::fs::symlink("nowhere.png", bench.0.path(image)).unwrap();
    bench.fails("latents", &["the input `images` cannot be read", "000003.png`"]);
}

#[test]
fn files_with_another_digest_or_content_are_refused() {
    let bench = Bench::new();
    let get = |file: &str| {
        bench.0.write(
            "pipelines/get.toml",
            format!("[stages.get]\nkind = \"download\"\nparams = {{ files = [{file}] }}\n"),
        )
    };
    let wrong = "0".repeat(64);
    get(&format!("{{ from = \"../captions.json\", sha256 = \"{wrong}\" }}"));
    bench.fails("get", &["captions.json: sha256 ", &format!("expected {wrong}")]);
    get(&format!("{{ from = \"../data/demo/images.zip\", unpack = true, sha256 = \"{wrong}\" }}"));
    bench.fails("get", &["images.zip: sha256 ", &format!("expected {wrong}")]);
    get("{ from = \"../captions.json\", unpack = true }");
    bench.fails("get", &["captions.json: begins with 7b 0a"]);
    get("{ from = \"../captions.json\" }, { from = \"../captions.json\" }");
    let ran = bench.0.attrflow(["run", "pipelines/get.toml"]);
    assert!(ran.code == 2 && ran.err.contains("error: two files would become `captions.json`"), "{ran:?}");
    let mut zip = zip::ZipWriter::new(fs_err::File::create(bench.0.path("evil.zip")).unwrap());
    zip.start_file("../evil.txt", zip::write::SimpleFileOptions::default()).unwrap();
    zip.finish().unwrap();
    get("{ from = \"../evil.zip\", unpack = true }");
    bench.fails("get", &["evil.zip: entry \"../evil.txt\" refused: its path contains `..`"]);
    assert!(!files(&bench.0.root).keys().any(|name| name.ends_with("evil.txt")));
}

#[test]
fn independent_stages_continue_after_a_failure() {
    let project = Project::new(6);
    project.edit("data/demo/captions.json", "000003.png", "nowhere.png");
    let ran = project.attrflow(["run", "pipelines/demo.toml", "--json"]);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.events("stage_failed", "stage"), ["latents"]);
    assert_eq!(ran.computed(), ["data", "generate[grin]", "generate[pizza]"]);
    let repeated = ["influence", "ranking", "unlearn"]
        .map(|stage| ["grin", "pizza"].map(|item| format!("{stage}[{item}]")));
    let mut blocked = [repeated.concat(), vec!["fisher".to_owned(), "pretrain_loss".to_owned()]].concat();
    blocked.sort();
    assert_eq!(ran.events("stage_blocked", "stage"), blocked);
    let ran = project.attrflow(["run", "pipelines/demo.toml"]);
    assert!(ran.out.contains("0 ran, 3 cached, 1 failed, 8 blocked in "), "{ran:?}");
    assert_eq!(ran.err.lines().count(), 1, "{ran:?}");
    // A path below an output where there is no file.
    project.edit("pipelines/parts/emoji.toml", "data.files/images", "data.files/imagez");
    let ran = project.attrflow(["run", "pipelines/demo.toml"]);
    let said = "error: stage `latents`: the input `images` reads `imagez` below the output `data.files`, which has captions.json, images, model\n";
    assert_eq!((ran.code, ran.err.as_str()), (1, said));
}

#[test]
fn a_cache_that_cannot_be_read_is_code_4_and_names_the_file() {
    let project = Project::finished();
    for path in files(&project.path("cache/recipes-v2")).values() {
        fs_err::remove_file(path).unwrap();
        fs_err::create_dir(path).unwrap();
    }
    for verb in ["run", "plan", "status"] {
        let ran = project.attrflow([verb, "pipelines/demo.toml"]);
        assert_eq!((ran.code, ran.err.lines().count()), (4, 1), "{verb}: {ran:?}");
        assert!(
            ran.err.contains("/cache/recipes-v2/") && ran.err.contains("found a folder, expected a file"),
            "{ran:?}"
        );
    }
    fs_err::remove_dir_all(project.path("cache/recipes-v2")).unwrap();
    assert_eq!(project.run(&["--target", "data"]).computed(), ["data"]);
}
