//! The layers, held by reading the sources: which module may import which, that no files import each other in a circle, who
//! may print, how long a file may be. That the engine calls no libtorch is a fact of its `Cargo.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each module may import of its own crate. A module comes after all that it imports, so no arrow runs upward.
const ENGINE: &[(&str, &str)] = &[
    ("config", ""),
    ("identity", ""),
    ("store", "identity"),
    ("remote", "identity store"),
    ("kind", "config"),
    ("pipeline", "config kind"),
    ("worker", "identity kind"),
    ("provenance", "config identity kind pipeline store"),
    ("plan", "config identity kind pipeline provenance store"),
    ("maintenance", "identity provenance remote store"),
    ("exec", "identity kind pipeline plan provenance store worker"),
    ("estimate", "identity kind pipeline plan provenance store worker"),
    ("cluster", "identity kind pipeline remote store worker"),
    ("explain", "config estimate identity kind pipeline plan store"),
];
const ATTRFLOW: &[(&str, &str)] = &[
    ("io", ""),
    ("progress", "io"),
    ("models", "io"),
    ("method", "models"),
    ("export", "io models"),
    ("kinds", "io method models"),
    ("results", "io"),
    ("report", "io progress results"),
    ("cli", "export io kinds progress report results"),
];
/// What may not use the engine: files and formats know nothing of pipelines.
const WITHOUT_ENGINE: [&str; 2] = ["io", "export"];
/// What may use of the engine the declaration of parameters alone, and how a path to it begins.
const PARAMETERS_ONLY: [&str; 2] = ["models", "method"];
const PARAMETERS: [&str; 3] = ["config", "choice", "params"];
/// The modules that may call libtorch.
const TORCH: [&str; 3] = ["models", "method", "kinds"];
/// The modules that write to the terminal; to standard output, the worker's loop writes its replies.
const PRINT: [&str; 3] = ["progress", "cli", "worker"];

/// A source file: the path of its module, and its code without comments, texts and tests.
struct Source {
    file: String,
    module: Vec<String>,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
                found.push((name, fs_err::read_to_string(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The modules of a crate, without its root and binaries, which only name modules, and without files of tests.
fn sources(folder: &str) -> Vec<Source> {
    let modules = rust_files(folder).into_iter().filter_map(|(file, text)| {
        let below = file.strip_prefix(folder)?.trim_start_matches('/').trim_end_matches(".rs");
        let module: Vec<String> = below.trim_end_matches("/mod").split('/').map(str::to_owned).collect();
        let skipped = ["lib", "main", "bin"].contains(&module[0].as_str()) || below.ends_with("tests");
        (!skipped).then(|| Source { code: code(&text), file: file.clone(), module })
    });
    modules.collect()
}

/// The code of a file: no comments, no texts, no tests.
fn code(text: &str) -> String {
    let mut code = String::new();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or_default();
        // Every second piece is between quotation marks.
        let pieces: Vec<&str> = line.split('"').step_by(2).collect();
        code += &pieces.join("\"\"");
        code.push('\n');
    }
    code
}

/// The paths in a file that begin with one of `heads`, those of a `use` of several one by one.
fn paths(code: &str, heads: &[&str]) -> Vec<Vec<String>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut paths = Vec::new();
    for head in heads {
        for (start, _) in code.match_indices(&format!("{head}::")) {
            if !code[..start].ends_with(|c: char| is_word(c) || c == ':') {
                read_tree(&code[start..], &mut Vec::new(), &mut paths);
            }
        }
    }
    paths
}

/// Reads one path or group of paths and returns how long it is.
fn read_tree(text: &str, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    let mut at = text.len() - text.trim_start().len();
    if text[at..].starts_with('{') {
        at += 1;
        while !text[at..].trim_start().starts_with('}') && at < text.len() {
            at += read_tree(&text[at..], prefix, paths);
            at += text[at..].find([',', '}']).map_or(text.len() - at, |end| end);
            at += usize::from(text[at..].starts_with(','));
        }
        return at + text[at..].find('}').map_or(0, |end| end + 1);
    }
    loop {
        let word: String =
            text[at..].chars().take_while(|c| c.is_alphanumeric() || "_*".contains(*c)).collect();
        at += word.len();
        prefix.push(word);
        if !text[at..].starts_with("::") {
            paths.push(prefix.clone());
            break;
        }
        at += 2;
        if text[at..].starts_with('{') {
            at += read_tree(&text[at..], prefix, paths);
            break;
        }
    }
    prefix.truncate(depth);
    at
}

/// The modules that a file imports.
fn imports<'a>(source: &Source, modules: &BTreeSet<&'a [String]>) -> BTreeSet<&'a [String]> {
    let mut found = BTreeSet::new();
    let mut all = paths(&source.code, &["crate", "super", "self"]);
    // A module names those below it without a prefix.
    for below in
        modules.iter().filter(|known| known.split_last().is_some_and(|(_, rest)| rest == source.module))
    {
        let name = &below[below.len() - 1];
        let named = paths(&source.code, &[name.as_str()]);
        all.extend(named.into_iter().map(|path| [vec!["self".to_owned()], path].concat()));
    }
    for path in all {
        let mut absolute = source.module.clone();
        let mut rest = path.as_slice();
        while let [first, others @ ..] = rest {
            match first.as_str() {
                "crate" => absolute.clear(),
                "self" => {}
                "super" => drop(absolute.pop()),
                _ => break,
            }
            rest = others;
        }
        absolute.extend(rest.iter().cloned());
        // Macros at the crate's root belong to `config`.
        if ["params", "choice"].contains(&absolute.first().map_or("", String::as_str)) {
            absolute = vec!["config".to_owned()];
        }
        let module = (1..=absolute.len()).rev().find_map(|length| modules.get(&absolute[..length]));
        found.extend(module.filter(|module| ***module != source.module));
    }
    found
}

