//! A user's program as a stage, with declared inputs, outputs and environment variables.
//!
//! It runs in a temporary folder, with its inputs as `inputs/NAME`, and leaves its outputs there. It only sees names that
//! are hashed: the same recipe gives the same bytes in another folder or on another machine, if the program is
//! deterministic.

mod links;
mod outputs;
mod process;
mod template;
mod variable;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value as Json, json};

use attrflow_engine::config::param::{PLAIN_NAME, Validate, plain_name};
use attrflow_engine::config::text::suggestion;
use attrflow_engine::config::tree::Node;
use attrflow_engine::kind::{Compute, Context, Inputs, Kind, KindInfo, Port, Stage, Task};
use attrflow_engine::params;
use template::{Argument, Piece};
use variable::{RecordedEnv, Variable};

pub use process::{adopt_orphans, kill_all};

/// In the command's folder: links to its inputs, and its temporary folder.
const INPUTS: &str = "inputs";
const TMP: &str = "tmp";

params! {
    /// Parameters of `command`.
    pub struct Command {
        /// The program and its arguments, without a shell; the program is found on the PATH. `{input.NAME}` is the path of
        /// an input (`inputs/NAME`, with a `/` at the end for a folder), `{output.NAME}` the name of an output's file,
        /// `{param.KEY}` a value of `values`; a literal brace is doubled. The program itself is not hashed: declare your
        /// script as an input, `["python3", "{input.script}"]`.
        argv: Vec<Argument>,
        /// The output ports, each with the file or folder that the command writes in its working folder. All else in it
        /// is discarded. An output consists of files and folders, without links.
        outputs: BTreeMap<String, String>,
        /// Your own values, of any type. The command gets them as a JSON object in the variable ATTRFLOW_PARAMS, and argv
        /// can refer to them.
        values: Map<String, Json> = Map::new(),
        /// Environment variables that are passed on but not hashed. PATH and HOME always are; LANG is C.UTF-8 and TMPDIR a
        /// temporary folder of the stage; all others are removed.
        env: Vec<Variable> = Vec::new(),
        /// Environment variables that are passed on and hashed: another value runs the stage again. Their values are stored
        /// in recipes and manifests, so do not name secrets here.
        env_counted: Option<RecordedEnv> = None,
    }
}

impl Validate for Command {
    fn validate(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.argv.first().is_none_or(|program| program.0.is_empty()) {
            faults.push(("argv", "`argv` is empty, expected a program and its arguments".to_owned()));
        }
        if self.outputs.is_empty() {
            let message = "`outputs` is empty, expected at least one `name = \"file\"`";
            faults.push(("outputs", message.to_owned()));
        }
        let mut seen = BTreeMap::new();
        for (port, file) in &self.outputs {
            if !plain_name(port) {
                faults.push(("outputs", format!("invalid output name `{port}`: expected {PLAIN_NAME}")));
            }
            if !plain_name(file) {
                let message = format!("the output `{port}` is `{file}`, expected a file name: {PLAIN_NAME}");
                faults.push(("outputs", message));
            } else if [INPUTS, TMP].contains(&file.as_str()) {
                faults
                    .push(("outputs", format!("the output `{port}` cannot be `{file}`, which is reserved")));
            }
            if let Some(other) = seen.insert(file, port) {
                faults.push(("outputs", format!("the outputs `{other}` and `{port}` are both `{file}`")));
            }
        }
        faults
    }
}

impl Command {
    /// The hashed variables with their values.
    fn recorded_env(&self) -> impl Iterator<Item = (&String, &Option<String>)> {
        self.env_counted.iter().flat_map(|recorded| &recorded.0)
    }

    /// The value at a dotted path.
    fn value(&self, path: &str) -> Option<&Json> {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let value = self.values.get(first)?;
        rest.map_or(Some(value), |rest| rest.split('.').try_fold(value, |value, key| value.get(key)))
    }
}

impl Kind for Command {
    const INFO: KindInfo = KindInfo {
        inputs: &[],
        outputs: &[],
        libtorch: false,
        dynamic_inputs: true,
        leaves: &[INPUTS, TMP],
        ports,
        ..KindInfo::new::<Self>("command", 1, "a program of your own, on declared inputs and outputs")
    };
}

impl Stage for Command {
    fn identity(&self) -> Json {
        let Self { argv, outputs, values, env: _, env_counted } = self;
        let env_counted =
            env_counted.as_ref().map(|recorded| &recorded.0).filter(|recorded| !recorded.is_empty());
        json!({ "argv": argv, "outputs": outputs, "values": values, "env_counted": env_counted })
    }

    fn variables(&self) -> BTreeMap<String, Option<String>> {
        self.recorded_env().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        for (index, argument) in self.argv.iter().enumerate() {
            for piece in argument.pieces().unwrap_or_default() {
                let fault = match piece {
                    Piece::Input(name) if !connected(name) => {
                        Some(format!("`{{input.{name}}}`: the stage has no input `{name}`"))
                    }
                    Piece::Output(name) if !self.outputs.contains_key(name) => {
                        let hint = suggestion(name, self.outputs.keys().map(String::as_str));
                        let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                        Some(format!("`{{output.{name}}}`: the stage has no output `{name}`{hint}"))
                    }
                    Piece::Param(path) if self.value(path).is_none() => {
                        let hint = suggestion(path, self.values.keys().map(String::as_str));
                        let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                        Some(format!("`{{param.{path}}}`: there is no `{path}` in `values`{hint}"))
                    }
                    _ => None,
                };
                faults.extend(fault.map(|fault| (format!("argv.{index}"), fault)));
            }
        }
        faults
    }

    /// Any files: only the command knows their format.
    fn accept(&self, _: &Inputs, _: &BTreeMap<String, PathBuf>) -> anyhow::Result<&'static str> {
        Ok("nothing")
    }
}

fn ports(_: &KindInfo, written: &Node) -> Vec<Port> {
    let outputs = written.as_table().and_then(|params| params.get("outputs")?.as_table());
    let entries = outputs.iter().flat_map(|outputs| &outputs.entries);
    let file = |node: &Node| node.as_text().unwrap_or_default().to_owned();
    entries.map(|(name, entry)| Port { name: name.clone(), file: file(&entry.node) }).collect()
}

impl Compute for Command {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        process::run(self, inputs, out)
    }
}
