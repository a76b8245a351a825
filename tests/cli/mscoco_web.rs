//! The published experiment from downloads to influence, with servers that fail like those of COCO and the Hub.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use attrflow::io::download::lock_file::{Pin, Pins};

use crate::kill::wait_for_orphans;
use crate::mscoco::{COMPUTE, SMALL, STAGES, as_the_demo, pipeline, same};
use crate::project::{DEMO, Project, Ran, command, files};
use crate::published::{Files, Published};
use crate::server::{Asked, Fault, Server, sha256};

const DATASET: &str = "sywang/AttributeByUnlearning";
const MODEL: &str = "stabilityai/stable-diffusion-2";
const COMMIT: &str = "00112233445566778899aabbccddeeff00112233";
const IMAGES: &str = "/zips/train2017.zip";
const ANNOTATIONS: &str = "/annotations/annotations_trainval2017.zip";

/// A volume of the latents, as a path in the data set.
fn volume(number: usize) -> String {
    format!("mscoco/latents_text_embeddings/latents_text_embeddings.7z.{number:03}")
}

/// The path of a file of the data set on its server.
fn at(path: &str) -> String {
    format!("/datasets/{DATASET}/resolve/{COMMIT}/{path}")
}

/// The miniature experiment with an empty cache, and its servers.
struct Web {
    project: Project,
    published: Published,
    /// The published data set, by path.
    dataset: Files,
    hub: Server,
    coco: Server,
    token: Option<&'static str>,
}

impl Web {
    fn new() -> Self {
        let (project, published) = pipeline();
        // The demo's results are kept for comparison.
        fs_err::rename(project.path("cache"), project.path("cache of the demo")).unwrap();
        let archives = published.repository().into_iter();
        let dataset: Files = archives.map(|(name, bytes)| (format!("mscoco/{name}"), bytes)).collect();
        let hub = Server::new().hub_dataset(DATASET, COMMIT, &listed(&dataset));
        let coco = Server::new();
        for (path, bytes) in published.coco() {
            coco.put(&format!("/{path}"), bytes);
        }
        Self { project, published, dataset, hub, coco, token: None }
    }

    /// `attrflow run` of the small experiment, with the servers for the Hub and COCO.
    fn command(&self, arguments: &[&str]) -> Command {
        let coco = format!("sources.coco={}", self.coco.url(""));
        let mut run = command(Path::new(env!("CARGO_BIN_EXE_attrflow")), &self.project.root);
        run.args(["run", "pipelines/mscoco.toml", "--json", "--device", "cpu", "--set", &coco]);
        run.args(SMALL.iter().flat_map(|set| ["--set", set])).args(arguments);
        run.env("HF_ENDPOINT", self.hub.url("")).env("HF_HOME", &self.project.root).env_remove("HF_TOKEN");
        if let Some(token) = self.token {
            run.env("HF_TOKEN", token);
        }
        run
    }

