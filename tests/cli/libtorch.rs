//! Where the program finds libtorch, and what it says where there is none, in environments that are made up.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;
use tempfile::TempDir;

use crate::project::{Project, Ran, command};

/// The libtorch of the build.
const BUILT_WITH: &str = env!("ATTRFLOW_LIBTORCH_VERSION");
const BUILT_IN: &str = env!("ATTRFLOW_LIBTORCH_FOLDER");

/// An environment as pip makes it, with the programs of a wheel, and no libtorch. Its path has a space.
struct Installed {
    folder: TempDir,
}

impl Installed {
    fn new() -> Self {
        let installed = Self { folder: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        fs_err::create_dir_all(installed.path("the env/bin")).unwrap();
        for (name, program) in [
            ("attrflow", env!("CARGO_BIN_EXE_attrflow")),
            ("attrflow-worker", env!("CARGO_BIN_EXE_attrflow-worker")),
        ] {
            fs_err::hard_link(program, installed.path("the env/bin").join(name)).unwrap();
        }
        installed.write("the env/lib/python3.11/site-packages/attrflow/__init__.py", "");
        installed
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn write(&self, file: &str, text: &str) {
        fs_err::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs_err::write(self.path(file), text).unwrap();
    }

    /// A package torch below an environment, whose library begins so.
    fn torch(&self, environment: &str, version: &str, library: &str) -> PathBuf {
        let torch = format!("{environment}/lib/python3.11/site-packages/torch");
        self.write(&format!("{torch}/version.py"), &format!("__version__ = '{version}'\n"));
        self.write(&format!("{torch}/lib/libtorch_cpu.so"), library);
        self.path(&torch)
    }

    /// The libtorch of the build, as the package of the program's own environment.
    fn real_torch(&self) {
        symlink(BUILT_IN, self.path("the env/lib/python3.11/site-packages/torch")).unwrap();
    }

    /// The program with an empty environment.
    fn command(&self, folder: &Path) -> Command {
        let mut command = command(&self.path("the env/bin/attrflow"), folder);
        command.env_clear().env("PATH", self.path("programs"));
        command
    }

    fn doctor(&self, environment: &[(&str, &Path)]) -> (Json, Ran) {
        let mut command = self.command(self.folder.path());
        let ran: Ran =
            command.args(["doctor", "--json"]).envs(environment.iter().copied()).output().unwrap().into();
        (ran.json().remove(0), ran)
    }
}

#[test]
fn a_libtorch_that_does_not_serve_is_refused_with_versions_places_and_a_remedy() {
    let project = Project::new(1);
    let cases = [
        (None, "its environment     nothing"),
        (Some(("2.10.0", "\x7fELF")), "version 2.10.0, expected 2.11"),
        (Some(("2.12.0+cu130", "\x7fELF")), "version 2.12.0+cu130, expected 2.11"),
        (Some(("2.11.0+cpu", "")), "lib/libtorch_cpu.so is empty"),
        (Some(("2.11.0+cpu", "<html>")), "lib/libtorch_cpu.so is no library"),
    ];
    for (torch, found) in cases {
        let installed = Installed::new();
        let place = torch.map(|(version, library)| installed.torch("the env", version, library));
        for verb in [&["doctor"][..], &["run", "pipelines/demo.toml"]] {
            let ran: Ran = installed.command(&project.root).args(verb).output().unwrap().into();
            assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
            let python = installed.path("the env/bin/python3");
            let remedy = format!("uv pip install --python '{}' 'torch==2.11.*'", python.display());
            let place = place.as_ref().map_or(String::new(), |place| place.display().to_string());
            for part in ["libtorch 2.11 is needed", found, &remedy, &place, "ATTRFLOW_LIBTORCH"] {
                assert!(ran.err.contains(part), "no `{part}` in {ran:?}");
            }
            assert!(!ran.err.contains("shared libraries"), "{ran:?}");
        }
        // Nothing ran, and nothing was tried.
        assert!(!project.path("results").exists());
    }
    // One that looks right and does not load: the loader's line is not alone.
    let installed = Installed::new();
    let torch = installed.torch("the env", "2.11.0+cpu", "\x7fELF and no more");
    let (report, ran) = installed.doctor(&[]);
    assert_eq!((ran.code, &report["libtorch"], &report["worker"]), (1, &"2.11.0+cpu".into(), &Json::Null));
    let said = format!("the libtorch in {} does not load: ", torch.display());
    assert!(ran.err.contains(&said) && ran.err.contains("torch==2.11.*"), "{ran:?}");
    let ran: Ran =
        installed.command(&project.root).args(["run", "pipelines/demo.toml"]).output().unwrap().into();
    let said = format!("the libtorch in {} does not load; see", torch.join("lib").display());
    assert!(ran.code == 1 && ran.err.contains(&said), "{ran:?}");
}

#[test]
fn places_are_searched_in_order() {
    let installed = Installed::new();
    let elf = "\x7fELF";
    let version = |environment: &[(&str, &Path)]| installed.doctor(environment).0["libtorch"].clone();
    let [venv, conda, home] = ["venv", "conda", "home"].map(|name| installed.path(name));
    let all: &[(&str, &Path)] = &[("VIRTUAL_ENV", &venv), ("CONDA_PREFIX", &conda), ("HOME", &home)];
    assert_eq!(version(all), Json::Null);

    let in_python = installed.torch("elsewhere", "2.11.7", elf);
    installed.write("programs/python3", &format!("#!/bin/sh\necho '{}'\n", in_python.display()));
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs_err::set_permissions(installed.path("programs/python3"), executable).unwrap();
    assert_eq!(version(all), "2.11.7");
    installed.torch("home/.local", "2.11.6", elf);
    assert_eq!(version(all), "2.11.6");
    assert_eq!(version(&[&[("PYTHONNOUSERSITE", Path::new("1"))], all].concat()), "2.11.7");
    installed.write("conda/lib/libtorch_cpu.so", elf);
    installed.write("conda/conda-meta/libtorch-2.11.5-cpu_0.json", "{}");
    assert_eq!(version(all), "2.11.5+cpu_0");
    installed.torch("venv", "2.11.4", elf);
    assert_eq!(version(all), "2.11.4");
    assert_eq!(version(&[("VIRTUAL_ENV", Path::new("/nowhere"))]), "2.11.7");
    // One of another version does not keep the next from serving.
    let own = installed.torch("the env", "2.10.0", elf);
    assert_eq!(version(all), "2.11.4");
    fs_err::write(own.join("version.py"), "__version__ = '2.11.3'").unwrap();
    assert_eq!(version(all), "2.11.3");
    installed.write("the env/bin/libtorch/build-version", "2.11.2\n");
    installed.write("the env/bin/libtorch/lib/libtorch_cpu.so", elf);
    assert_eq!(version(all), "2.11.2");

    // What is named is used, or nothing is.
    let named = installed.torch("named", "2.11.1", elf);
    let (report, ran) = installed.doctor(&[&[("ATTRFLOW_LIBTORCH", named.as_path())], all].concat());
    assert_eq!((&report["libtorch"], report["places"].as_array().unwrap().len()), (&"2.11.1".into(), 1));
    assert!(
        ran.err.contains("help: unset ATTRFLOW_LIBTORCH, or set it to a folder of libtorch 2.11"),
        "{ran:?}"
    );
    let (report, ran) = installed.doctor(&[("ATTRFLOW_LIBTORCH", &venv)]);
    assert_eq!(report["libtorch"], Json::Null);
    assert!(ran.err.contains(&format!("{}: it has no lib/libtorch_cpu.so", venv.display())), "{ran:?}");
}

#[test]
fn a_foreign_libtorch_of_the_environment_is_not_loaded() {
    let installed = Installed::new();
    installed.real_torch();
    installed.write("foreign/libtorch_cpu.so", "");
    let (report, ran) = installed.doctor(&[("LD_LIBRARY_PATH", &installed.path("foreign"))]);
    assert_eq!((ran.code, ran.err.as_str(), &report["libtorch"]), (0, "", &BUILT_WITH.into()), "{ran:?}");
    let library = fs_err::canonicalize(Path::new(BUILT_IN).join("lib/libtorch_cpu.so")).unwrap();
    assert_eq!(report["worker"]["library"], library.to_str().unwrap());
    // The same by a link to the program.
    symlink(installed.path("the env/bin/attrflow"), installed.path("link")).unwrap();
    let mut linked = command(&installed.path("link"), installed.folder.path());
    let ran: Ran = linked.env_clear().arg("doctor").output().unwrap().into();
    let place = library.parent().and_then(Path::parent).unwrap().display();
    assert!(
        ran.code == 0 && ran.out.contains(&format!("its environment     {place}: {BUILT_WITH}")),
        "{ran:?}"
    );
}

#[test]
fn without_libtorch_a_plan_says_which_one_it_is_for() {
    let (project, installed) = (Project::finished(), Installed::new());
    let run = |arguments: &[&str]| -> Ran {
        installed.command(&project.root).args(arguments).output().unwrap().into()
    };
    let plan = |more: &[&str]| run(&[&["plan", "pipelines/demo.toml"], more].concat());
    let ran = plan(&[]);
    assert!(ran.code == 0 && ran.out.ends_with("0 to run, 12 cached, 0 pending\n"), "{ran:?}");
    let warning =
        format!("there is no libtorch here: planning for {BUILT_WITH}, as built with; --libtorch VERSION");
    assert!(ran.err.contains(&warning), "{ran:?}");
    let ran = plan(&["--libtorch", "2.11.0+other"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let change = format!("numerics.libtorch: \"{BUILT_WITH}\" -> \"2.11.0+other\"");
    assert!(ran.out.contains(&change), "{ran:?}");
    let ran = plan(&["--libtorch", "2.10.0"]);
    assert!(ran.code == 2 && ran.err.contains("this program computes with libtorch 2.11"), "{ran:?}");
    // A worker does not compute under another version than its own.
    installed.real_torch();
    let ran = run(&["run", "pipelines/demo.toml", "--libtorch", "2.11.0+other"]);
    assert!(
        ran.code == 1 && ran.err.contains(&format!("has libtorch {BUILT_WITH}, this run needs 2.11.0+other"))
    );
    // Results of the build in place are those of the wheel.
    let ran = run(&["run", "pipelines/demo.toml"]);
    assert!(ran.code == 0 && ran.out.contains("0 ran, 12 cached"), "{ran:?}");
}
