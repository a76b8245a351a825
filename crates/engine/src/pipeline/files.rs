//! The files of a pipeline: the main file and its includes, read into one list of stages.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::env_vars::Env;
use super::only_keys;
use crate::config::text::{Origin, Problems, Sources};
use crate::config::tree::{self, Entry, Node, Table, Value};

/// The keys of a pipeline file.
const KEYS: [&str; 5] = ["config", "include", "env", "defaults", "stages"];

/// The merged content of a pipeline's files.
pub(super) struct Parts {
    /// Index of the main file's text.
    pub text: usize,
    /// Stages by name: those of an included file before those of the file that includes it, each in file order.
    pub stages: Vec<(String, Entry)>,
    /// Default parameters by kind.
    pub defaults: Table,
    /// The config that the files share: its path, and the location of its name.
    pub config: Option<(PathBuf, Origin)>,
    /// The environment, with the declared variables.
    pub env: Env,
}

/// Reads a file and its includes; `None` if no stage can be read.
pub(super) fn read(file: &Path, sources: &mut Sources, problems: &mut Problems) -> Option<Parts> {
    let mut files =
        Files { sources, problems, open: Vec::new(), done: BTreeSet::new(), names: BTreeMap::new() };
    let mut parts =
        Parts { text: 0, stages: Vec::new(), defaults: Table::default(), config: None, env: Env::default() };
    files.file(file, None, &mut parts)?;
    problems.is_empty().then_some(parts)
}

/// Reads a file into `sources`; a read error is reported at `origin`.
pub(super) fn read_text(
    file: &Path,
    origin: Option<&Origin>,
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<usize> {
    let folder = file.parent().map(Path::to_path_buf).unwrap_or_default();
    let folder =
        std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { &folder }).ok()?;
    sources.note_file(file);
    match regular(file).and_then(|()| fs_err::read_to_string(file)) {
        Ok(text) => Some(sources.add(file.display().to_string(), folder, text)),
        Err(error) => {
            match origin {
                Some(origin) => problems.at(origin, error.to_string()),
                None => problems.general(error.to_string()),
            };
            None
        }
    }
}

/// Refuses what is no file: reading a FIFO would wait for ever.
fn regular(file: &Path) -> std::io::Result<()> {
    // One that is missing is reported when it is opened.
    let Ok(kind) = fs_err::metadata(file).map(|found| found.file_type()) else { return Ok(()) };
    if kind.is_file() {
        return Ok(());
    }
    let what = if kind.is_dir() { "a folder" } else { "a FIFO, a socket or a device" };
    Err(std::io::Error::other(format!("{}: found {what}, expected a file", file.display())))
}

/// The traversal of the files.
struct Files<'s> {
    sources: &'s mut Sources,
    problems: &'s mut Problems,
    /// The file that is read and those that include it, outermost first: real path, and name for people.
    open: Vec<(PathBuf, String)>,
    /// Files already read: one that two others include is part of the pipeline once.
    done: BTreeSet<PathBuf>,
    /// Location of each stage.
    names: BTreeMap<String, Origin>,
}

