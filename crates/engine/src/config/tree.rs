//! Configuration values with their source locations.

use std::borrow::Cow;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::sorted_map::SortedMap;
use crate::config::text::{Origin, Problems, Sources};

/// A value and its source location.
#[derive(Debug, Clone)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Its location.
    pub origin: Origin,
}

/// A configuration value. Dates are not supported: no stage needs one.
#[derive(Debug, Clone)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A number with a fraction or an exponent.
    Float(f64),
    /// Text.
    Text(String),
    /// An array.
    List(Vec<Node>),
    /// A table.
    Table(Table),
}

/// A table: its entries, with the location of each key.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Values by key.
    pub entries: SortedMap<Entry>,
}

/// One `key = value`.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Location of the key.
    pub key: Origin,
    /// The value.
    pub node: Node,
}

impl Node {
    /// The name of the type in TOML, for messages.
    pub fn type_name(&self) -> &'static str {
        match self.value {
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Text(_) => "a string",
            Value::List(_) => "an array",
            Value::Table(_) => "a table",
        }
    }

    /// The table, or `None` for another type.
    pub fn as_table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The text, or `None` for another type.
    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Follows a dotted `path` through tables.
    ///
    /// # Errors
    /// The missing key, and the table in which it was looked up.
    pub fn follow<'n, 'p>(&'n self, path: &'p str) -> Result<&'n Node, (&'p str, Option<&'n Table>)> {
        let mut node = self;
        for key in path.split('.') {
            let table = node.as_table().ok_or((key, None))?;
            node = &table.entries.get(key).ok_or((key, Some(table)))?.node;
        }
        Ok(node)
    }
}

impl Table {
    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries.get(key).map(|entry| &entry.node)
    }

    /// The keys in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

/// Reads the TOML text number `text`; every syntax error goes to `problems`.
pub fn parse(sources: &Sources, text: usize, problems: &mut Problems) -> Node {
    let source = sources.get(text);
    let (table, errors) = DeTable::parse_recoverable(&source.text);
    let whole = Origin { text, span: 0..source.text.len() };
    for error in errors {
        let span = error.span().unwrap_or(whole.span.clone());
        problems.at(&Origin { text, span }, error.message().to_owned());
    }
    Node { value: Value::Table(convert_table(table.into_inner(), text, problems)), origin: whole }
}

fn convert_table(table: DeTable<'_>, text: usize, problems: &mut Problems) -> Table {
    let entry = |(key, value): (Spanned<Cow<'_, str>>, Spanned<DeValue<'_>>)| {
        let origin = Origin { text, span: key.span() };
        let node = convert(value, text, problems)?;
        Some((key.into_inner().into_owned(), Entry { key: origin, node }))
    };
    Table { entries: table.into_iter().filter_map(entry).collect() }
}

