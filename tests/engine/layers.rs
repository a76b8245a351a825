//! The layers, held by reading the sources: who may use whom, who may print, how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::project::files;

/// What each module of the crate may use, besides itself. A `-` marks the command line, which may use all.
///
/// `digest`, `text`, `tree` and `param` are what everything else stands on: bytes and places in texts.
/// The engine is `stage` to `exec`, and never names a kind or a tensor. The computation is `io` to `stages`,
/// and never names a store, a plan or a terminal.
const TABLE: &[(&str, &str)] = &[
    // What everything stands on.
    ("digest", ""),
    ("text", ""),
    ("tree", "text"),
    ("param", "text tree"),
    // The engine.
    ("stage", "param tree"),
    ("pipeline", "stage param tree text"),
    ("graph", "pipeline text"),
    ("recipe", "digest"),
    ("store", "recipe digest"),
    ("manifest", "recipe digest store"),
    ("plan", "graph pipeline stage store recipe manifest digest"),
    ("forecast", "plan pipeline stage store recipe digest"),
    ("explain", "forecast plan graph pipeline stage store recipe manifest digest text tree"),
    ("event", "plan store"),
    ("adopt", "graph pipeline plan stage store recipe"),
    ("exec", "graph pipeline plan stage store recipe manifest event recall"),
    ("recall", "event manifest pipeline store recipe digest"),
    ("audit", "manifest store recipe digest"),
    ("attest", "manifest store digest"),
    ("replay", "pipeline param stage store recipe manifest digest text tree"),
    ("care", "manifest store recipe digest"),
    ("report", "event graph manifest"),
    // The computation.
    ("io", ""),
    ("nn", "io"),
    ("math", "nn io"),
    ("export", "io nn"),
    ("stages", "math nn io stage param tree text"),
    // The shell.
    ("cli", "-"),
];

const COMPUTATION: [&str; 5] = ["io", "nn", "math", "stages", "export"];
/// The modules that may call libtorch.
const TORCH: [&str; 3] = ["nn", "math", "stages"];
/// The modules that write to the terminal.
const PRINT: [&str; 2] = ["report", "cli"];
/// Macros at the crate's root belong to `param`.
const MACROS: [&str; 2] = ["params", "choice"];

struct Source {
    /// Relative to the repository.
    path: String,
    /// The module at the root of the crate, or a binary's name.
    module: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<(String, String)> {
    let paths: Vec<PathBuf> = files(&root().join(folder));
    let rust = paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    rust.map(|path| {
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        (name, fs_err::read_to_string(path).unwrap())
    })
    .collect()
}

/// The sources without the roots of the crate and of its binaries, which only name modules.
fn sources() -> Vec<Source> {
    let modules = rust_files("src").into_iter().filter_map(|(path, text)| {
        let below = path.strip_prefix("src/")?;
        let module = below.split_once('/').map_or(below, |(folder, _)| folder).trim_end_matches(".rs");
        if ["lib", "main", "bin"].contains(&module) {
            return None;
        }
        Some(Source { module: module.to_owned(), path: path.clone(), text })
    });
    modules.collect()
}

/// The code of a file: no comments, no texts.
fn code(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        // Every second piece stands between quotation marks.
        let pieces: Vec<&str> = line.split('"').step_by(2).collect();
        code += &pieces.join("\"\"");
        code.push('\n');
    }
    code
}

