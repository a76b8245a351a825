//! Every verb's help has two examples that parse, and `docs/cli.md` is the help of all verbs.

use std::path::Path;

use clap::{Arg, Command, CommandFactory, Parser};

use super::{Cli, RENAMED, renamed};

/// Set to write `docs/cli.md` instead of comparing with it.
const UPDATE: &str = "UPDATE_DOCS";

/// All verbs with the verbs below them, with a fixed width and without values of environment variables.
fn verbs() -> Vec<Command> {
    fn collect(command: &Command, all: &mut Vec<Command>) {
        // What all verbs share is in the help of the program alone.
        let shared = |argument: &Arg| ["verbose", "help", "version"].contains(&argument.get_id().as_str());
        let first = all.is_empty();
        let plain = |argument: Arg| {
            let hide = !first && shared(&argument);
            argument.hide_env_values(true).hide(hide)
        };
        all.push(command.clone().term_width(100).mut_args(plain));
        command.get_subcommands().for_each(|below| collect(below, all));
    }
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let mut all = Vec::new();
    collect(&root, &mut all);
    all
}

/// The example lines below a verb's help.
fn examples(command: &Command) -> Vec<String> {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let lines = text.strip_prefix("Examples:\n").unwrap_or_default().lines();
    lines.map(|line| line.trim().to_owned()).collect()
}

#[test]
fn every_verb_has_two_examples_that_parse() {
    let verbs = verbs();
    assert!(verbs.len() > 20, "only {} verbs", verbs.len());
    for verb in &verbs[1..] {
        let name = verb.get_bin_name().unwrap();
        let examples = examples(verb);
        assert_eq!(examples.len(), 2, "{name}: {examples:?}");
        for example in examples {
            assert!(example.starts_with(name), "{name}: {example}");
            // What a shell would take: not the redirection.
            let words = example.split(" > ").next().unwrap().split_whitespace();
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }
}

#[test]
fn old_names_are_errors_that_give_the_new_ones() {
    let lines = ["stages", "why-not p.toml fisher", "run p.toml --downloads 3", "run p.toml --downloads=3"];
    for line in lines {
        let error = Cli::try_parse_from(format!("attrflow {line}").split(' ')).unwrap_err();
        let message = renamed(&error).unwrap_or_else(|| panic!("{line}: {error}"));
        let known = |(old, new): &(&str, &str)| message == format!("`{old}` is named `{new}` now");
        assert!(RENAMED.iter().any(known), "{line}: {message}");
    }
    let error = Cli::try_parse_from(["attrflow", "stagse"]).unwrap_err();
    assert_eq!(renamed(&error), None);
}

#[test]
fn the_documentation_is_the_help_of_all_verbs() {
    let mut text = String::from(
        "# The command line\n\nThe help of every verb, written by `UPDATE_DOCS=1 cargo nextest run --lib cli::tests`.\n",
    );
    for mut verb in verbs() {
        let name = verb.get_bin_name().unwrap_or("attrflow").to_owned();
        let help = verb.render_long_help().to_string();
        let help: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        text += &format!("\n## {name}\n\n```text\n{}\n```\n", help.join("\n"));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    if std::env::var_os(UPDATE).is_some() {
        fs_err::write(&file, &text).unwrap();
    }
    let written = fs_err::read_to_string(&file).unwrap_or_default();
    assert!(written == text, "docs/cli.md differs from the help: set {UPDATE}=1 to write it");
}