#[test]
fn paths_are_read_right() {
    let names = |text: &str| {
        let paths = paths(&code(text), &["crate"]).into_iter();
        paths.map(|path| path[1..].join("::")).collect::<Vec<_>>()
    };
    assert_eq!(names("use crate::store::{Entry, Store};"), ["store::Entry", "store::Store"]);
    assert_eq!(names("use crate::{choice, params};\nuse other::{x};"), ["choice", "params"]);
    assert_eq!(names("use crate::{a::{b, c as z}, d::e};\nlet x = 1;"), ["a::b", "a::c", "d::e"]);
    assert_eq!(names("fn f() -> crate::io::Item { g(\"crate::x\") } // crate::y"), ["io::Item"]);
    assert_eq!(names("/// [`x`](crate::y)\n//! crate::z\nmycrate::u"), [""; 0]);
}

#[test]
fn modules_import_what_the_table_allows() {
    for (folder, table) in [("crates/engine/src", ENGINE), ("src", ATTRFLOW)] {
        let (sources, mut faults) = (sources(folder), Vec::new());
        let modules: BTreeSet<&[String]> = sources.iter().map(|source| source.module.as_slice()).collect();
        let mut arrows = BTreeSet::new();
        for source in &sources {
            let own = &source.module[0];
            let Some((_, allowed)) = table.iter().find(|(name, _)| name == own) else {
                faults.push(format!("{}: `{own}` has no row in the table", source.file));
                continue;
            };
            for module in imports(source, &modules) {
                if module[0] != *own {
                    arrows.insert((own, &module[0]));
                    if !allowed.split(' ').any(|name| name == module[0]) {
                        faults.push(format!("{}: `{own}` must not import `{}`", source.file, module[0]));
                    }
                }
            }
            let allowed: &[&str] = match own.as_str() {
                own if WITHOUT_ENGINE.contains(&own) => &[],
                own if PARAMETERS_ONLY.contains(&own) => &PARAMETERS,
                _ => continue,
            };
            for path in paths(&source.code, &["attrflow_engine"]) {
                if !allowed.contains(&path[1].as_str()) {
                    faults
                        .push(format!("{}: `{own}` must not import the engine's `{}`", source.file, path[1]));
                }
            }
        }
        assert_eq!(faults, [""; 0]);
        for (place, (name, allowed)) in table.iter().enumerate() {
            for other in allowed.split_whitespace() {
                let lower = table[..place].iter().any(|(lower, _)| *lower == other);
                assert!(lower, "`{name}` may import `{other}`, which does not come before it");
                let used = arrows.iter().any(|(from, to)| *from == name && *to == other);
                assert!(used, "`{name}` may import `{other}` and does not");
            }
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for folder in ["crates/engine/src", "crates/statistics/src", "src"] {
        let sources = sources(folder);
        let modules: BTreeSet<&[String]> = sources.iter().map(|source| source.module.as_slice()).collect();
        let mut imported: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
        for source in &sources {
            let own = source.module.as_slice();
            // A folder's own file counts for all of the folder.
            let outside = |other: &&[String]| !own.starts_with(other) && !other.starts_with(own);
            imported.insert(own, imports(source, &modules).into_iter().filter(outside).collect());
        }
        // What imports nothing that is left can't be part of a circle.
        while let Some(leaf) = imported.iter().find(|(_, imports)| imports.is_empty()).map(|(leaf, _)| *leaf)
        {
            imported.remove(leaf);
            imported.values_mut().for_each(|imports| _ = imports.remove(leaf));
        }
        let circle: Vec<String> = imported
            .iter()
            .map(|(file, imports)| {
                let imports: Vec<String> = imports.iter().map(|module| module.join("/")).collect();
                format!("{} imports {}", file.join("/"), imports.join(", "))
            })
            .collect();
        assert_eq!(circle, [""; 0], "below {folder}");
    }
}

#[test]
fn libtorch_is_called_by_the_computation_alone() {
    let mut callers = BTreeSet::new();
    for Source { file, module, code } in sources("src") {
        if !paths(&code, &["tch", "torch_sys"]).is_empty() {
            assert!(TORCH.contains(&module[0].as_str()), "{file} calls libtorch");
            callers.insert(module[0].clone());
        }
    }
    assert_eq!(callers.len(), TORCH.len(), "{callers:?}");
}

#[test]
fn noise_is_seeded_in_one_file() {
    let seeds = sources("src").into_iter().filter(|source| source.code.contains("manual_seed"));
    assert_eq!(seeds.map(|source| source.file).collect::<Vec<_>>(), ["src/method/noise.rs"]);
}

#[test]
fn only_the_command_line_prints() {
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
    for Source { file, module, code } in sources("src").into_iter().chain(sources("crates/engine/src")) {
        if let Some(mark) = marks.iter().find(|mark| code.contains(**mark)) {
            assert!(PRINT.contains(&module[0].as_str()), "{file} prints: `{mark}`");
            printers.insert(module[0].clone());
        }
    }
    assert_eq!(printers.len(), PRINT.len(), "{printers:?}");
}

#[test]
fn files_are_short() {
    const MOST: usize = 450;
    let mut count = 0;
    for (path, text) in ["src", "crates", "kernels", "tests"].iter().flat_map(|folder| rust_files(folder)) {
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