/// The names that follow `prefix` in a path or a `use` of several: `crate::a`, `crate::{a, b::c}`.
fn names_after(prefix: &str, code: &str) -> BTreeSet<String> {
    let word =
        |text: &str| text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (start, _) in code.match_indices(prefix) {
        let rest = &code[start + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut item = String::new();
        for c in group.chars() {
            match c {
                ',' | '}' if depth == 0 => {
                    names.insert(word(&item));
                    item.clear();
                }
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth < 0 || (c == '}' && depth == 0 && item.is_empty()) {
                break;
            }
            if c != ',' || depth > 0 {
                item.push(c);
            }
        }
    }
    names.remove("");
    names
}

#[test]
fn paths_are_read_right() {
    let names = |text: &str| names_after("crate::", &code(text)).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::store::{Entry, Store};"), ["store"]);
    assert_eq!(names("use crate::{choice, params};\nuse other::{x};"), ["choice", "params"]);
    assert_eq!(names("use crate::{a::{b, c}, d::e};\nlet x = 1;"), ["a", "d"]);
    assert_eq!(names("fn f() -> crate::io::Item { g(\"crate::x\") } // crate::y"), ["io"]);
    assert_eq!(names("/// [`x`](crate::y)\n//! crate::z"), [""; 0]);
}

#[test]
fn modules_use_what_the_table_allows() {
    let table: BTreeMap<&str, &str> = TABLE.iter().copied().collect();
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for Source { path, module, text } in sources() {
        let Some(allowed) = table.get(module.as_str()) else {
            faults.push(format!("{path}: `{module}` has no row in the table"));
            continue;
        };
        seen.insert(module.clone());
        let code = code(&text);
        let mut names = names_after("crate::", &code);
        names.extend(names_after("attrflow::", &code));
        // From a file at the top, one `super` is the root of the crate; for each folder below, one more is.
        let depth = path.matches('/').count() - usize::from(path.ends_with("/mod.rs"));
        let escape = "super::".repeat(depth);
        names.extend(names_after(&format!("\nuse {escape}"), &code));
        for name in names {
            let name = if MACROS.contains(&name.as_str()) { "param" } else { &name };
            let free = name == module || *allowed == "-";
            if !free && !allowed.split(' ').any(|known| known == name) {
                faults.push(format!("{path}: `{module}` must not use `{name}`"));
            }
        }
    }
    assert_eq!(faults, [""; 0]);
    for module in ["pipeline", "exec", "store", "stages", "io", "cli"] {
        assert!(seen.contains(module), "no file of `{module}` was read");
    }
}

#[test]
fn the_table_has_two_sides() {
    for (module, allowed) in TABLE.iter().filter(|(_, allowed)| *allowed != "-") {
        let computes = COMPUTATION.contains(module);
        for name in allowed.split_whitespace() {
            assert!(TABLE.iter().any(|(known, _)| *known == name), "{module}: there is no `{name}`");
            assert_eq!(
                computes && COMPUTATION.contains(&name),
                COMPUTATION.contains(&name),
                "{module}: {name}"
            );
            assert!(!["cli", "report", "audit"].contains(&name), "{module} uses the shell");
            if computes && !COMPUTATION.contains(&name) {
                assert!(
                    ["stage", "param", "tree", "text"].contains(&name),
                    "{module} uses the engine's {name}"
                );
            }
        }
    }
    assert!(!TABLE.iter().any(
        |(module, allowed)| ["io", "nn", "math", "export"].contains(module) && allowed.contains("stage")
    ));
}

#[test]
fn libtorch_is_called_by_the_computation_alone() {
    let mut callers = BTreeSet::new();
    for Source { path, module, text } in sources() {
        let code = code(&text);
        let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        if words.contains(&"tch") || words.contains(&"torch_sys") {
            assert!(TORCH.contains(&module.as_str()), "{path} calls libtorch");
            callers.insert(module);
        }
    }
    assert_eq!(callers.len(), TORCH.len(), "{callers:?}");
}

#[test]
fn noise_is_seeded_in_one_file() {
    let seeds = |text: &str| code(text).contains("manual_seed");
    let files: Vec<String> =
        sources().into_iter().filter(|source| seeds(&source.text)).map(|source| source.path).collect();
    assert_eq!(files, ["src/math/noise.rs"]);
}

#[test]
fn the_shell_alone_prints() {
    let marks = [
        "println!",
        "eprintln!",
        "print!(",
        "eprint!(",
        "dbg!(",
        "io::stdout",
        "io::stderr",
        "stdout()",
        "stderr()",
    ];
    let mut printers = BTreeSet::new();
    for Source { path, module, text } in sources() {
        let code = code(&text);
        if let Some(mark) = marks.iter().find(|mark| code.contains(**mark)) {
            assert!(PRINT.contains(&module.as_str()), "{path} prints: `{mark}`");
            printers.insert(module);
        }
    }
    assert_eq!(printers.len(), PRINT.len(), "{printers:?}");
}

#[test]
fn files_are_short() {
    const MOST: usize = 450;
    let mut count = 0;
    for (path, text) in rust_files("src").into_iter().chain(rust_files("tests")) {
        let lines = text.lines().count();
        assert!(lines <= MOST, "{path} has {lines} lines, more than {MOST}");
        count += 1;
    }
    assert!(count > 50, "only {count} files were found");
}

/// The libraries that a 64-bit little-endian ELF file asks the loader for.
fn needed(elf: &[u8]) -> Vec<String> {
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "not such a file");
    let number = |at: u64, bytes: usize| {
        let at = at as usize;
        elf[at..at + bytes].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let (sections, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let header = |index: u64| sections + index * size;
    // A section's type, offset, length, and the section that it links to.
    let section = |index: u64| {
        let at = header(index);
        (number(at + 4, 4), number(at + 0x18, 8), number(at + 0x20, 8), number(at + 0x28, 4))
    };
    const DYNAMIC: u64 = 6;
    const NEEDED: u64 = 1;
    let mut names = Vec::new();
    for (_, offset, length, strings) in (0..count).map(section).filter(|(kind, ..)| *kind == DYNAMIC) {
        let (_, strings, ..) = section(strings);
        for at in (offset..offset + length).step_by(16).filter(|at| number(*at, 8) == NEEDED) {
            let start = (strings + number(at + 8, 8)) as usize;
            let end = start + elf[start..].iter().position(|byte| *byte == 0).unwrap();
            names.push(String::from_utf8_lossy(&elf[start..end]).into_owned());
        }
    }
    names
}

/// Loading libtorch takes half a second; the front program must answer in milliseconds.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_front_program_does_not_load_libtorch() {
    let torch = |name: &String| name.contains("torch") || name.contains("c10") || name.contains("cuda");
    let front = needed(&fs_err::read(env!("CARGO_BIN_EXE_attrflow")).unwrap());
    assert!(front.iter().any(|name| name.starts_with("libc.so")), "{front:?}");
    assert!(!front.iter().any(torch), "{front:?}");
    let worker = needed(&fs_err::read(env!("CARGO_BIN_EXE_attrflow-worker")).unwrap());
    assert!(worker.iter().any(torch), "the worker loads none, so this test can't tell: {worker:?}");
}
