//! The published experiment at its real size through the program itself: archives from a server, the network of
//! 57.37 M parameters, and influences as Python's, which [`real`](crate::real) holds formula by formula.
//!
//! Inputs, hyperparameters and golden numbers are those of `tests/golden/make_real.py`; the places of all files
//! and the pipeline are those of the published experiment. Three minutes on two cores, 6 GB of memory, 4 GB of disk:
//!
//! ```sh
//! cargo nextest run --test numerics --run-ignored only pipeline
//! ```

use std::path::Path;

use attrflow::io::NpyWriter;
use attrflow::io::npy::writer;
use attrflow::io::npy::{Dtype, Npy};
use attrflow::io::torch::{self, Entry};
use attrflow::method::selection::Selection;
use attrflow::models::weights::read;
use image::RgbImage;
use serde_json::json;
use sevenz_rust2::EncoderMethod;
use tch::{Device, Tensor};
use tempfile::TempDir;

use crate::golden::{Tensors, path};
use crate::project::{Ran, command};
use crate::published::{Files, seven_zip, zip};
use crate::real::{CAPTIONS, IMAGES, LATENT, LR, TEXT, data, fisher, network, shape};
use crate::ruled::{Report, normal};
use crate::server::{Fault, Server};

const DATASET: &str = "sywang/AttributeByUnlearning";
const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";

/// The hyperparameters of the golden run, but for [`LR`].
const GOLDEN: [&str; 21] = [
    "queries=[{ name = \"0\", index = 0 }]",
    "loss.batch_size=32",
    "loss.time_samples=4",
    "loss.captions=2",
    "loss.seed=30",
    "loss.noise=per_batch",
    "fisher.epochs=1",
    "fisher.batch_size=4",
    "fisher.seed=3",
    "fisher.caption_draw=batch",
    "fisher.weighting=batch",
    "fisher.select=all",
    "unlearn.steps=2",
    "unlearn.grad_accum_steps=2",
    "unlearn.batch_size=4",
    "unlearn.seed=4",
    "unlearn.images=3",
    "ranking.rows=3",
    "run.micro_batch=16",
    "run.threads=2",
    "run.jobs=1",
];

/// What `torch.save` would write.
fn saved(tensors: &Tensors, dtype: Dtype, file: &Path) -> Vec<u8> {
    let stored = |(name, tensor): (&String, &Tensor)| {
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
        (name.clone(), tensor.size().iter().map(|&size| size as usize).collect(), bytes)
    };
    let stored: Vec<(String, Vec<usize>, Vec<u8>)> = tensors.iter().map(stored).collect();
    let entries = stored.iter().map(|(name, shape, bytes)| Entry { name, dtype, shape, bytes });
    torch::write(file, &entries.collect::<Vec<_>>()).unwrap();
    fs_err::read(file).unwrap()
}

fn array(tensor: &Tensor, dtype: Dtype, file: &Path) -> Vec<u8> {
    let shape: Vec<usize> = tensor.size().iter().map(|&size| size as usize).collect();
    let mut writer = NpyWriter::create(file, dtype, &shape).unwrap();
    writer.write_f32(&Vec::try_from(tensor.flatten(0, -1)).unwrap()).unwrap();
    writer.finish().unwrap();
    fs_err::read(file).unwrap()
}

fn named<const N: usize>(files: [(&str, Vec<u8>); N]) -> Files {
    files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect()
}

/// The four arrays, with text embeddings of the type.
fn arrays(texts: Dtype, file: &Path) -> Files {
    let (latents, embeddings) = data();
    let embeddings = embeddings.view_([&[IMAGES, CAPTIONS][..], &TEXT].concat().as_slice());
    let query = normal(&LATENT, 3).unsqueeze(0);
    let text = normal(&TEXT, 4).view_(shape(&[1, 1], &TEXT).as_slice());
    named([
        ("coco17_train_latents.npy", array(&latents, Dtype::F32, file)),
        ("coco17_train_text_embeddings.npy", array(&embeddings, texts, file)),
        ("coco17_sample_latents.npy", array(&query, Dtype::F32, file)),
        ("coco17_sample_text_embeddings.npy", array(&text, texts, file)),
    ])
}

fn picture(shade: u8, file: &Path) -> Vec<u8> {
    let file = file.with_extension("png");
    RgbImage::from_pixel(128, 128, image::Rgb([shade, 128, 255 - shade])).save(&file).unwrap();
    fs_err::read(file).unwrap()
}

/// COCO with three images of five captions each: the rows of the golden run.
fn coco(file: &Path) -> Server {
    let images: Vec<_> =
        (0..IMAGES).map(|id| json!({ "id": id, "file_name": format!("{id}.png") })).collect();
    let caption =
        |id: i64| json!({ "id": id, "image_id": id / CAPTIONS, "caption": format!("caption {id}") });
    let captions: Vec<_> = (0..IMAGES * CAPTIONS).map(caption).collect();
    let text = serde_json::to_vec(&json!({ "images": images, "annotations": captions })).unwrap();
    let images = (0..IMAGES).map(|id| (format!("train2017/{id}.png"), picture(id as u8 * 100, file)));
    Server::new().file("/zips/train2017.zip", zip(&images.collect())).file(
        "/annotations/annotations_trainval2017.zip",
        zip(&named([("annotations/captions_train2017.json", text)])),
    )
}

/// A project with the repository's pipeline and config, and the servers that everything else comes from.
struct Web {
    folder: TempDir,
    hub: Server,
    coco: Server,
}