fn convert(value: Spanned<DeValue<'_>>, text: usize, problems: &mut Problems) -> Option<Node> {
    let origin = Origin { text, span: value.span() };
    let value = match value.into_inner() {
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::String(value) => Value::Text(value.into_owned()),
        DeValue::Integer(value) => match i64::from_str_radix(value.as_str(), value.radix()) {
            Ok(value) => Value::Int(value),
            Err(_) => {
                problems.at(&origin, format!("the integer `{}` does not fit in 64 bits", value.as_str()));
                return None;
            }
        },
        DeValue::Float(value) => match value.as_str().parse() {
            Ok(value) => Value::Float(value),
            Err(_) => {
                problems.at(&origin, format!("`{}` is not a number", value.as_str()));
                return None;
            }
        },
        DeValue::Array(items) => {
            Value::List(items.into_iter().filter_map(|item| convert(item, text, problems)).collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(table, text, problems)),
        DeValue::Datetime(_) => {
            problems
                .at(&origin, "dates are not supported: expected a string, number, boolean, array or table");
            return None;
        }
    };
    Some(Node { value, origin })
}

/// A key that `--set` added to a table.
#[derive(Debug)]
pub struct NewKey {
    /// The full path.
    pub path: String,
    /// The key.
    pub name: String,
    /// Its location.
    pub origin: Origin,
    /// The keys that the table already had.
    pub beside: Vec<String>,
}

/// Applies one `--set path=value` to `root`. The value is parsed as TOML, else taken as text.
///
/// All tables on the path must exist, so that a misspelt path is refused. The last key may be new: it is returned, so
/// that the caller can refuse it if no stage reads it.
pub fn set(
    root: &mut Node,
    argument: &str,
    sources: &mut Sources,
    problems: &mut Problems,
) -> Option<NewKey> {
    let text = sources.add("--set".into(), PathBuf::from("."), argument.to_owned());
    let whole = Origin { text, span: 0..argument.len() };
    let Some((path, value)) = argument.split_once('=') else {
        problems.at(&whole, "expected `--set key.path=value`, found no `=`");
        return None;
    };
    let value_origin = Origin { text, span: path.len() + 1..argument.len() };
    let known = problems.list.len();
    let parsed = match DeValue::parse(value.trim()) {
        Ok(parsed) => convert(parsed, text, problems).map(|node| node.value),
        Err(_) => Some(Value::Text(value.to_owned())),
    };
    if problems.list.len() > known {
        for problem in &mut problems.list[known..] {
            problem.origin = Some(value_origin.clone());
        }
        return None;
    }
    let mut new = Node { value: parsed?, origin: value_origin.clone() };
    relocate(&mut new, &value_origin);

    let mut node = root;
    let path = path.trim();
    let keys: Vec<&str> = path.split('.').collect();
    let mut start = 0;
    for (depth, key) in keys.iter().enumerate() {
        let origin = Origin { text, span: start..start + key.len() };
        start += key.len() + 1;
        let last = depth + 1 == keys.len();
        node = match (&mut node.value, last) {
            (Value::Table(table), true) => {
                let beside = table.keys().map(str::to_owned).collect();
                let entry = Entry { key: origin.clone(), node: new };
                let old = table.entries.insert((*key).to_owned(), entry);
                let (path, name) = (path.to_owned(), (*key).to_owned());
                return old.is_none().then_some(NewKey { path, name, origin, beside });
            }
            (Value::Table(table), false) => {
                if !table.entries.contains_key(key) {
                    let names: Vec<String> = table.keys().map(str::to_owned).collect();
                    let problem = problems.at(&origin, format!("the config has no table `{key}`"));
                    problem.suggest(key, names.iter().map(String::as_str));
                    return None;
                }
                &mut table.entries.get_mut(key).expect("checked above").node
            }
            (Value::List(items), _) => {
                let Some(index) = item_index(items, key) else {
                    let parent = keys[..depth].join(".");
                    let message = format!(
                        "`{parent}` has no item `{key}`: expected a name or an index below {}",
                        items.len()
                    );
                    problems.at(&origin, message);
                    return None;
                };
                if last {
                    items[index] = new;
                    return None;
                }
                &mut items[index]
            }
            _ => {
                problems.at(&origin, format!("`{}` is not a table", keys[..depth].join(".")));
                return None;
            }
        };
    }
    None
}

/// A number or a boolean, if the text is one in TOML.
pub fn plain(text: &str) -> Option<Value> {
    let value = DeValue::parse(text.trim()).ok()?;
    let found = convert(value, 0, &mut Problems::default())?.value;
    matches!(found, Value::Bool(_) | Value::Int(_) | Value::Float(_)).then_some(found)
}

/// Finds an item of a list by its index, or by its `name`.
fn item_index(items: &[Node], key: &str) -> Option<usize> {
    let named =
        |item: &Node| match item.as_table().and_then(|table| table.get("name")).map(|name| &name.value) {
            Some(Value::Text(name)) => name == key,
            Some(Value::Int(name)) => name.to_string() == key,
            _ => false,
        };
    items.iter().position(named).or_else(|| key.parse().ok().filter(|index| *index < items.len()))
}

/// Gives a whole value one location: spans inside a `--set` value would be relative to the value.
fn relocate(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| relocate(item, origin)),
        Value::Table(table) => {
            for entry in table.entries.values_mut() {
                entry.key = origin.clone();
                relocate(&mut entry.node, origin);
            }
        }
        _ => {}
    }
}
