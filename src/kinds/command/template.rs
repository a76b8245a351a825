//! Arguments with placeholders: `{input.NAME}`, `{output.NAME}`, `{param.KEY}`; a literal brace is doubled.

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use attrflow_engine::config::param::{Param, Reader};
use attrflow_engine::config::tree::Node;

/// A part of an argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece<'t> {
    /// Literal text.
    Text(String),
    /// The path of an input.
    Input(&'t str),
    /// The name of an output's file or folder.
    Output(&'t str),
    /// A value, by its dotted path.
    Param(&'t str),
}

/// One argument of a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Argument(pub String);

const FORMS: &str = "`{input.NAME}`, `{output.NAME}` or `{param.KEY}`; a literal brace is doubled";

impl Argument {
    /// Its texts and placeholders, in order.
    ///
    /// # Errors
    /// An unknown placeholder, or a single brace.
    pub fn pieces(&self) -> Result<Vec<Piece<'_>>, String> {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = self.0.as_str();
        while let Some(at) = rest.find(['{', '}']) {
            let (before, found) = rest.split_at(at);
            text += before;
            if let Some(after) = found.strip_prefix("{{") {
                text.push('{');
                rest = after;
            } else if let Some(after) = found.strip_prefix("}}") {
                text.push('}');
                rest = after;
            } else if found.starts_with('}') {
                return Err(format!("a `}}` without its `{{`: expected {FORMS}"));
            } else {
                let Some((name, after)) = found[1..].split_once('}') else {
                    return Err(format!("a `{{` without its `}}`: expected {FORMS}"));
                };
                let piece = match name.split_once('.') {
                    Some(("input", name)) => Piece::Input(name),
                    Some(("output", name)) => Piece::Output(name),
                    Some(("param", name)) => Piece::Param(name),
                    _ => return Err(format!("unknown placeholder `{{{name}}}`: expected {FORMS}")),
                };
                if !text.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut text)));
                }
                pieces.push(piece);
                rest = after;
            }
        }
        text += rest;
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(pieces)
    }
}

impl Param for Argument {
    fn expected() -> String {
        "a string".into()
    }
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let argument = Self(String::read(node, reader)?);
        let fault = argument.pieces().err();
        match fault {
            Some(fault) => {
                reader.problems.at(&node.origin, fault);
                None
            }
            None if argument.0.contains('\0') => {
                reader.problems.at(&node.origin, "an argument cannot contain the character NUL");
                None
            }
            None => Some(argument),
        }
    }
    fn schema() -> Json {
        json!({ "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_and_braces() {
        let argument = Argument("a{{b}}{input.data.csv}/x{param.a.b}".into());
        let expected = [
            Piece::Text("a{b}".into()),
            Piece::Input("data.csv"),
            Piece::Text("/x".into()),
            Piece::Param("a.b"),
        ];
        assert_eq!(argument.pieces().unwrap(), expected);
        assert_eq!(Argument(String::new()).pieces().unwrap(), []);
        assert_eq!(Argument("{output.o}".into()).pieces().unwrap(), [Piece::Output("o")]);
    }

    #[test]
    fn invalid_placeholders() {
        let fault = |text: &str| Argument(text.into()).pieces().unwrap_err();
        assert!(fault("a}").starts_with("a `}` without its `{`"));
        assert!(fault("{input.a").starts_with("a `{` without its `}`"));
        assert!(fault("{inputs.a}").starts_with("unknown placeholder `{inputs.a}`"));
        assert!(fault("{}").starts_with("unknown placeholder `{}`"));
    }
}
