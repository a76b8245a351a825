//! What a task of a backend's test does, as a stage of the kind `command`.

use serde_json::{Value as Json, json};

use crate::conformance::Act;

/// A stage of the kind `command`.
pub fn shell(script: &str) -> Json {
    let argv = ["sh", "-c", script];
    json!({ "argv": argv, "outputs": { "file": "file" }, "values": {}, "env": [], "env_counted": null })
}

pub fn params(act: &Act) -> Json {
    shell(&match act {
        Act::Write => "printf done > file".to_owned(),
        Act::Log => "echo a line; printf done > file".to_owned(),
        Act::Fail => "echo no luck; exit 3".to_owned(),
        Act::Die => "kill -9 $PPID; sleep 60".to_owned(),
        Act::Meet(own, other) => {
            let (own, other) = (own.display(), other.display());
            format!("touch {own}; until test -e {other}; do sleep 0.01; done; printf done > file")
        }
        Act::Hang(id) => format!("echo $$ > {}; exec sleep 300", id.display()),
    })
}
