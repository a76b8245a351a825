//! Inputs that take any number of sources.

use attrflow_engine::config::param::Validate;
use attrflow_engine::kind::{Compute, Context, Input, Kind, KindInfo, Output, Stage, Task};
use attrflow_engine::params;

use crate::project::{Project, changed, faults};

params! {
    /// Writes the names and contents of its inputs.
    pub struct Join {}
}
impl Validate for Join {}

impl Kind for Join {
    const INFO: KindInfo = KindInfo {
        inputs: &[Input::new("texts", "texts").many(), Input::new("more", "texts").many().optional()],
        outputs: &[Output::new("text", "text.txt", "text")],
        ..KindInfo::new::<Self>("join", 1, "joins texts")
    };
}

impl Stage for Join {
    fn check(&self, connected: &dyn Fn(&str) -> bool) -> Vec<(String, String)> {
        match connected("texts") {
            true => Vec::new(),
            false => vec![("texts".to_owned(), "not connected".to_owned())],
        }
    }
}

impl Compute for Join {
    fn run(&self, task: &Task, _: &Context<'_>) -> anyhow::Result<()> {
        let mut text = String::new();
        for (name, path) in ["texts", "more"].into_iter().flat_map(|port| task.inputs.many(port)) {
            text += &format!("{name}: {}\n", fs_err::read_to_string(path)?.trim());
        }
        Ok(fs_err::write(task.out.join("text.txt"), text)?)
    }
}

const PIPELINE: &str = r#"
config = "../configs/toy.toml"

[stages.pair]
kind = "say"
each = { item = "${items}", seed = "${seeds}" }
params = { text = "${item.text}", times = "${seed}" }

[stages.some]
kind = "say"
when = "${some}"

[stages.all]
kind = "join"
inputs = { texts = "pair[*].text", more = ["some.text", "./note.txt"] }

[stages.by_item]
kind = "join"
each = { item = "${items}" }
inputs = { texts = "pair[*].text" }

[stages.by_hand]
kind = "join"
inputs = { texts = [["some.text", "pair[one,2].text"], "pair[2,1].text"], more = ["some.text", ""] }
"#;

const CONFIG: &str = r#"
seeds = [1, 2]
some = false

[[items]]
name = "one"
text = "a"

[[items]]
name = 2
text = "b"
"#;

fn project() -> Project {
    let project = Project::new(PIPELINE, CONFIG);
    project.write("pipelines/note.txt", "note\n");
    project
}

#[test]
fn every_item_of_a_repeated_stage_is_gathered() {
    let project = project();
    project.run(&[]);
    let text = |stage: &str| project.read(&format!("results/toy/{stage}/text.txt"));
    assert_eq!(text("all"), "2,1: b\n2,2: bb\none,1: a\none,2: aa\nnote: note\n");
    assert_eq!(text("by_item/one"), "1: a\n2: aa\n");
    assert_eq!(text("by_item/2"), "1: b\n2: bb\n");
    assert_eq!(text("by_hand"), "2,1: b\none,2: aa\n");

    // A new item changes what gathers it, and nothing else.
    let ran = project.run(&["seeds=[1, 2, 3]"]);
    assert_eq!(ran.ran(), ["all", "by_item[2]", "by_item[one]", "pair[2,3]", "pair[one,3]"]);
    assert_eq!(text("by_item/2"), "1: b\n2: bb\n3: bbb\n");
    // A stage that is disabled gives nothing; enabled, it is there under its name.
    assert_eq!(project.run(&["some=true"]).ran(), ["all", "by_hand", "some"]);
    assert_eq!(text("by_hand"), "2,1: b\n: h\n: h\n");
}

#[test]
fn a_stage_without_items_gives_nothing() {
    let all = r#"["some.text", "./note.txt"]"#;
    let project = Project::new(&changed(PIPELINE, all, r#"["./note.txt", "by_item[*].text"]"#), CONFIG);
    project.write("pipelines/note.txt", "note\n");
    let by_item = "each = { item = \"${items}\" }\ninputs";
    let pipeline =
        changed(&project.read("pipelines/toy.toml"), by_item, "each = { item = \"${no_items}\" }\ninputs");
    project.write("pipelines/toy.toml", &pipeline);
    project.write("configs/toy.toml", &format!("no_items = []\n{CONFIG}"));
    project.run(&[]);
    assert_eq!(
        project.read("results/toy/all/text.txt"),
        "2,1: b\n2,2: bb\none,1: a\none,2: aa\nnote: note\n"
    );
    // An input that needs a source cannot do without.
    let pipeline = changed(&pipeline, r#", more = ["./note.txt", "by_item[*].text"]"#, "");
    let config = format!("no_items = []\n{CONFIG}");
    let all = "kind = \"join\"\ninputs = { texts = \"pair[*].text\" }";
    let faults = |new: &str| {
        faults(
            &changed(&pipeline, all, &format!("kind = \"join\"\ninputs = {{ texts = \"{new}\" }}")),
            &config,
            &[],
        )
    };
    insta::assert_snapshot!(faults("by_item[*].text"));
    insta::assert_snapshot!(faults("by_item.text"));
}

#[test]
fn inputs_of_many_sources_have_clear_faults() {
    let faults = |old: &str, new: &str| faults(&changed(PIPELINE, old, new), CONFIG, &[]);
    let all = r#"["some.text", "./note.txt"]"#;
    insta::assert_snapshot!(faults(all, r#"["pair[*].text", "pair[one,1].text"]"#));
    let pipeline = changed(PIPELINE, all, r#""pair[*].text""#);
    let faults = |old: &str, new: &str| crate::project::faults(&changed(&pipeline, old, new), CONFIG, &[]);
    let two = r#"times = "${seed}" }"#;
    insta::assert_snapshot!(faults(two, &format!("{two}\ninputs = {{ a = \"by_hand[*].text\" }}")));
    insta::assert_snapshot!(faults(r#"{ texts = "pair[*].text" }"#, r#"{ texts = "pairs[*].text" }"#));
    insta::assert_snapshot!(faults(
        r#"[["some.text", "pair[one,2].text"], "pair[2,1].text"], more"#,
        r#""some.text", more"#
    ));
}
