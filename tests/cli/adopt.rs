//! `attrflow adopt`: files of an earlier run, or of another program, as outputs of the real kinds.

use std::path::{Path, PathBuf};

use attrflow::io::npy::writer::{write_f32, write_i64};
use attrflow::io::tensor_file::TensorFile;
use attrflow::io::torch::{self, Dtype, Entry};
use attrflow_engine::provenance::manifest;

use crate::project::{Project, Ran, copy};
use crate::run::STAGES;

/// A finished project whose cache is gone but for what the named stages need, and its results moved elsewhere.
fn moved(targets: &[&str]) -> (Project, PathBuf) {
    let project = Project::finished();
    let mine = project.path("mine");
    copy(&project.path("results/demo"), &mine);
    for folder in ["cache", "results"] {
        fs_err::remove_dir_all(project.path(folder)).unwrap();
    }
    let targets: Vec<&str> = targets.iter().flat_map(|target| ["--target", target]).collect();
    project.run(&targets);
    (project, mine)
}

fn adopt(project: &Project, stage: &str, outputs: &[&str]) -> Ran {
    project.attrflow([&["adopt", stage], outputs, &["--pipeline", "pipelines/demo.toml"]].concat())
}

/// What was refused, with the exit code that says so.
fn refused(project: &Project, stage: &str, outputs: &[&str]) -> String {
    let ran = adopt(project, stage, outputs);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    ran.err
}

