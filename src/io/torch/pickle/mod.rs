//! Reads the pickles that `torch.save` writes, without running their code.
//!
//! A pickle is a program for a stack machine, and Python imports and calls whatever it names: loading an untrusted
//! checkpoint can run any code. Here a name from a short list becomes a [`Global`], a call of it becomes an
//! [`Object::Call`], and any other name is an error. Objects are in one list and reference each other by index, so that
//! the cost of a pickle with cycles, or with tuples nested a million deep, is bounded by its length.
//! Source: CPython, `Lib/pickletools.py`, which documents the opcodes; protocols 2 to 5 without sets and classes.

mod error;
mod machine;
#[cfg(test)]
mod tests;
pub mod writer;

pub use error::PickleError;

/// A name that a pickle may use. It is never imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Global<'a> {
    /// `collections.OrderedDict`
    OrderedDict,
    /// `torch.Size`
    Size,
    /// `torch._utils._rebuild_tensor_v2`
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`
    RebuildParameter,
    /// A storage type of `torch`, such as `FloatStorage`.
    Storage(&'a str),
}

impl<'a> Global<'a> {
    /// The global of that name, if it is in the list of allowed ones.
    fn named(module: &str, name: &'a str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch", "Size") => Global::Size,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", name) if name.strip_suffix("Storage").is_some_and(is_word) => Global::Storage(name),
            _ => return None,
        })
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// The index of an object in its [`Pickle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id(usize);

/// A plain value, or the index of an object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// `None`
    None,
    /// A bool.
    Bool(bool),
    /// An int of up to 16 bytes.
    Int(i128),
    /// A float.
    Float(f64),
    /// A str, in place.
    Str(&'a str),
    /// Bytes, in place.
    Bytes(&'a [u8]),
    /// A name.
    Global(Global<'a>),
    /// A container: see [`Pickle::get`].
    Object(Id),
}

/// A container.
#[derive(Debug, Clone, PartialEq)]
pub enum Object<'a> {
    /// A tuple, or a `torch.Size`.
    Tuple(Vec<Value<'a>>),
    /// A list.
    List(Vec<Value<'a>>),
    /// A dict or an OrderedDict, in the order of insertion; a key set twice occurs twice.
    Dict {
        /// Key and value.
        items: Vec<(Value<'a>, Value<'a>)>,
        /// Whether it is an OrderedDict.
        ordered: bool,
    },
    /// A call, not executed.
    Call {
        /// The function.
        function: Global<'a>,
        /// The tuple of its arguments.
        arguments: Value<'a>,
    },
    /// A reference to something outside the pickle, such as a tensor's bytes.
    Persistent(Value<'a>),
}

/// The content of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: Value<'a>,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle at the start of `bytes`; also returns where it ends.
    ///
    /// # Errors
    /// The pickle is truncated, damaged or too large, or uses something that files of tensors do not need.
    pub fn read(bytes: &'a [u8]) -> Result<(Self, usize), PickleError> {
        machine::run(bytes)
    }

    /// The pickled value.
    pub fn root(&self) -> Value<'a> {
        self.root
    }

    /// The object of a value, `None` for a plain value.
    pub fn get(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(Id(index)) => self.objects.get(index),
            _ => None,
        }
    }

    /// The items of a dict, `None` for another value.
    pub fn dict(&self, value: Value<'a>) -> Option<&[(Value<'a>, Value<'a>)]> {
        match self.get(value)? {
            Object::Dict { items, .. } => Some(items),
            _ => None,
        }
    }

    /// The items of a tuple, `None` for another value.
    pub fn tuple(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match self.get(value)? {
            Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The references to something outside, in order.
    pub fn persistent(&self) -> impl Iterator<Item = Value<'a>> + '_ {
        self.objects.iter().filter_map(|object| match object {
            Object::Persistent(value) => Some(*value),
            _ => None,
        })
    }

    /// Describes a value for messages.
    pub fn describe(&self, value: Value<'a>) -> &'static str {
        match value {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) => "an int",
            Value::Float(_) => "a float",
            Value::Str(_) => "a str",
            Value::Bytes(_) => "bytes",
            Value::Global(Global::Storage(_)) => "a storage type",
            Value::Global(_) => "a function",
            Value::Object(_) => match self.get(value) {
                Some(Object::Tuple(_)) => "a tuple",
                Some(Object::List(_)) => "a list",
                Some(Object::Dict { .. }) => "a dict",
                Some(Object::Call { .. }) => "a tensor",
                Some(Object::Persistent(_)) => "a storage",
                None => "nothing",
            },
        }
    }
}
