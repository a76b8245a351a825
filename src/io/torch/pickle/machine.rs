//! The stack machine: executes opcodes and collects objects.

use std::collections::HashMap;

use super::{Global, Id, Object, Pickle, PickleError, Value};

/// The most opcodes, which also bounds values and objects. A tensor takes about 30.
const MAX_STEPS: usize = 1 << 23;
/// The most containers open at a time. `torch.save` has four open within a tensor.
const MAX_DEPTH: usize = 256;
/// The most characters of a name from the file in a message.
const SHOWN: usize = 100;

type Result<T> = std::result::Result<T, PickleError>;

pub(super) fn run(bytes: &[u8]) -> Result<(Pickle<'_>, usize)> {
    let mut machine = Machine { bytes, ..Machine::default() };
    machine.protocol()?;
    for _ in 0..MAX_STEPS {
        machine.opcode = machine.at;
        if let Some(root) = machine.step()? {
            return Ok((Pickle { objects: machine.objects, root }, machine.at));
        }
    }
    Err(PickleError::TooLarge { what: "opcodes", limit: MAX_STEPS })
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The position of the current opcode.
    opcode: usize,
    stack: Vec<Value<'a>>,
    /// Stack heights at which containers were opened.
    marks: Vec<usize>,
    memo: HashMap<usize, Value<'a>>,
    objects: Vec<Object<'a>>,
}

impl<'a> Machine<'a> {
    fn protocol(&mut self) -> Result<()> {
        match self.array()? {
            [0x80, 2..=5] => Ok(()),
            [0x80, other] => Err(self.malformed(format!("protocol {other}"), "2 to 5")),
            _ => Err(self.malformed("no protocol", "a pickle of protocol 2 to 5")),
        }
    }

