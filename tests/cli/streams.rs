//! Output that cannot be written, and signals that whoever started the program wants to be ignored.

use std::process::{Command, Stdio};

use crate::project::Ran;

/// What a shell says of a script in a folder with a pipeline of two stages, each of which takes half a second.
fn shell(script: &str) -> (Ran, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let stage = |name: &str, inputs: &str| {
        format!(
            "[stages.{name}]\nkind = \"command\"\n{inputs}\
             params = {{ argv = [\"sh\", \"-c\", \"sleep 0.5; echo > o\"], outputs = {{ o = \"o\" }} }}\n"
        )
    };
    let text = stage("first", "") + &stage("second", "inputs = { a = \"first.o\" }\n");
    fs_err::write(folder.path().join("p.toml"), text).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("ATTRFLOW", env!("CARGO_BIN_EXE_attrflow")).stdin(Stdio::null());
    let ran = command.current_dir(folder.path()).output().unwrap();
    (Ran::from(ran), folder)
}

#[test]
fn output_that_is_lost_is_an_error() {
    for (script, reason) in [
        ("\"$ATTRFLOW\" kinds >&-", "Bad file descriptor"),
        ("\"$ATTRFLOW\" plan p.toml >&-", "Bad file descriptor"),
        ("\"$ATTRFLOW\" kinds > /dev/full", "No space left on device"),
        ("\"$ATTRFLOW\" --help > /dev/full", "No space left on device"),
    ] {
        let (ran, _folder) = shell(script);
        let expected = format!("error: standard output: {reason}");
        assert!(ran.code == 1 && ran.err.starts_with(&expected), "{script}: {ran:?}");
    }
    // A reader that has seen enough, and nobody who reads at all.
    for script in ["\"$ATTRFLOW\" kinds | true", "\"$ATTRFLOW\" kinds > /dev/null"] {
        let (ran, _folder) = shell(script);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{script}");
    }
}

#[test]
fn a_run_goes_on_where_its_messages_cannot_be_written() {
    for end in ["2> /dev/full", "2>&-", "2>&1 | true"] {
        let (ran, folder) = shell(&format!("\"$ATTRFLOW\" run p.toml {end}"));
        assert_eq!(ran.code, 0, "{end}: {ran:?}");
        assert!(folder.path().join("results/p/second/o").exists(), "{end}");
    }
    let (ran, _folder) = shell("\"$ATTRFLOW\" plan missing.toml 2> /dev/full");
    assert_eq!(ran.code, 2);
}

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    for signal in ["HUP", "INT", "TERM"] {
        let script = format!(
            "trap '' {signal}; \"$ATTRFLOW\" run p.toml & run=$!; sleep 0.3; kill -{signal} $run; wait $run"
        );
        let (ran, folder) = shell(&script);
        assert_eq!(ran.code, 0, "{signal}: {ran:?}");
        assert!(folder.path().join("results/p/second/o").exists(), "{signal}");
    }
}
