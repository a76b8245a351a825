//! The tensors that a pickle describes.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::strided::Layout;
use super::{Dtype, Storage, TensorInfo, TorchFileError};
use crate::io::torch::pickle::{Global, Object, Pickle, Value};

/// The most elements of a tensor that repeats elements, and so may be larger than its storage: otherwise a file of a
/// kilobyte could exhaust memory.
const MAX_REPEATED: usize = 1 << 28;

/// A pickle's description of a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Declared<'a> {
    pub key: &'a str,
    pub dtype: Dtype,
    pub elements: usize,
}

/// A pickle, and its file for messages.
pub(super) struct Reader<'a> {
    pub path: &'a Path,
    pub pickle: &'a Pickle<'a>,
}

impl<'a> Reader<'a> {
    /// All storages that the pickle references, each once.
    pub fn declared(&self) -> Result<Vec<Declared<'a>>, TorchFileError> {
        let mut seen = HashMap::new();
        let mut all = Vec::new();
        for id in self.pickle.persistent() {
            let storage = self.declaration(id)?;
            match seen.insert(storage.key, storage) {
                None => all.push(storage),
                Some(other) if other == storage => {}
                Some(other) => {
                    let found = format!("{} elements of {}", storage.elements, storage.dtype);
                    let expected = format!("{} of {} as before", other.elements, other.dtype);
                    return Err(self.storage(storage.key, found, expected));
                }
            }
        }
        Ok(all)
    }

    /// `("storage", type, key, device, elements)`; the legacy format adds a value that only files before torch 0.4 use.
    fn declaration(&self, id: Value<'a>) -> Result<Declared<'a>, TorchFileError> {
        let malformed = |found: &str| self.content(format!("a reference to {found}"));
        let (kind, key, elements) = match self.pickle.tuple(id) {
            Some(
                &[Value::Str("storage"), Value::Global(Global::Storage(kind)), Value::Str(key), _, elements]
                | &[
                    Value::Str("storage"),
                    Value::Global(Global::Storage(kind)),
                    Value::Str(key),
                    _,
                    elements,
                    Value::None,
                ],
            ) => (kind, key, elements),
            _ => return Err(malformed("something else than a storage")),
        };
        let dtype = Dtype::of_storage(kind).ok_or_else(|| {
            self.storage(key, format!("torch.{kind}"), "a float, int64, int32, uint8 or bool type".to_owned())
        })?;
        let elements = self.count(elements).ok_or_else(|| malformed("a storage without a length"))?;
        Ok(Declared { key, dtype, elements })
    }

    /// The tensors of the dict at the root, or of the dict `state_dict` in it, as checkpoints of a training have it, in order;
    /// `storages` are the ranges of their bytes.
    pub fn tensors(&self, storages: &HashMap<String, Storage>) -> Result<Vec<TensorInfo>, TorchFileError> {
        let root = self.pickle.root();
        let items = self.pickle.dict(root).ok_or_else(|| self.content(self.pickle.describe(root)))?;
        let inner = items.iter().find(|(key, _)| matches!(key, Value::Str("state_dict")));
        let items = inner.and_then(|(_, value)| self.pickle.dict(*value)).unwrap_or(items);
        if items.iter().any(|(_, value)| self.pickle.dict(*value).is_some()) {
            return Err(self.nested(items));
        }
        let mut names = HashSet::new();
        items
            .iter()
            .map(|&(key, value)| {
                let Value::Str(name) = key else {
                    return Err(self.content(format!("a dict with {} as a key", self.pickle.describe(key))));
                };
                if !names.insert(name) {
                    return Err(self.content(format!("a dict with the key `{name}` twice")));
                }
                self.tensor(name, value, storages)
            })
            .collect()
    }

    /// `_rebuild_tensor_v2(storage, offset, shape, stride, …)`, or `_rebuild_parameter(tensor, …)` around it.
    fn tensor(
        &self,
        name: &str,
        value: Value<'a>,
        storages: &HashMap<String, Storage>,
    ) -> Result<TensorInfo, TorchFileError> {
        let fault = |found: String, expected: &str| TorchFileError::Tensor {
            path: self.path.into(),
            tensor: name.into(),
            found,
            expected: expected.into(),
        };
        let value = match self.call(value, Global::RebuildParameter) {
            Some(&[tensor, ..]) => tensor,
            _ => value,
        };
        let arguments = self.call(value, Global::RebuildTensor);
        let arguments = arguments.ok_or_else(|| fault(self.pickle.describe(value).into(), "a tensor"))?;
        let malformed =
            || fault("malformed description".into(), "a storage, an offset, a shape and a stride");
        let [storage, offset, shape, stride, ..] = arguments else { return Err(malformed()) };
        let Some(&Object::Persistent(id)) = self.pickle.get(*storage) else { return Err(malformed()) };
        let Declared { key, dtype, elements } = self.declaration(id)?;
        let offset = self.count(*offset).ok_or_else(malformed)?;
        let shape = self.counts(*shape).ok_or_else(malformed)?;
        let stride =
            self.counts(*stride).filter(|stride| stride.len() == shape.len()).ok_or_else(malformed)?;

        let layout = Layout { shape: &shape, stride: &stride, offset };
        let limit = elements.max(MAX_REPEATED / dtype.size());
        match (layout.end(), layout.len()) {
            (Some(end), Some(len)) if end <= elements && len <= limit => {}
            (Some(end), _) if end > elements => {
                let found = format!("{shape:?} with stride {stride:?} from element {offset} ends at {end}");
                return Err(fault(found, &format!("{elements} elements of storage `{key}` at most")));
            }
            _ => return Err(fault(format!("{shape:?}"), &format!("{limit} elements at most"))),
        }
        let bytes = storages.get(key).map(|storage| storage.bytes.clone());
        let bytes = bytes.ok_or_else(|| self.storage(key, "no bytes".into(), "some".into()))?;
        Ok(TensorInfo { name: name.into(), dtype, shape, stride, offset, bytes, storage: key.into() })
    }

    fn nested(&self, items: &[(Value<'a>, Value<'a>)]) -> TorchFileError {
        let key = |&(key, value)| {
            let name = match key {
                Value::Str(name) => name,
                other => self.pickle.describe(other),
            };
            let is_tensor = |value| matches!(self.pickle.get(value), Some(Object::Call { .. }));
            match self.pickle.dict(value) {
                Some(inner) => {
                    let tensors = inner.iter().filter(|(_, value)| is_tensor(*value)).count();
                    format!("`{name}` ({tensors} tensors)")
                }
                None => format!("`{name}` ({})", self.pickle.describe(value)),
            }
        };
        TorchFileError::Nested { path: self.path.into(), keys: items.iter().map(key).collect() }
    }

    fn call(&self, value: Value<'a>, wanted: Global<'a>) -> Option<&[Value<'a>]> {
        match self.pickle.get(value)? {
            Object::Call { function, arguments } if *function == wanted => self.pickle.tuple(*arguments),
            _ => None,
        }
    }

    fn count(&self, value: Value<'a>) -> Option<usize> {
        match value {
            Value::Int(int) => usize::try_from(int).ok(),
            _ => None,
        }
    }

    fn counts(&self, value: Value<'a>) -> Option<Vec<usize>> {
        self.pickle.tuple(value)?.iter().map(|&item| self.count(item)).collect()
    }

    fn content(&self, found: impl Into<String>) -> TorchFileError {
        TorchFileError::Content { path: self.path.into(), found: found.into() }
    }

    pub fn storage(&self, key: &str, found: String, expected: String) -> TorchFileError {
        TorchFileError::Storage { path: self.path.into(), storage: key.into(), found, expected }
    }
}
