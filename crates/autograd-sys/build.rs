//! Compiles the node of the graph against the headers of the libtorch that the bindings are linked with.

#![allow(clippy::disallowed_methods, reason = "a build script has no fs_err")]

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/node.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-env-changed=LIBTORCH_INCLUDE");
    let folder = std::env::var_os("LIBTORCH_INCLUDE").or_else(|| std::env::var_os("LIBTORCH"));
    let include = PathBuf::from(folder.unwrap_or_default()).join("include");
    cc::Build::new()
        .cpp(true)
        .file("src/node.cpp")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .warnings(false)
        // It only hands tensors over: optimising it gains nothing.
        .opt_level(1)
        .debug(false)
        .flag("-std=c++17")
        .compile("attrflow_autograd");
}
