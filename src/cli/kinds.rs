//! `attrflow kinds`: the stage kinds, their ports and parameters.

use clap::Args as ClapArgs;

use super::failure::Failure;
use crate::progress::{paragraph, print};
use attrflow_engine::config::param::{Key, PLAIN_NAME};
use attrflow_engine::config::text::suggestion;
use attrflow_engine::kind::{KindInfo, Registry, Shared};

#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    attrflow kinds\n  \
    attrflow kinds pretrain-loss")]
pub(super) struct Args {
    /// The kind to show with its ports and parameters
    kind: Option<String>,
}

pub(super) fn kinds(args: &Args, registry: &Registry) -> Result<(), Failure> {
    let Some(name) = &args.kind else {
        for kind in registry {
            print(&paragraph(&format!("{:<14} ", kind.name), kind.summary));
        }
        print("\n`attrflow kinds KIND` shows ports and parameters\n");
        return Ok(());
    };
    let Some(kind) = registry.iter().find(|kind| kind.name == name) else {
        let hint = suggestion(name, registry.iter().map(|kind| kind.name)).unwrap_or_default();
        return Err(Failure::Usage(format!("unknown stage kind `{name}`: {hint}")));
    };
    print(&describe(kind));
    Ok(())
}

fn describe(kind: &KindInfo) -> String {
    let mut text = format!("{}: {}\n", kind.name, kind.summary);
    text += "\ninputs\n";
    if kind.dynamic_inputs {
        text += &port("NAME", &format!("any files and folders, under names of your own: {PLAIN_NAME}"));
    }
    for input in kind.inputs {
        let optional = if input.required { "" } else { " (optional)" };
        let many = if input.many { " (takes many sources)" } else { "" };
        text += &port(input.name, &format!("{}{many}{optional}", input.doc));
    }
    for Shared { port: of, kind: giver, inputs } in kind.shared {
        text += &paragraph(
            "  ",
            &format!("{} must be those of the `{giver}` stage on `{of}`", inputs.join(", ")),
        );
    }
    text += "\noutputs\n";
    if kind.outputs.is_empty() {
        text += &port("NAME", "as declared by the parameter `outputs`");
    }
    for output in kind.outputs {
        text += &port(output.name, &format!("{}: {}", output.file, output.doc));
    }
    text += "\nparams\n";
    for key in kind.keys() {
        let from = kind.inherits.iter().find(|inherit| inherit.param == key.name);
        text += &describe_key(&key, 1, from.map(|inherit| inherit.port));
    }
    text
}

fn port(name: &str, text: &str) -> String {
    paragraph(&format!("  {name:<18} "), text)
}

/// A parameter with its type and default, and the keys of a table.
fn describe_key(key: &Key, depth: usize, inherited: Option<&str>) -> String {
    let indent = "  ".repeat(depth);
    let default = match (inherited, &key.default) {
        (Some(port), _) => format!("inherited from the stage on `{port}`"),
        (None, Some(default)) if default == "null" => "not set by default".to_owned(),
        (None, Some(default)) => format!("default {default}"),
        (None, None) => "required".to_owned(),
    };
    let head = paragraph(&indent, &format!("{} ({}; {default})", key.name, key.expected));
    let mut text = head + &paragraph(&format!("{indent}    "), &key.doc);
    for below in &key.keys {
        text += &describe_key(below, depth + 1, None);
    }
    text
}