    fn try_run(&self, arguments: &[&str]) -> Ran {
        self.command(arguments).output().unwrap().into()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let ran = self.try_run(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran
    }

    /// Checks that losses, influence and tables equal those of the demo in miniature.
    #[track_caller]
    fn finished(&self) {
        as_the_demo(&self.project);
        for query in ["0", "1"] {
            assert!(self.project.path(format!("results/mscoco/ranking/{query}/top.png")).exists());
        }
        assert_eq!(self.project.cached("downloads"), [""; 0]);
        assert_eq!(self.project.cached("tmp"), ["gate"]);
    }

    fn pins(&self) -> Pins {
        Pins::read(&self.project.path("attrflow.lock")).unwrap()
    }

    /// The pins of everything in these places.
    fn expected(&self, coco: &[&str], dataset: &dyn Fn(&str) -> bool) -> Pins {
        let pin = |bytes: &[u8]| Pin { sha256: sha256(bytes), bytes: bytes.len() as u64 };
        let coco = coco.iter().map(|path| (self.coco.url(path), pin(&self.published.coco()[&path[1..]])));
        let dataset = self.dataset.iter().filter(|(path, _)| dataset(path));
        let dataset =
            dataset.map(|(path, bytes)| (format!("hf://datasets/{DATASET}@main/{path}"), pin(bytes)));
        let hub = BTreeMap::from([(format!("datasets/{DATASET}@main"), COMMIT.to_owned())]);
        Pins { version: 1, hub, files: coco.chain(dataset).collect() }
    }

    /// Whether the cache or the results contain any of the latents or of their archive.
    fn holds_latents(&self) -> bool {
        let volumes =
            self.dataset.iter().filter(|(path, _)| path.contains("latents")).map(|(_, bytes)| bytes);
        let wanted: Vec<&Vec<u8>> = self.published.latents.values().chain(volumes).collect();
        let objects = files(&self.project.path("cache/objects")).into_values();
        let results = files(&self.project.path("results/mscoco")).into_values();
        objects.chain(results).any(|path| wanted.contains(&&fs_err::read(path).unwrap()))
    }
}

fn listed(files: &Files) -> Vec<(&str, &[u8])> {
    files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect()
}

/// The requests for bytes whose path contains a text.
fn gets(server: &Server, part: &str) -> Vec<Asked> {
    server.asked().into_iter().filter(|asked| asked.verb == "GET" && asked.path.contains(part)).collect()
}

fn from(byte: usize) -> Option<String> {
    Some(format!("bytes={byte}-"))
}

#[test]
fn from_downloads_to_influence() {
    let mut web = Web::new();
    let size = |path: &str| web.dataset[path].len();
    let (first, third) = (size(&volume(1)), size(&volume(3)));
    // Large files of the Hub are on separate servers, by their digest.
    let stored = |path: &str| format!("/cdn/{}", sha256(&web.dataset[path]));
    let cdn = Server::new()
        .fault(&stored("mscoco/model_fisher.7z"), Fault::Status { code: 500, retry_after: None, times: 2 })
        .fault(&stored("mscoco/sample.7z"), Fault::Status { code: 503, retry_after: Some(2), times: 1 })
        .fault(&stored(&volume(1)), Fault::Drop { after: first / 2, times: 1 })
        .fault(&stored(&volume(2)), Fault::Slow { chunk: 1000, pause: Duration::from_millis(20) })
        .fault(&stored(&volume(3)), Fault::NoRanges)
        .fault(&stored(&volume(3)), Fault::Drop { after: third / 2, times: 1 });
    let paths = [1, 2, 3].map(|number| stored(&volume(number)));
    let others = ["mscoco/model_fisher.7z", "mscoco/sample.7z"].map(stored);
    web.hub = web.hub.cdn(&cdn);
    web.coco = web
        .coco
        .fault(IMAGES, Fault::Drop { after: 1000, times: 1 })
        .fault(ANNOTATIONS, Fault::Status { code: 500, retry_after: None, times: 1 });
    let ran = web.run(&[]);
    assert_eq!(ran.computed(), STAGES);
    web.finished();
    // Every fault happened, and the requests are the expected ones.
    let ranges = |path: &str| cdn.ranges(&format!("{path}?signature=secret"));
    assert_eq!(ranges(&paths[0]), [None, from(first / 2)]);
    assert_eq!(ranges(&paths[1]), [None]);
    assert_eq!(ranges(&paths[2]), [None, from(third / 2)]);
    assert_eq!(ranges(&others[0]), [None, None, None]);
    assert_eq!(ranges(&others[1]), [None, None]);
    assert_eq!(web.coco.ranges(IMAGES), [None, from(1000)]);
    assert_eq!(web.coco.ranges(ANNOTATIONS), [None, None]);
    assert_eq!(web.pins(), web.expected(&[IMAGES, ANNOTATIONS], &|_| true));

    let before = web.project.results();
    for server in [&web.hub, &web.coco, &cdn] {
        server.forget();
    }
    let ran = web.run(&[]);
    assert_eq!((ran.computed(), ran.reused()), (vec![], STAGES.map(str::to_owned).to_vec()));
    for server in [&web.hub, &web.coco, &cdn] {
        assert_eq!(server.asked(), []);
    }
    assert_eq!(web.project.results(), before);
}

#[test]
fn killed_in_the_middle_of_a_volume() {
    let mut web = Web::new();
    let second = web.dataset[&volume(2)].len();
    let slow = Fault::Slow { chunk: second / 50, pause: Duration::from_millis(50) };
    web.hub = web.hub.fault(&at(&volume(2)), slow);
    let mut run = web.command(&[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Two volumes are complete, and a third of the second one.
    let size = |number: usize| web.dataset[&volume(number)].len();
    let now = || {
        let found = files(&web.project.path("cache/downloads")).into_iter();
        // A file may be removed at any moment after its use.
        let sizes: Vec<(String, usize)> = found
            .filter_map(|(name, path)| Some((name, fs_err::metadata(path).ok()?.len() as usize)))
            .collect();
        let whole = |bytes: usize| sizes.iter().any(|(name, size)| name.ends_with(".file") && *size == bytes);
        let parts: Vec<usize> =
            sizes.iter().filter(|(name, _)| name.ends_with(".part")).map(|(_, size)| *size).collect();
        whole(size(1)) && whole(size(3)) && parts.len() == 1 && parts[0] >= second / 3
    };
    let begun = Instant::now();
    while !now() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            files(&web.project.path("cache/downloads"))
        );
        assert!(run.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    run.kill().unwrap();
    run.wait().unwrap();
    wait_for_orphans(&web.project);
    assert!(!web.holds_latents());
    assert!(!web.pins().files.keys().any(|name| name.contains("latents")));

    web.hub.mend(&at(&volume(2)));
    web.hub.forget();
    let ran = web.run(&[]);
    assert!(ran.computed().contains(&"published_latents".to_owned()), "{ran:?}");
    web.finished();
    let asked = gets(&web.hub, "/mscoco/latents_text_embeddings/latents");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].path, at(&volume(2)));
    let start = asked[0].range.as_ref().unwrap().strip_prefix("bytes=").unwrap().trim_end_matches('-');
    assert!((second / 3..second).contains(&start.parse().unwrap()), "{start}");
    assert_eq!(web.pins(), web.expected(&[IMAGES, ANNOTATIONS], &|_| true));
}

#[test]
fn a_volume_with_another_digest_than_listed_by_the_hub() {
    let mut web = Web::new();
    web.hub = web.hub.fault(&at(&volume(2)), Fault::Wrong);
    let ran = web.try_run(&["--download-jobs", "1"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let mut wrong = web.dataset[&volume(2)].clone();
    *wrong.last_mut().unwrap() ^= 1;
    let (found, expected) = (sha256(&wrong), sha256(&web.dataset[&volume(2)]));
    let file = format!("hf://datasets/{DATASET}@main/{}", volume(2));
    assert_eq!(ran.events("stage_failed", "error"), [format!("{file}: sha256 {found}, expected {expected}")]);
    assert_eq!(ran.events("stage_failed", "stage"), ["published_latents"]);
    let downloaded = ["coco_annotations", "coco_images", "published_model", "published_samples"];
    assert_eq!(ran.computed(), downloaded);
    let blocked = [
        "influence[0]",
        "influence[1]",
        "pretrain_loss",
        "ranking[0]",
        "ranking[1]",
        "unlearn[0]",
        "unlearn[1]",
    ];
    assert_eq!(ran.events("stage_blocked", "stage"), blocked);
    assert!(!web.holds_latents());
    assert!(!web.project.path("results/mscoco/published_latents").exists());
    assert_eq!(
        web.pins(),
        web.expected(&[IMAGES, ANNOTATIONS], &|path| !path.contains("latents")),
        "what the others gave is pinned, nothing of the refused archive is"
    );

    web.hub.mend(&at(&volume(2)));
    web.hub.forget();
    web.coco.forget();
    let ran = web.run(&[]);
    assert_eq!(ran.reused(), downloaded);
    assert!(web.holds_latents());
    web.finished();
    let mut asked: Vec<(String, Option<String>)> =
        gets(&web.hub, "/resolve/").into_iter().map(|asked| (asked.path, asked.range)).collect();
    asked.sort();
    assert_eq!(asked, [(at(&volume(2)), None), (at(&volume(3)), None)], "the first was whole");
    assert_eq!(web.coco.asked(), []);
}

#[test]
fn everything_is_computed_with_a_model_that_requires_a_token() {
    let mut web = Web::new();
    let model = Path::new(DEMO).join("model");
    let parts = files(&model).into_iter().filter(|(path, _)| !path.contains("unet"));
    let parts: Files = parts.map(|(path, file)| (path, fs_err::read(file).unwrap())).collect();
    web.hub = web.hub.hub_model(MODEL, COMMIT, &listed(&parts)).token("hf_secret").fault(
        &format!("/{MODEL}/resolve/{COMMIT}/vae/diffusion_pytorch_model.safetensors"),
        Fault::Drop { after: 100_000, times: 1 },
    );
    web.token = Some("hf_secret");
    let sets: Vec<&str> = COMPUTE.iter().flat_map(|set| ["--set", set]).collect();
    let ran = web.run(&[&sets[..], &["--set", "generate.batch_size=1"]].concat());
    let stages = [
        "coco_annotations",
        "coco_images",
        "fisher",
        "generate",
        "influence[0]",
        "influence[1]",
        "latents",
        "pretrain_loss",
        "published_model",
        "published_samples",
        "ranking[0]",
        "ranking[1]",
        "stable_diffusion",
        "unlearn[0]",
        "unlearn[1]",
    ];
    assert_eq!(ran.computed(), stages);
    // All queries share one random stream here, so only the first equals the demo's.
    for (result, demo) in [
        ("latents/latents.npy", "latents/latents.npy"),
        ("latents/text_embeddings.npy", "latents/text_embeddings.npy"),
        ("fisher/fisher.safetensors", "fisher/fisher.safetensors"),
        ("generate/images/0.png", "generate/grin/images/0.png"),
        ("influence/0/influence.npy", "influence/grin/influence.npy"),
    ] {
        same(&web.project, result, demo);
    }
    // Neither the computed files nor other files of the model's repository were downloaded.
    assert_eq!(gets(&web.hub, "latents_text_embeddings"), []);
    assert_eq!(
        gets(&web.hub, "/resolve/").iter().filter(|asked| asked.path.contains("scheduler")).count(),
        0
    );
    let downloaded = files(&web.project.path("results/mscoco/stable_diffusion/files"));
    let expected = parts.keys().filter(|path| !path.contains("scheduler"));
    assert!(downloaded.keys().eq(expected), "{downloaded:?}");
    let vae = web.hub.ranges(&format!("/{MODEL}/resolve/{COMMIT}/vae/diffusion_pytorch_model.safetensors"));
    assert_eq!(vae, [None, from(100_000)]);
    let pins = web.pins();
    assert_eq!(pins.hub.len(), 2);
    assert_eq!(pins.files.keys().filter(|name| name.starts_with(&format!("hf://{MODEL}@main/"))).count(), 7);
    // COCO gets no token.
    assert!(web.coco.asked().iter().all(|asked| asked.authorization.is_none()));
}
