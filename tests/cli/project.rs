//! A miniature project, and what a run of the program in it said.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use attrflow_engine::identity::digest::Digest;
use serde_json::Value as Json;
use tempfile::TempDir;

/// The demo's pipeline with hyperparameters that cost a few seconds.
const CONFIG: &str = r#"
[[queries]]
name = "grin"
caption = "an emoji of grinning face"
seed = 0

[[queries]]
name = "pizza"
caption = "a food emoji, pizza with fruit"
seed = 1

[latents]
pixels = 32
captions = 2

[loss]
time_samples = 2
captions = 2
noise = "per_image"

[fisher]
epochs = 1
batch_size = 4
select = "cross-attn-kv"

[generate]
steps = 4
guidance_scale = 3.0

[unlearn]
grad_accum_steps = 2
batch_size = 4
lr = 0.001

[ranking]
rows = 5
images_shown = 3
error_bars = false

[run]
device = "cpu"
jobs = 2
threads = 1
"#;

pub const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/demo");

/// The index of a model in diffusers' layout.
pub const INDEX: &str = r#"{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
"vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
"tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDPMScheduler"]}"#;

/// A project folder that goes with the value.
pub struct Project {
    _folder: TempDir,
    pub root: PathBuf,
}

impl Project {
    /// A project on the first `images` images of the demo; nothing has run.
    pub fn new(images: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Not the folder itself: a test may move the project.
        let root = folder.path().join("project");
        write_project(&root, images);
        Self { _folder: folder, root }
    }

    /// A project with four images and their captions in `own/`, and a copy of this model in `model/`; nothing has run.
    pub fn own(model: &Path) -> Self {
        let project = Self::new(1);
        fs_err::create_dir(project.path("own")).unwrap();
        for name in ["01-grin", "05-fox", "09-apple", "12-strawberry"] {
            for file in ["png", "txt"].map(|ending| format!("{name}.{ending}")) {
                let to = project.path("own").join(&file);
                fs_err::copy(Path::new(DEMO).join("lora/images").join(file), to).unwrap();
            }
        }
        copy(model, &project.path("model"));
        project
    }

    /// A copy of a project of 6 images whose results are up to date.
    ///
    /// Computed by the first test that asks, once per test run.
    pub fn finished() -> Self {
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli");
        fs_err::create_dir_all(&shared).unwrap();
        let lock = fs_err::File::create(shared.join("lock")).unwrap();
        lock.file().lock().unwrap();
        // Nextest gives each test a process, cargo test a thread.
        let this = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
        let mark = shared.join("run");
        let source = shared.join("project");
        if fs_err::read_to_string(&mark).ok().as_deref() != Some(&this) {
            if source.exists() {
                fs_err::remove_dir_all(&source).unwrap();
            }
            write_project(&source, 6);
            let ran = attrflow(&source, ["run", "pipelines/demo.toml"]);
            assert_eq!(ran.code, 0, "{ran:?}");
            fs_err::write(&mark, this).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("project");
        copy(&source, &root);
        Self { _folder: folder, root }
    }

    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join(below)
    }

    pub fn result(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.join("results/demo").join(below)
    }

    /// Runs the program in the project's folder.
    pub fn attrflow<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        attrflow(&self.root, arguments)
    }

    /// `attrflow run pipelines/demo.toml --json` with more arguments, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Ran {
        let ran = self.attrflow([&["run", "pipelines/demo.toml", "--json"], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        ran
    }

    /// Replaces text in one of the project's files; the text must be there.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs_err::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{file} holds no {from}");
        self.write(file, text.replacen(from, to, 1));
    }

    pub fn write(&self, file: &str, bytes: impl AsRef<[u8]>) {
        fs_err::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs_err::write(self.path(file), bytes).unwrap();
    }

    /// The bytes of every file in `results/`, by path and digest.
    pub fn results(&self) -> BTreeMap<String, String> {
        let digest = |path: &PathBuf| Digest::of_file(path).unwrap().to_string();
        // The record of what is shown holds file times.
        let shown =
            files(&self.path("results")).into_iter().filter(|(name, _)| !name.ends_with(".shown.json"));
        shown.map(|(name, path)| (name, digest(&path))).collect()
    }

    /// What the cache holds in one of its folders: paths below it.
    pub fn cached(&self, folder: &str) -> Vec<String> {
        files(&self.path("cache").join(folder)).into_keys().collect()
    }
}

