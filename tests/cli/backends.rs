//! The workers of this machine do what every backend must, as the program starts them.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use attrflow_engine::kind::{Device, Downloads, Inputs, Step, Task};
use attrflow_engine::worker::cancel::Cancel;
use attrflow_engine::worker::local::{LocalBackend, WorkerProgram};
use attrflow_engine::worker::protocol::{DeviceClass, Reply, TaskBatch, TaskError, WorkerConfig};
use attrflow_engine::worker::{Backend, Request, Work};

use crate::acts::{params, shell};
use crate::conformance::{Subject, conformance};

fn backend(front: &Path, folder: &Path) -> LocalBackend {
    let downloads = Downloads { folder: folder.join("downloads"), lock: folder.join("lock"), at_once: 1 };
    let config = WorkerConfig {
        device: Device::Cpu,
        threads: 1,
        micro_batch: 1,
        downloads,
        trials: folder.join("trials"),
        log: "info".into(),
    };
    let path = PathBuf::from(env!("CARGO_BIN_EXE_attrflow-worker"));
    let worker = WorkerProgram { path, libtorch: Err("no test asks for it".into()) };
    LocalBackend { worker, front: front.to_path_buf(), settings: vec![config.clone(), config] }
}

fn request(cancel: &Cancel) -> Request<'_> {
    Request { slot: 0, libtorch: false, waiting: &|| 1, cancel }
}

#[test]
fn worker_processes() {
    let folder = tempfile::tempdir().unwrap();
    let backend = backend(Path::new(env!("CARGO_BIN_EXE_attrflow")), folder.path());
    let (kind, file) = ("command", "file");
    conformance(&Subject {
        backend: &backend,
        libtorch: false,
        kind,
        params: &params,
        file,
        progress: false,
    });
}

/// A program in place of the command-line program, which may write to standard output first.
fn wrapper(folder: &Path, script: &str) -> LocalBackend {
    let program = folder.join("wrapper");
    fs_err::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs_err::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    backend(&program, folder)
}

#[test]
fn what_a_library_prints_is_a_log_line() {
    let folder = tempfile::tempdir().unwrap();
    let (attrflow, at) = (env!("CARGO_BIN_EXE_attrflow"), folder.path().display());
    let wait = |file: &str| format!("until test -e {at}/{file}; do sleep 0.01; done");
    let later = format!("({}; echo noise; touch {at}/went) &", wait("go"));
    let script = format!("echo before the hello\n{later}\nexec {attrflow} \"$@\"");
    let backend = wrapper(folder.path(), &script);
    let mut worker = backend.next(&request(&Cancel::default())).unwrap().unwrap();
    assert_eq!(worker.facts().device, DeviceClass::Cpu);
    let script = format!("touch {at}/go; {}; printf done > file", wait("went"));
    let out = folder.path().join("out");
    fs_err::create_dir(&out).unwrap();
    let task = Task { params: shell(&script), inputs: Inputs::default(), step: Step::Whole, out };
    let batches = vec![TaskBatch { kind: "command".into(), tasks: vec![task] }];
    let mut replies = Vec::new();
    worker.run(&Work { batches, notes: Vec::new() }, &mut |reply| replies.push(reply)).unwrap();
    let noise = |reply: &Reply| matches!(reply, Reply::Log { message, .. } if message == "noise");
    assert!(replies.iter().any(noise), "{replies:?}");
}

#[test]
fn programs_that_are_not_workers() {
    let folder = tempfile::tempdir().unwrap();
    let error = |script: &str| {
        let backend = wrapper(folder.path(), script);
        backend.next(&request(&Cancel::default())).err().expect("no worker")
    };
    assert!(matches!(error("exit 3"), TaskError::Died(_)));
    let hello = r#"echo '{"hello":{"build":"","protocol":99,"device":"cpu","memory":0,"host":""}}'; sleep 5"#;
    match error(hello) {
        TaskError::Refused(text) => assert!(text.contains("version 99 of the protocol"), "{text}"),
        other => panic!("{other}"),
    }
}