fn bytes(folder: &Path) -> u64 {
    let used = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(folder).output().unwrap();
    String::from_utf8(used.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn losses_of_an_earlier_run_are_adopted() {
    let project = Project::finished();
    let before = project.results();
    drop(project);
    let (project, mine) = moved(&["latents"]);
    let file = mine.join("pretrain_loss/pretrain_loss.npy");
    let ran = adopt(&project, "pretrain_loss", &["mine/pretrain_loss/pretrain_loss.npy"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let adopted = "adopted mine/pretrain_loss/pretrain_loss.npy (176 B) as pretrain_loss.losses\n";
    assert!(ran.out.starts_with(adopted), "{ran:?}");
    assert!(ran.out.contains(" on cpu; ") && ran.out.contains("taken on trust: that the files"), "{ran:?}");

    let plan = project.attrflow(["plan", "pipelines/demo.toml"]).out;
    assert!(plan.contains("adopted from mine/pretrain_loss/pretrain_loss.npy"), "{plan}");
    let ran = project.run(&[]);
    assert!(!ran.computed().contains(&"pretrain_loss".to_owned()), "{ran:?}");
    assert!(ran.computed().contains(&"influence[grin]".to_owned()), "{ran:?}");
    assert_eq!(project.results(), before, "bytes of results");
    let status = project.attrflow(["status", "pipelines/demo.toml"]).out;
    let line = status.lines().find(|line| line.starts_with("pretrain_loss")).unwrap();
    assert!(line.contains(" adopted ") && line.ends_with("results/demo/pretrain_loss"), "{line}");

    let manifest = manifest::read(&manifest::list(&project.path("cache/runs/demo"))[0]).unwrap();
    let record = manifest.stages.iter().find(|record| record.stage == "pretrain_loss").unwrap();
    assert_eq!(record.adopted.as_ref().unwrap().paths["losses"], fs_err::canonicalize(&file).unwrap());
    assert!(record.adopted.as_ref().unwrap().checked.contains("numbers that are finite and not negative"));
    assert!(manifest.stages.iter().all(|other| other.adopted.is_none() || other.stage == record.stage));

    // A run says it in words, and what became of the file when it is gone.
    let ran = project.attrflow(["run", "pipelines/demo.toml"]);
    let line = ran.out.lines().find(|line| line.starts_with("pretrain_loss")).unwrap();
    assert!(line.contains(" adopted "), "{line}");
    fs_err::remove_file(&file).unwrap();
    let status = project.attrflow(["status", "pipelines/demo.toml"]).out;
    let line = status.lines().find(|line| line.starts_with("pretrain_loss")).unwrap();
    assert!(line.ends_with(" modified"), "{line}");
    let ran = project.attrflow(["run", "pipelines/demo.toml"]);
    let message = "pretrain_loss.npy is gone; `pretrain_loss` is computed instead";
    let warning = ran.err.lines().next().unwrap();
    assert!(
        ran.code == 0 && warning.starts_with("warn: the adopted file ") && warning.ends_with(message),
        "{ran:?}"
    );
    assert_eq!(project.results(), before);
}

#[test]
fn a_whole_run_is_adopted_without_a_copy_and_computes_nothing() {
    let (project, mine) = moved(&["data"]);
    // The download itself: a folder, of which stages read what is below.
    copy(&project.path("results/demo/data"), &mine.join("own"));
    fs_err::remove_dir_all(project.path("cache")).unwrap();
    fs_err::remove_dir_all(project.path("results")).unwrap();
    let used = bytes(&project.root);
    let one = |stage: &str, path: &str| {
        let ran = adopt(&project, stage, &[path]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    };
    let many = |stage: &str, folder: &str, files: &[(&str, &str)]| {
        let outputs: Vec<String> =
            files.iter().map(|(port, file)| format!("{port}=mine/{folder}/{file}")).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let ran = adopt(&project, stage, &outputs);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    };
    one("data", "mine/own/files");
    let arrays = [("latents", "latents.npy"), ("text_embeddings", "text_embeddings.npy")];
    many("latents", "latents", &arrays);
    one("pretrain_loss", "mine/pretrain_loss/pretrain_loss.npy");
    one("fisher", "mine/fisher/fisher.safetensors");
    for query in ["grin", "pizza"] {
        let ports =
            [("images", "images"), ("latents", "latents.npy"), ("text_embeddings", "text_embeddings.npy")];
        many(&format!("generate[{query}]"), &format!("generate/{query}"), &ports);
        one(&format!("unlearn[{query}]"), &format!("mine/unlearn/{query}/unlearned.safetensors"));
        let ports = [("influence", "influence.npy"), ("rank", "rank.npy"), ("losses", "unlearned_loss.npy")];
        many(&format!("influence[{query}]"), &format!("influence/{query}"), &ports);
        let ports = [
            ("table", "top.csv"),
            ("json", "top.json"),
            ("picture", "top.png"),
            ("errors", "standard_error.npy"),
        ];
        many(&format!("ranking[{query}]"), &format!("ranking/{query}"), &ports);
    }
    let ran = project.run(&[]);
    assert_eq!((ran.reused(), ran.computed()), (STAGES.map(str::to_owned).to_vec(), vec![]));
    let grown = bytes(&project.root) - used;
    assert!(grown < 3_000_000, "{grown} bytes more, of data of {} bytes", bytes(&mine));
    assert!(bytes(&mine) > 4_000_000);
}

#[test]
fn losses_of_another_kind_or_number_are_refused() {
    let (project, mine) = moved(&["latents"]);
    let file = mine.join("new.npy");
    let losses = |length: usize| (0..length).map(|i| i as f32).collect::<Vec<f32>>();
    let error = || refused(&project, "pretrain_loss", &["mine/new.npy"]);
    write_f32(&file, &[11], &losses(11)).unwrap();
    assert!(error().ends_with("mine/new.npy: shape [11], expected [12]\n"), "{}", error());
    write_f32(&file, &[6], &losses(6)).unwrap();
    assert!(error().ends_with("mine/new.npy: shape [6], expected [12]\n"), "{}", error());
    write_i64(&file, &[12], &[0; 12]).unwrap();
    assert!(error().ends_with("mine/new.npy: dtype int64, expected float32\n"), "{}", error());
    let mut values = losses(12);
    values[7] = f32::NAN;
    write_f32(&file, &[12], &values).unwrap();
    assert!(
        error().ends_with("mine/new.npy: the value at [7] is NaN, expected finite values\n"),
        "{}",
        error()
    );
    values[7] = -0.25;
    write_f32(&file, &[12], &values).unwrap();
    assert!(error().ends_with("mine/new.npy: loss 7 is -0.25, expected 0 or more\n"), "{}", error());
    fs_err::write(&file, "no array").unwrap();
    assert!(error().contains("mine/new.npy: not a npy file"), "{}", error());
    fs_err::remove_file(&file).unwrap();
    assert!(error().contains("mine/new.npy"), "{}", error());
    assert!(!project.cached("objects").iter().any(|name| name.ends_with(".adopted")));
}

#[test]
fn weights_that_the_network_does_not_have_are_refused() {
    let (project, mine) = moved(&["latents"]);
    let own = TensorFile::open(mine.join("fisher/fisher.safetensors")).unwrap();
    // As published: by torch, here of what the stage computes.
    let write = |skip: usize, dtype: Dtype, extra: Option<(&str, Vec<usize>)>| {
        let mut tensors: Vec<(&str, Vec<usize>)> = own
            .headers()
            .iter()
            .skip(skip)
            .map(|header| (header.name.as_str(), header.shape.clone()))
            .collect();
        tensors.extend(extra);
        let zeros = |shape: &[usize]| vec![0u8; dtype.size() * shape.iter().product::<usize>()];
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, shape)| zeros(shape)).collect();
        let entries: Vec<Entry<'_>> = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape), bytes)| Entry { name, dtype, shape, bytes })
            .collect();
        torch::write(mine.join("new.pt"), &entries).unwrap();
    };
    let error = || refused(&project, "fisher", &["mine/new.pt"]);
    write(0, Dtype::F16, None);
    assert!(error().ends_with(": float16, expected float64 or float32\n"), "{}", error());
    write(0, Dtype::F64, Some(("nobody.weight", vec![2])));
    assert!(error().contains("tensor `nobody.weight`: no such weight, expected a name that "), "{}", error());
    write(0, Dtype::F64, Some(("conv_in.bias", vec![3])));
    assert!(error().contains("tensor `conv_in.bias`: [3], expected ["), "{}", error());
    write(1, Dtype::F64, None);
    assert!(error().contains(": 1 of the ") && error().contains("for instance `"), "{}", error());
    write(0, Dtype::F64, None);
    let ran = adopt(&project, "fisher", &["mine/new.pt"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
}

#[test]
fn sets_that_do_not_fit_each_other_are_refused() {
    let (project, mine) = moved(&["data"]);
    let error = |latents: &str, texts: &str| {
        let outputs = [format!("latents=mine/{latents}"), format!("text_embeddings=mine/{texts}")];
        refused(&project, "latents", &[&outputs[0], &outputs[1]])
    };
    let (latents, texts) = ("latents/latents.npy", "latents/text_embeddings.npy");
    let zeros = |name: &str, shape: &[usize]| {
        write_f32(mine.join(name), shape, &vec![0.0; shape.iter().product()]).unwrap();
    };
    zeros("few.npy", &[6, 4, 16, 16]);
    let message = error("few.npy", texts);
    assert!(message.contains("few.npy: shape [6, 4, 16, 16], expected [12, _, _, _]"), "{message}");
    zeros("texts.npy", &[6, 1, 16, 64]);
    let message = error(latents, "texts.npy");
    assert!(message.contains("texts.npy: shape [6, 1, 16, 64], expected [6, 2, _, _]"), "{message}");
    let ran = project.attrflow(["adopt", "latents", "latents=mine/latents/latents.npy"]);
    assert!(
        ran.code == 2 && ran.err.contains("no path for the output `text_embeddings` of `latents`"),
        "{ran:?}"
    );
    let ran = project.attrflow(["adopt", "latents", "mine/latents/latents.npy"]);
    assert!(ran.err.contains("expected latents=PATH text_embeddings=PATH"), "{ran:?}");
}

#[test]
fn adopted_files_are_finite() {
    let (project, mine) = moved(&["generate", "fisher"]);
    for (stage, changed, others) in [
        (
            "latents",
            "latents=mine/latents/latents.npy",
            vec!["text_embeddings=mine/latents/text_embeddings.npy"],
        ),
        (
            "latents",
            "text_embeddings=mine/latents/text_embeddings.npy",
            vec!["latents=mine/latents/latents.npy"],
        ),
        ("fisher", "fisher=mine/fisher/fisher.safetensors", vec![]),
        ("unlearn[grin]", "weights=mine/unlearn/grin/unlearned.safetensors", vec![]),
    ] {
        let path = mine.parent().unwrap().join(changed.split_once('=').unwrap().1);
        let good = fs_err::read(&path).unwrap();
        // All ones is NaN in every float type.
        let spoilt = [&good[..good.len() - 8], &[0xff; 8]].concat();
        fs_err::write(&path, spoilt).unwrap();
        let outputs = [vec![changed], others, vec!["--force"]].concat();
        let message = refused(&project, stage, &outputs);
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(message.ends_with(" is NaN, expected finite values\n"), "{message}");
        fs_err::write(&path, good).unwrap();
        let ran = adopt(&project, stage, &outputs);
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}

#[test]
fn a_download_that_lacks_a_file_is_refused() {
    let project = Project::new(6);
    fs_err::create_dir_all(project.path("mine/model")).unwrap();
    let message = refused(&project, "data", &["mine"]);
    assert!(
        message
            .contains("mine/captions.json: not found, expected the file or folder that the stage downloads"),
        "{message}"
    );
    project.write("file", "x");
    let message = refused(&project, "data", &["file"]);
    assert!(message.ends_with("file: expected a folder\n"), "{message}");
}

#[test]
fn the_stage_must_be_one_whose_inputs_are_there() {
    let project = Project::new(6);
    project.write("a.npy", "x");
    let message = refused(&project, "pretrain_loss", &["a.npy"]);
    assert!(message.contains("run or adopt first: data, latents"), "{message}");
    let run = |arguments: &[&str]| {
        let ran = project.attrflow([&["adopt"], arguments].concat());
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
        ran.err
    };
    let message = run(&["influence", "a.npy"]);
    assert!(
        message.contains("`influence` is repeated: choose one of influence[grin], influence[pizza]"),
        "{message}"
    );
    let message = run(&["nobody", "a.npy"]);
    let expected = "no pipeline in pipelines/ has a stage `nobody`; searched: pipelines/demo.toml";
    assert!(message.contains(expected), "{message}");
    // Two pipelines with the stage: one must be named.
    fs_err::copy(project.path("pipelines/demo.toml"), project.path("pipelines/other.toml")).unwrap();
    let message = run(&["pretrain_loss", "a.npy"]);
    let expected = "pipelines/demo.toml, pipelines/other.toml have a stage `pretrain_loss`";
    assert!(message.contains(expected) && message.contains("--pipeline"), "{message}");
    let message = run(&["fisher", "a.npy", "fisher=b.npy", "--pipeline", "pipelines/demo.toml"]);
    assert!(message.contains("two paths for the output `fisher` of `fisher`"), "{message}");
}

#[test]
fn of_an_adopted_folder_what_is_read_counts() {
    let (project, mine) = moved(&["data"]);
    copy(&project.path("results/demo/data/files"), &mine.join("own"));
    for folder in ["cache", "results"] {
        fs_err::remove_dir_all(project.path(folder)).unwrap();
    }
    project.write("mine/own/notes/mine.txt", "before");
    assert_eq!(adopt(&project, "data", &["mine/own"]).code, 0);
    let state = || project.attrflow(["status", "pipelines/demo.toml"]).out.lines().nth(1).unwrap().to_owned();
    let adopted = state();
    assert!(adopted.starts_with("data ") && adopted.contains(" adopted "), "{adopted}");
    project.write("mine/own/notes/mine.txt", "after");
    project.write("mine/own/more.txt", "new");
    assert_eq!(state(), adopted);
    let captions = fs_err::read_to_string(project.path("mine/own/captions.json")).unwrap();
    fs_err::remove_file(project.path("mine/own/captions.json")).unwrap();
    project.write("mine/own/captions.json", captions + "\n");
    assert!(state().contains(" modified"), "{}", state());
}

#[test]
fn a_result_adopted_for_another_device_is_named_by_the_plan() {
    let (project, _) = moved(&["data"]);
    let arrays = ["latents=mine/latents/latents.npy", "text_embeddings=mine/latents/text_embeddings.npy"];
    let arguments = [&["adopt", "latents"], &arrays[..], &["--device", "cuda"]].concat();
    let ran = project.attrflow(arguments);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.contains(" on cuda; "), "{ran:?}");
    let plan = |device| project.attrflow(["plan", "pipelines/demo.toml", "--device", device]).out;
    let why = "adopted for cuda, which may round differently: `--device cuda` uses that result";
    assert!(plan("cpu").contains(why), "{}", plan("cpu"));
    assert!(plan("cuda").contains("adopted from mine/latents/"), "{}", plan("cuda"));
    assert!(!plan("cpu").contains("no GPU was found"), "{}", plan("cpu"));
}
