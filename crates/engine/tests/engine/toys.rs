//! Toy kinds that write text.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{
    ArtifactShape, Compute, Context, Estimate, ExpectedInputs, Inherit, Input, Inputs, Kind, KindInfo,
    Output, Registry, ShownAt, Stage, Task, Trial, Unit, Units, WorkSize,
};
use attrflow_engine::params;
use serde_json::{Value as Json, json};

use crate::many::Join;
use crate::rows::Rows;

params! {
    /// Writes a text, after the contents of its inputs.
    pub struct Say {
        text: String = "hello".to_owned(),
        times: u32 [1..=9] = 1,
    }
}
impl Validate for Say {
    const RENAMED: &'static [(&'static str, &'static str)] = &[("phrase", "text")];
}

impl Kind for Say {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("a", "text").optional(), Input::new("b", "text").optional()],
        outputs: &[Output::new("text", "text.txt", "text")],
        ..KindInfo::new::<Self>("say", 1, "writes a text")
    };
}

impl Stage for Say {
    fn accept(&self, inputs: &Inputs, outputs: &BTreeMap<String, PathBuf>) -> anyhow::Result<&'static str> {
        let text = fs_err::read_to_string(&outputs["text"])?;
        let expected = self.text.chars().next().map(String::from).unwrap_or_default();
        anyhow::ensure!(inputs.0.values().all(|path| path.exists()), "an input does not exist");
        anyhow::ensure!(text.contains(&expected), "found {text:?}, expected a `{expected}` in it");
        Ok("the first letter")
    }
}

impl Compute for Say {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut text = String::new();
        for port in ["a", "b"] {
            if let Some(path) = inputs.get(port) {
                let file = if path.is_dir() { path.join("a.txt") } else { path.to_path_buf() };
                text += &fs_err::read_to_string(file)?;
            }
        }
        // Only the first letter, so that a changed parameter can give unchanged bytes.
        text += &self.text.chars().next().map(String::from).unwrap_or_default().repeat(self.times as usize);
        anyhow::ensure!(!self.text.starts_with('!'), "failing as requested");
        if self.text == "nothing" {
            return Ok(());
        }
        Ok(fs_err::write(out.join("text.txt"), text)?)
    }
}

params! {
    /// Writes a line per number, each by a unit of its own, and a title above.
    pub struct Count {
        say: Say,
        to: u32 = 4,
        title: String = "".to_owned(),
    }
}
impl Validate for Count {}

impl Kind for Count {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("from", "text"), Input::merge("name", "text").optional()],
        outputs: &[Output::new("lines", "folder", "a folder with lines.txt")],
        ..KindInfo::new::<Self>("count", 1, "writes numbers")
    };
}

impl Stage for Count {
    fn unit_identity(&self) -> Json {
        json!({ "say": self.say })
    }

    fn units(&self, inputs: &Inputs) -> anyhow::Result<Units> {
        anyhow::ensure!(inputs.path("from").exists(), "nothing to count from");
        let unit = |n: u32| Unit { name: format!("number {n}"), range: json!({ "n": n }), steps: 1 };
        Ok(Units::Independent((0..self.to).map(unit).collect()))
    }

    fn estimate(&self, inputs: &ExpectedInputs) -> anyhow::Result<Estimate> {
        inputs.shape("from")?;
        let to = u64::from(self.to);
        Ok(Estimate {
            outputs: [("lines".to_owned(), ArtifactShape::Bytes(100 * to))].into(),
            parts: 10 * to,
            work: Some(WorkSize { steps: to, tasks: to, cost_key: json!(self.say), ..WorkSize::default() }),
        })
    }

    fn accept(&self, _: &Inputs, outputs: &BTreeMap<String, PathBuf>) -> anyhow::Result<&'static str> {
        anyhow::ensure!(outputs["lines"].join("lines.txt").is_file(), "no lines.txt");
        Ok("names")
    }
}