    /// Executes one opcode; the last one gives the result.
    fn step(&mut self) -> Result<Option<Value<'a>>> {
        let [opcode] = self.array()?;
        match opcode {
            b'.' => return self.pop().map(Some),
            0x95 => _ = self.take(8)?, // a frame, whose length is only for reading ahead

            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => self.size(1).map(|int| self.stack.push(Value::Int(int as i128)))?,
            b'M' => self.size(2).map(|int| self.stack.push(Value::Int(int as i128)))?,
            b'J' => self.array().map(|int| self.stack.push(Value::Int(i32::from_le_bytes(int).into())))?,
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => self.array().map(|float| self.stack.push(Value::Float(f64::from_be_bytes(float))))?,

            0x8c => self.text(1)?,
            b'X' => self.text(4)?,
            0x8d => self.text(8)?,
            b'C' => self.binary(1)?,
            b'B' => self.binary(4)?,
            0x8e | 0x96 => self.binary(8)?,

            b'(' => self.open()?,
            b')' => self.push(Object::Tuple(Vec::new())),
            0x85..=0x87 => {
                let from = self.height_below(usize::from(opcode - 0x84))?;
                let items = self.stack.split_off(from);
                self.push(Object::Tuple(items));
            }
            b't' => self.close().map(|items| self.push(Object::Tuple(items)))?,
            b']' => self.push(Object::List(Vec::new())),
            b'l' => self.close().map(|items| self.push(Object::List(items)))?,
            b'a' => self.pop().and_then(|item| self.append(vec![item]))?,
            b'e' => self.close().and_then(|items| self.append(items))?,
            b'}' => self.push(Object::Dict { items: Vec::new(), ordered: false }),
            b'd' => {
                let items = self.close()?;
                self.push(Object::Dict { items: Vec::new(), ordered: false });
                self.set(&items)?;
            }
            b's' => {
                let from = self.height_below(2)?;
                let item = self.stack.split_off(from);
                self.set(&item)?;
            }
            b'u' => self.close().and_then(|items| self.set(&items))?,

            b'0' => _ = self.pop()?,
            b'1' => _ = self.close()?,
            b'2' => self.top().map(|value| self.stack.push(value))?,
            b'q' => self.size(1).and_then(|key| self.remember(key))?,
            b'r' => self.size(4).and_then(|key| self.remember(key))?,
            0x94 => self.remember(self.memo.len())?,
            b'h' => self.size(1).and_then(|key| self.recall(key))?,
            b'j' => self.size(4).and_then(|key| self.recall(key))?,

            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Str(name), Value::Str(module)) => self.global(module, name)?,
                _ => return Err(self.malformed("a global that is not a str", "two strs")),
            },
            b'R' => self.call()?,
            b'b' => self.build()?,
            b'Q' => self.pop().map(|id| self.push(Object::Persistent(id)))?,
            opcode => return Err(PickleError::Opcode { opcode, at: self.opcode }),
        }
        Ok(None)
    }

    fn malformed(&self, found: impl Into<String>, expected: &'static str) -> PickleError {
        PickleError::Malformed { at: self.opcode, found: found.into(), expected }
    }

    // Operands of opcodes.

    fn take(&mut self, wanted: usize) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..wanted);
        let taken = taken.ok_or(PickleError::Truncated { at: self.at, wanted, left: rest.len() })?;
        self.at += wanted;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// An unsigned number of up to 8 bytes, saturating.
    fn size(&mut self, bytes: usize) -> Result<usize> {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(self.take(bytes)?);
        Ok(usize::try_from(u64::from_le_bytes(number)).unwrap_or(usize::MAX))
    }

    fn long(&mut self, length: usize) -> Result<()> {
        let length = self.size(length)?;
        let bytes = self.take(length)?;
        if length > 16 {
            return Err(self.malformed(format!("an int of {length} bytes"), "16 at most"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 16];
        number[..length].copy_from_slice(bytes);
        self.stack.push(Value::Int(i128::from_le_bytes(number)));
        Ok(())
    }

    fn text(&mut self, length: usize) -> Result<()> {
        let length = self.size(length)?;
        let bytes = self.take(length)?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| self.malformed("a str that is not text", "UTF-8"))?;
        self.stack.push(Value::Str(text));
        Ok(())
    }

    fn binary(&mut self, length: usize) -> Result<()> {
        let length = self.size(length)?;
        let bytes = self.take(length)?;
        self.stack.push(Value::Bytes(bytes));
        Ok(())
    }

    fn line(&mut self) -> Result<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n');
        let length = length.ok_or_else(|| self.malformed("a name without end", "a line"))?;
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).map_err(|_| self.malformed("a name that is not text", "UTF-8"))
    }

    // The stack. Values below the last mark cannot be reached.

    fn push(&mut self, object: Object<'a>) {
        self.stack.push(Value::Object(Id(self.objects.len())));
        self.objects.push(object);
    }

    fn height_below(&self, values: usize) -> Result<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let height = self.stack.len().checked_sub(values).filter(|height| *height >= floor);
        height.ok_or_else(|| self.malformed("too few values on the stack", "one for each operand"))
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn top(&self) -> Result<Value<'a>> {
        self.height_below(1).map(|index| self.stack[index])
    }

    fn open(&mut self) -> Result<()> {
        if self.marks.len() == MAX_DEPTH {
            return Err(PickleError::TooLarge { what: "nested containers", limit: MAX_DEPTH });
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    fn close(&mut self) -> Result<Vec<Value<'a>>> {
        let height = self.marks.pop().ok_or_else(|| self.malformed("no mark", "one to close"))?;
        Ok(self.stack.split_off(height))
    }

    // Changes of an object on the stack.

    fn append(&mut self, more: Vec<Value<'a>>) -> Result<()> {
        let list = self.top()?;
        match self.object(list) {
            Some(Object::List(items)) => items.extend(more),
            _ => return Err(self.malformed("items for a non-list", "a list")),
        }
        Ok(())
    }

    fn set(&mut self, more: &[Value<'a>]) -> Result<()> {
        let dict = self.top()?;
        let (pairs, rest) = more.as_chunks::<2>();
        match self.object(dict) {
            Some(Object::Dict { items, .. }) if rest.is_empty() => {
                items.extend(pairs.iter().map(|&[key, value]| (key, value)));
            }
            _ => {
                return Err(self.malformed("keys and values for a non-dict", "a dict and pairs"));
            }
        }
        Ok(())
    }

    fn object(&mut self, value: Value<'a>) -> Option<&mut Object<'a>> {
        match value {
            Value::Object(Id(index)) => self.objects.get_mut(index),
            _ => None,
        }
    }

    fn remember(&mut self, key: usize) -> Result<()> {
        let value = self.top()?;
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: usize) -> Result<()> {
        let value = self.memo.get(&key).copied();
        let value = value.ok_or_else(|| self.malformed(format!("memo {key}"), "one that was set"))?;
        self.stack.push(value);
        Ok(())
    }

    // Names and calls: recorded, never executed.

    fn global(&mut self, module: &'a str, name: &'a str) -> Result<()> {
        let global = Global::named(module, name).ok_or_else(|| {
            let global = format!("{module}.{name}").chars().take(SHOWN).collect();
            PickleError::Global { global, at: self.opcode }
        })?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let (count, first) = match self.object(arguments) {
            Some(Object::Tuple(items)) => (items.len(), items.first().copied()),
            _ => return Err(self.malformed("a call without a tuple", "arguments")),
        };
        match (function, count, first) {
            (Value::Global(Global::OrderedDict), 0, _) => {
                self.push(Object::Dict { items: Vec::new(), ordered: true });
            }
            (Value::Global(Global::Size), 1, Some(sizes)) => self.stack.push(sizes),
            // The arguments are not copied: many calls can share one long tuple.
            (Value::Global(function @ (Global::RebuildTensor | Global::RebuildParameter)), _, _) => {
                self.push(Object::Call { function, arguments });
            }
            (Value::Global(function), _, _) => {
                let found = format!("{function:?} called with {count} arguments");
                return Err(self.malformed(found, "a call for a tensor or an empty OrderedDict"));
            }
            _ => return Err(self.malformed("a call of a non-function", "a function")),
        }
        Ok(())
    }

    /// A module's state dict has its version as an attribute of the OrderedDict, which is not needed.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let state_is_dict = matches!(self.object(state), Some(Object::Dict { .. }));
        let target = self.top()?;
        match self.object(target) {
            Some(Object::Dict { ordered: true, .. }) if state_is_dict => Ok(()),
            _ => Err(self.malformed("attributes for an object", "them only on an OrderedDict")),
        }
    }
}