/// What the program said and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Ran {
    /// Standard output as one JSON object a line.
    pub fn json(&self) -> Vec<Json> {
        let lines = self.out.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
        lines.inspect(|line| assert!(line.is_object(), "{line}")).collect()
    }

    /// Names that stand in `key` of the events of one kind, sorted.
    pub fn events(&self, event: &str, key: &str) -> Vec<String> {
        let lines = self.json().into_iter().filter(|line| line["event"] == event);
        let mut names: Vec<String> = lines.map(|line| line[key].as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    /// The stages that computed.
    pub fn computed(&self) -> Vec<String> {
        self.events("stage_finished", "stage")
    }

    /// The stages that were reused.
    pub fn reused(&self) -> Vec<String> {
        self.events("stage_cached", "stage")
    }
}

/// The program, untouched by the settings of whoever runs the tests.
pub fn command(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(folder).env_remove("ATTRFLOW_CACHE").env_remove("ATTRFLOW_LOG");
    command
}

pub fn attrflow<S: AsRef<OsStr>>(folder: &Path, arguments: impl IntoIterator<Item = S>) -> Ran {
    let program = Path::new(env!("CARGO_BIN_EXE_attrflow"));
    command(program, folder).args(arguments).output().unwrap().into()
}

fn write_project(root: &Path, images: usize) {
    let demo = Path::new(DEMO);
    let data = root.join("data/demo");
    for folder in [&data, &root.join("pipelines/parts"), &root.join("configs")] {
        fs_err::create_dir_all(folder).unwrap();
    }
    for file in ["pipelines/demo.toml", "pipelines/parts/emoji.toml"] {
        fs_err::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(file), root.join(file)).unwrap();
    }
    fs_err::write(root.join("configs/demo.toml"), CONFIG).unwrap();
    let text = fs_err::read(demo.join("captions.json")).unwrap();
    let mut captions: Json = serde_json::from_slice(&text).unwrap();
    let kept: Vec<Json> = captions["images"].as_array().unwrap()[..images].to_vec();
    let ids: Vec<&Json> = kept.iter().map(|image| &image["id"]).collect();
    let annotations = captions["annotations"].as_array_mut().unwrap();
    annotations.retain(|annotation| ids.contains(&&annotation["image_id"]));
    write_images(&data.join("images.zip"), kept.iter().map(|image| image["file_name"].as_str().unwrap()));
    captions["images"] = kept.into();
    fs_err::write(data.join("captions.json"), serde_json::to_vec_pretty(&captions).unwrap()).unwrap();
    std::os::unix::fs::symlink(demo.join("model"), data.join("model")).unwrap();
}

/// Packs some of the demo's images into an archive of their own.
fn write_images<'n>(path: &Path, names: impl Iterator<Item = &'n str>) {
    let all = fs_err::File::open(Path::new(DEMO).join("images.zip")).unwrap();
    let mut all = zip::ZipArchive::new(all).unwrap();
    let mut some = zip::ZipWriter::new(fs_err::File::create(path).unwrap());
    for name in names {
        some.raw_copy_file(all.by_name(&format!("images/{name}")).unwrap()).unwrap();
    }
    some.finish().unwrap().flush().unwrap();
}

/// The files below a folder by their path in it; none where it does not exist.
pub fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs_err::read_dir(&next).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned(), path);
            }
        }
    }
    found
}

/// Copies a folder; links stay links.
pub fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}