impl Compute for Count {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let from = fs_err::read_to_string(inputs.path("from"))?;
        cx.progress(1, 1);
        let n = &task.unit()?.range["n"];
        Ok(fs_err::write(out.join("line"), format!("{from}{n}{}\n", self.say.text))?)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let mut text = self.title.clone();
        if let Some(name) = inputs.get("name") {
            text += &fs_err::read_to_string(name)?;
        }
        for part in parts {
            text += &fs_err::read_to_string(part.join("line"))?;
        }
        fs_err::create_dir_all(out.join("folder/sub"))?;
        fs_err::write(out.join("folder/sub/title.txt"), &self.title)?;
        Ok(fs_err::write(out.join("folder/lines.txt"), text)?)
    }

    fn trial(
        &self,
        inputs: &ExpectedInputs,
        steps: u64,
        folder: &Path,
        _: &Context<'_>,
    ) -> anyhow::Result<Trial> {
        let mut inputs = inputs.inputs();
        if inputs.get("from").is_none() {
            fs_err::write(folder.join("from"), "made up\n")?;
            inputs.0.insert("from".into(), folder.join("from"));
        }
        // Five steps at most, and two at least.
        let steps = steps.clamp(2, 5);
        let unit = Unit { name: "a trial".into(), range: json!({ "n": 0 }), steps };
        Ok(Trial { stage: Box::new(self.clone()), inputs, units: vec![unit], steps, merges: true })
    }
}

params! {
    /// Inherits `say` from the stage that it reads.
    pub struct Echo {
        say: Say,
    }
}
impl Validate for Echo {}

impl Kind for Echo {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("lines", "a folder")],
        outputs: &[Output::new("text", "text.txt", "text")],
        inherits: &[Inherit { param: "say", port: "lines" }],
        libtorch: false,
        ..KindInfo::new::<Self>("echo", 1, "repeats")
    };
}

impl Stage for Echo {}

impl Compute for Echo {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let Task { out, .. } = task;
        Ok(fs_err::write(out.join("text.txt"), &self.say.text)?)
    }
}

params! {
    /// Writes where the results folder shows what it reads.
    pub struct Where {
        at: String = "".to_owned(),
    }
}
impl Validate for Where {}

impl Kind for Where {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("read", "anything")],
        outputs: &[Output::new("text", "text.txt", "text")],
        shown_at: &[ShownAt { param: "at", port: "read" }],
        libtorch: false,
        ..KindInfo::new::<Self>("where", 1, "locates")
    };
}

impl Stage for Where {}

impl Compute for Where {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        Ok(fs_err::write(task.out.join("text.txt"), &self.at)?)
    }
}

pub fn registry() -> Registry {
    vec![&Say::INFO, &Count::INFO, &Steps::INFO, &Echo::INFO, &Where::INFO, &Rows::INFO, &Join::INFO]
}

params! {
    /// Writes a line per step, each by a unit that reads the lines of the unit before.
    pub struct Steps {
        text: String = "s".to_owned(),
        to: u32 = 4,
        start: String = "".to_owned(),
        /// A file that the step 1 reads although it is not hashed.
        salt: String = "".to_owned(),
    }
}
impl Validate for Steps {}

impl Kind for Steps {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("from", "text").optional()],
        outputs: &[Output::new("text", "text.txt", "text")],
        ..KindInfo::new::<Self>("steps", 1, "adds lines")
    };
}

impl Stage for Steps {
    fn unit_identity(&self) -> Json {
        json!({ "text": self.text })
    }

    fn units(&self, _: &Inputs) -> anyhow::Result<Units> {
        let unit = |n: u32| {
            let range = if n == 0 { json!({ "step": n, "start": self.start }) } else { json!({ "step": n }) };
            Unit { name: format!("step {n}"), range, steps: 1 }
        };
        Ok(Units::Chain((0..self.to).map(unit).collect()))
    }

    fn estimate(&self, _: &ExpectedInputs) -> anyhow::Result<Estimate> {
        let to = u64::from(self.to);
        let work = Some(WorkSize { steps: to, tasks: to, cost_key: json!(self.text), ..WorkSize::default() });
        Ok(Estimate { outputs: [("text".to_owned(), ArtifactShape::Bytes(10))].into(), parts: 10 * to, work })
    }
}

impl Compute for Steps {
    fn run(&self, task: &Task, cx: &Context<'_>) -> anyhow::Result<()> {
        let Task { inputs, out, .. } = task;
        let step = task.unit()?.range["step"].as_u64();
        let before = match (inputs.previous(), step) {
            (None, Some(0)) => self.start.clone(),
            (Some(before), Some(1..)) => fs_err::read_to_string(before.join("text"))?,
            (before, step) => anyhow::bail!("step {step:?} after {before:?}"),
        };
        let salt = if step == Some(1) { fs_err::read_to_string(&self.salt)? } else { String::new() };
        cx.progress(1, 1);
        let step = step.unwrap_or_default();
        Ok(fs_err::write(out.join("text"), format!("{before}{}{step}{salt}\n", self.text))?)
    }

    fn merge(&self, task: &Task, parts: &[PathBuf], _: &Context<'_>) -> anyhow::Result<()> {
        fs_err::copy(parts[parts.len() - 1].join("text"), task.out.join("text.txt"))?;
        Ok(())
    }
}