impl Files<'_> {
    fn file(&mut self, file: &Path, named: Option<&Origin>, parts: &mut Parts) -> Option<()> {
        let name = file.display().to_string();
        let real = fs_err::canonicalize(file).unwrap_or_else(|_| file.to_path_buf());
        if let Some(first) = self.open.iter().position(|(open, _)| *open == real) {
            let cycle: Vec<String> = self.open[first + 1..]
                .iter()
                .map(|(_, name)| format!("`{name}`"))
                .chain([format!("`{}`", self.open[first].1)])
                .collect();
            let message = match cycle.as_slice() {
                [_] => format!("`{name}` includes itself"),
                _ => {
                    format!("a cycle: `{}` includes {}", self.open[first].1, cycle.join(", which includes "))
                }
            };
            self.problems.at(named?, message);
            return None;
        }
        if !self.done.insert(real.clone()) {
            self.sources.note_file(file);
            return Some(());
        }
        let text = read_text(file, named, self.sources, self.problems)?;
        let root = tree::parse(self.sources, text, self.problems);
        let Value::Table(mut table) = root.value else { return None };
        if named.is_none() {
            parts.text = text;
        }
        only_keys(&table, &KEYS, self.problems);
        if let Some(entry) = table.entries.remove("env") {
            parts.env.declare(&entry.node, self.problems);
        }
        if let Some(node) = table.get("config") {
            self.config(node, text, parts);
        }
        self.open.push((real, name));
        if let Some(node) = table.get("include") {
            self.include(node, text, parts);
        }
        self.open.pop();
        if let Some(entry) = table.entries.remove("defaults") {
            self.defaults(entry.node, parts);
        }
        if let Some(entry) = table.entries.remove("stages") {
            self.stages(entry.node, parts);
        }
        Some(())
    }

    /// A path written in a file, relative to the working folder.
    fn path(&mut self, node: &Node, text: usize, env: &Env) -> Option<PathBuf> {
        let mut node = node.clone();
        env.fill(&mut node, self.problems);
        match &node.value {
            Value::Text(path) if !path.is_empty() => Some(short_path(&self.sources.get(text).name, path)),
            Value::Text(_) => {
                self.problems.at(&node.origin, "expected a path, found an empty string");
                None
            }
            _ => {
                self.problems.at(&node.origin, format!("expected a path, found {}", node.type_name()));
                None
            }
        }
    }

    fn config(&mut self, node: &Node, text: usize, parts: &mut Parts) {
        let Some(path) = self.path(node, text, &parts.env) else { return };
        let real = |path: &Path| fs_err::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        match &parts.config {
            None => parts.config = Some((path, node.origin.clone())),
            Some((first, _)) if real(first) == real(&path) => self.sources.note_file(&path),
            Some((first, place)) => {
                let place = self.sources.position(place);
                let message = format!(
                    "a second config `{}`: a pipeline has one config, and {place} names `{}`",
                    path.display(),
                    first.display()
                );
                self.problems.at(&node.origin, message);
            }
        }
    }

    fn include(&mut self, node: &Node, text: usize, parts: &mut Parts) {
        let Value::List(items) = &node.value else {
            let message = format!("expected an array of files, found {}", node.type_name());
            self.problems.at(&node.origin, message).help("expected `include = [\"common.toml\"]`");
            return;
        };
        for item in items {
            if let Some(path) = self.path(item, text, &parts.env) {
                self.file(&path, Some(&item.origin), parts);
            }
        }
    }

    fn defaults(&mut self, node: Node, parts: &mut Parts) {
        let form = "expected `[defaults.KIND]` with parameters";
        let found = node.type_name();
        let Value::Table(kinds) = node.value else {
            self.problems.at(&node.origin, format!("expected a table of kinds, found {found}")).help(form);
            return;
        };
        for (kind, Entry { key, node }) in kinds.entries {
            let found = node.type_name();
            let Value::Table(params) = node.value else {
                let message = format!("expected a table of parameters, found {found}");
                self.problems.at(&node.origin, message).help(form);
                continue;
            };
            let empty = Node { value: Value::Table(Table::default()), origin: node.origin };
            let known =
                parts.defaults.entries.get_or_insert_with(kind.clone(), || Entry { key, node: empty });
            let Value::Table(known) = &mut known.node.value else { continue };
            for (name, entry) in params.entries {
                if let Some(first) = known.entries.get(&name) {
                    let place = self.sources.position(&first.key);
                    let message =
                        format!("a second default of `{name}` for `{kind}`: the first is at {place}");
                    self.problems.at(&entry.key, message);
                } else {
                    known.entries.insert(name, entry);
                }
            }
        }
    }

    fn stages(&mut self, node: Node, parts: &mut Parts) {
        let found = node.type_name();
        let Value::Table(stages) = node.value else {
            self.problems.at(&node.origin, format!("expected a table of stages, found {found}"));
            return;
        };
        let mut stages: Vec<(String, Entry)> = stages.entries.into_iter().collect();
        // Listings use file order; tables are sorted by name.
        stages.sort_by_key(|(_, entry)| entry.key.span.start);
        for (name, entry) in stages {
            match self.names.get(&name) {
                Some(first) => {
                    let place = self.sources.position(first);
                    let message = format!("a second stage `{name}`: the first is at {place}");
                    self.problems.at(&entry.key, message);
                }
                None => {
                    self.names.insert(name.clone(), entry.key.clone());
                    parts.stages.push((name, entry));
                }
            }
        }
    }
}

/// `configs/demo.toml` for `../configs/demo.toml` named in `pipelines/demo.toml`: relative as the user gave it.
fn short_path(from: &str, path: &str) -> PathBuf {
    let mut out = Path::new(from).parent().map(Path::to_path_buf).unwrap_or_default();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}
