//! Finds libtorch at build time: which versions the programs can compute with follows from it, and its folder is one
//! of those where they look for it when they run.

#![allow(
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a build script talks to cargo and has no fs_err"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = std::env::var_os("LIBTORCH").map(PathBuf::from).unwrap_or_default();
    let lib = libtorch.join("lib");
    if !lib.join("libtorch_cpu.so").exists() {
        eprintln!(
            "libtorch is missing: looked for {}\n\
             help: run `make setup`, which installs it inside this project,\n\
             help: or set LIBTORCH to a folder that holds lib/libtorch_cpu.so (version 2.11)",
            lib.join("libtorch_cpu.so").display()
        );
        std::process::exit(1);
    }
    for file in ["version.py", "build-version"].map(|name| libtorch.join(name)).iter().filter(|f| f.exists())
    {
        println!("cargo:rerun-if-changed={}", file.display());
    }
    let version = version(&libtorch).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=ATTRFLOW_LIBTORCH_VERSION={version}");
    println!("cargo:rustc-env=ATTRFLOW_LIBTORCH_FOLDER={}", libtorch.display());
    println!("cargo:rustc-env=ATTRFLOW_COMMIT={}", commit().unwrap_or_default());

    // Relative first, so that a moved project folder still runs; absolute for an installed binary.
    for path in ["$ORIGIN/../../.libtorch/torch/lib", "$ORIGIN/../../../.libtorch/torch/lib"] {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{path}");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());

    // The front program must not load libtorch, which takes half a second. None of its code calls it, but the
    // static initialisers of the bindings would keep it needed. Without the bindings there are none, and code
    // of the front program that did call libtorch would not link.
    if std::env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu") {
        for bindings in ["torch_sys", "attrflow_autograd_sys"] {
            println!("cargo:rustc-link-arg-bin=attrflow=-Wl,--remap-inputs=*lib{bindings}-*=/dev/null");
        }
    }
}

/// The version as the wheel states it (`torch/version.py`), or a libtorch archive (`build-version`).
fn version(libtorch: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(libtorch.join("version.py")) {
        let line = text.lines().find(|line| line.starts_with("__version__"))?;
        return Some(line.split('\'').nth(1)?.to_owned());
    }
    let text = std::fs::read_to_string(libtorch.join("build-version")).ok()?;
    Some(text.trim().to_owned())
}

/// The commit that the sources were built from, `-dirty` with changes on top; `None` outside a git checkout.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // A path that does not exist would run this script, and so the whole build, every time.
    let watched = [
        git(&["rev-parse", "--git-path", "logs/HEAD"]),
        Some("src".into()),
        Some("crates".into()),
        Some("Cargo.lock".into()),
    ];
    for path in watched.into_iter().flatten().filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12"])
}