impl Web {
    fn new(golden: &mut Report) -> (Self, Tensors) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        let root = folder.path().join("project");
        for folder in ["pipelines", "configs/mscoco/unet", "configs/mscoco/scheduler"] {
            fs_err::create_dir_all(root.join(folder)).unwrap();
        }
        for name in [
            "pipelines/mscoco.toml",
            "configs/mscoco.toml",
            "configs/mscoco/unet/config.json",
            "configs/mscoco/scheduler/scheduler_config.json",
        ] {
            fs_err::copy(path(name), root.join(name)).unwrap();
        }
        let (unet, expected) = network();
        let information = fisher(&unet, Selection::All);
        golden.digest("fisher", &information, &expected, 1e-4);
        let model = seven_zip(
            &named([
                ("model.bin", saved(unet.parameters(), Dtype::F32, &file)),
                ("fisher_info.pt", saved(&information, Dtype::F64, &file)),
            ]),
            EncoderMethod::COPY,
        );
        let samples =
            named([("sample_caption.txt", b"a caption\n".to_vec()), ("sample/0.png", picture(255, &file))]);
        let mut dataset = named([
            ("mscoco/model_fisher.7z", model),
            ("mscoco/sample.7z", seven_zip(&samples, EncoderMethod::COPY)),
        ]);
        let latents = seven_zip(&arrays(Dtype::F32, &file), EncoderMethod::COPY);
        for (index, volume) in latents.chunks(latents.len().div_ceil(3)).enumerate() {
            let archive = "mscoco/latents_text_embeddings/latents_text_embeddings.7z";
            dataset.insert(format!("{archive}.{:03}", index + 1), volume.to_vec());
        }
        let listed: Vec<_> = dataset.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
        let model = format!("/datasets/{DATASET}/resolve/{COMMIT}/mscoco/model_fisher.7z");
        let hub = Server::new()
            .hub_dataset(DATASET, COMMIT, &listed)
            .fault(&model, Fault::Drop { after: 100_000_000, times: 2 });
        (Self { hub, coco: coco(&file), folder }, expected)
    }

    fn root(&self) -> std::path::PathBuf {
        self.folder.path().join("project")
    }

    fn run(&self, sets: &[&str]) -> Ran {
        let coco = format!("sources.coco={}", self.coco.url(""));
        let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &self.root());
        run.args(["run", "pipelines/mscoco.toml", "--json", "--device", "cpu", "--set", &coco]);
        run.args(["--set", &format!("unlearn.lr={LR:e}")]);
        run.args(GOLDEN.iter().chain(sets).flat_map(|set| ["--set", set]));
        run.env("HF_ENDPOINT", self.hub.url("")).env("HF_HOME", self.folder.path()).env_remove("HF_TOKEN");
        let ran = Ran::from(run.output().unwrap());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran
    }

    fn result(&self, name: &str) -> std::path::PathBuf {
        self.root().join("results/mscoco").join(name)
    }

    fn floats(&self, name: &str) -> Tensor {
        let npy = Npy::open(self.result(name)).unwrap();
        let mut values = vec![0.0; npy.rows()];
        npy.read_f32_at(0, &mut values).unwrap();
        Tensor::from_slice(&values)
    }

    /// Holds losses, ranks and influences against Python's.
    fn hold(&self, what: &str, expected: &Tensors, losses: f64, influence: f64, report: &mut Report) {
        let mut tensor = |name: &str, found: Tensor, tolerance| {
            report.tensor(&format!("{what}: {name}"), &found, &expected[name], tolerance);
        };
        tensor("pretrained", self.floats("pretrain_loss/pretrain_loss.npy"), losses);
        tensor("unlearned", self.floats("influence/0/unlearned_loss.npy"), losses);
        tensor("influence", self.floats("influence/0/influence.npy"), influence);
        // As numpy writes it, to the last byte.
        let rank = self.folder.path().join("rank.npy");
        let expected = Vec::<i64>::try_from(&expected["rank"]).unwrap();
        writer::write_i64(&rank, &[expected.len()], &expected).unwrap();
        let found = fs_err::read(self.result("influence/0/rank.npy")).unwrap();
        assert_eq!(found, fs_err::read(rank).unwrap(), "{what}: the ranks are not {expected:?}");
    }
}

#[test]
#[ignore = "three minutes, 6 GB of memory, 4 GB of disk"]
fn the_published_experiment_at_its_size() {
    let mut report = Report::default();
    let (web, expected) = Web::new(&mut report);
    web.run(&[]);
    web.hold("published Fisher information", &expected, 1e-5, 2e-3, &mut report);
    let model = web.hub.ranges(&format!("/datasets/{DATASET}/resolve/{COMMIT}/mscoco/model_fisher.7z"));
    assert_eq!(model.len(), 3, "{model:?}");

    // Nothing comes again; the program's own Fisher information is that of the file.
    web.hub.forget();
    let ran = web.run(&["compute.fisher=true"]);
    assert_eq!(web.hub.asked(), []);
    assert!(ran.computed().contains(&"fisher".to_owned()), "{ran:?}");
    web.hold("own Fisher information", &expected, 1e-5, 2e-3, &mut report);
    let information = read(&web.result("fisher/fisher.safetensors"), Device::Cpu).unwrap();
    report.digest("fisher", &information, &expected, 1e-4);

    // The published texts are of half precision: three digits of each number, and more of their means.
    let folder = web.root().join("half");
    fs_err::create_dir(&folder).unwrap();
    for (name, bytes) in arrays(Dtype::F16, &web.folder.path().join("file")) {
        fs_err::write(folder.join(name), bytes).unwrap();
    }
    web.run(&["sources.latents=./half"]);
    web.hold("half precision", &expected, 1e-4, 1e-2, &mut report);
    report.finish();
}
