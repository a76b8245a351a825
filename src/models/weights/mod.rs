//! A checkpoint's tensors, each to be taken once, by the names that the checkpoint gives them.
//!
//! A model takes what it needs while it is built; [`Weights::finish`] then lists everything that did not fit in
//! one error: a file for another model differs in many keys, and the first one alone seldom shows why.

pub mod checkpoint;
pub mod config;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::kernels::channels_last;
use config::ModelError;

/// How many keys of each kind an error shows before it says how many more there are.
const SHOWN: usize = 8;

/// The tensors of a file in any format of [`checkpoint::read`], by name, floats as float32 on `device`.
///
/// # Errors
/// See [`checkpoint::read`].
pub fn read(file: &Path, device: Device) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let tensors = widened(checkpoint::read(file)?, device);
    // It would make every loss NaN, and be blamed on an image.
    let fault = tensors.iter().filter(|(_, tensor)| tensor.is_floating_point()).find_map(|(name, tensor)| {
        let index = first_place(&tensor.isfinite().logical_not())?;
        let (file, tensor, value) = (file.to_owned(), name.clone(), tensor.double_value(&index));
        Some(ModelError::NotFinite { file, tensor, index, value })
    });
    fault.map_or(Ok(tensors), Err)
}

/// The index of the first `true`.
pub fn first_place(flags: &Tensor) -> Option<Vec<i64>> {
    // Most often there is none, and `any` is much faster.
    (flags.any().int64_value(&[]) == 1)
        .then(|| flags.nonzero().get(0).try_into().expect("a vector of indices"))
}

pub(super) fn widened(stored: BTreeMap<String, Tensor>, device: Device) -> BTreeMap<String, Tensor> {
    let widen = |tensor: Tensor| {
        let tensor = tensor.to_device(device);
        let float = matches!(tensor.kind(), Kind::Double | Kind::Half | Kind::BFloat16);
        if float { tensor.to_kind(Kind::Float) } else { tensor }
    };
    stored.into_iter().map(|(name, tensor)| (name, widen(tensor))).collect()
}

/// A checkpoint's tensors, each to be taken once.
pub struct Weights {
    file: PathBuf,
    /// Whether every tensor that is asked for is there, and zero.
    zeros: bool,
    layout: WeightLayout,
    /// The factor of each layer's adapter, by the layer's path.
    adapters: BTreeMap<String, f64>,
    state: RefCell<State>,
}

/// How layers keep the tensors that they take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightLayout {
    /// Convolutions' weights with the channels lying together in memory, as the images will.
    pub channels_last: bool,
    /// Products in this type instead of the tensors' own; normalisations stay in float32.
    pub products: Option<Kind>,
}

#[derive(Default)]
struct State {
    left: BTreeMap<String, Tensor>,
    taken: BTreeMap<String, Tensor>,
    faults: KeyErrors,
}

impl Weights {
    /// Reads a checkpoint onto `device`; half precision is widened to float32.
    ///
    /// # Errors
    /// See [`checkpoint::read`].
    pub fn load(file: &Path, device: Device) -> Result<Weights, ModelError> {
        Ok(Weights::named(file, read(file, device)?))
    }

    /// Tensors that did not come from a file, as in tests.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Weights {
        Weights::named(Path::new("(memory)"), tensors)
    }

    /// Tensors read in another way; errors name `file`.
    pub fn named(file: &Path, tensors: BTreeMap<String, Tensor>) -> Weights {
        let state = RefCell::new(State { left: tensors, ..State::default() });
        let (file, layout, adapters) = (file.to_owned(), WeightLayout::default(), BTreeMap::new());
        Weights { file, zeros: false, layout, adapters, state }
    }

    /// The same with adapters, whose tensors are among these, beside layers: the factor of each, by the layer's path.
    pub fn with_adapters(self, adapters: BTreeMap<String, f64>) -> Weights {
        Weights { adapters, ..self }
    }

    /// The same tensors, to be kept in another layout.
    pub fn with_layout(self, layout: WeightLayout) -> Weights {
        Weights { layout, ..self }
    }

    /// Zeros of whatever name and shape a model asks for: its structure without a checkpoint.
    pub fn zeros() -> Weights {
        Weights { zeros: true, ..Weights::new(BTreeMap::new()) }
    }

    /// The top of the checkpoint, where names have no prefix.
    pub fn root(&self) -> Scope<'_> {
        Scope { weights: self, path: String::new() }
    }

    /// Drops a tensor that the network has no use for, such as a stored table of positions, if it is there.
    pub fn ignore(&self, name: &str) {
        self.state.borrow_mut().left.remove(name);
    }

    /// The tensors that were taken, by full name.
    ///
    /// # Errors
    /// One error with all keys that were wanted but missing, found but not taken, or of another shape.
    pub fn finish(self) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let State { left, taken, mut faults } = self.state.into_inner();
        faults.unexpected.extend(left.into_keys());
        if faults.is_empty() { Ok(taken) } else { Err(ModelError::Keys { file: self.file, faults }) }
    }

    fn take(&self, name: String, shape: &[i64], to_layout: impl FnOnce(Tensor) -> Tensor) -> Tensor {
        let mut state = self.state.borrow_mut();
        let tensor = match state.left.remove(&name) {
            Some(tensor) if tensor.size() == shape && tensor.is_floating_point() => tensor,
            Some(tensor) if tensor.size() == shape => {
                state.faults.integers.push(format!("{name} ({:?})", tensor.kind()));
                Tensor::zeros(shape, (Kind::Float, Device::Cpu))
            }
            // A stand-in of the wanted shape lets the building go on, so that the other faults are found too.
            Some(tensor) => {
                state.faults.misshaped.push((name.clone(), tensor.size(), shape.to_vec()));
                Tensor::zeros(shape, (Kind::Float, Device::Cpu))
            }
            None => {
                if !self.zeros {
                    state.faults.missing.push(name.clone());
                }
                Tensor::zeros(shape, (Kind::Float, Device::Cpu))
            }
        };
        let tensor = to_layout(tensor);
        state.taken.insert(name, tensor.shallow_clone());
        tensor
    }
}

/// A place in a checkpoint's names: `scope.sub("down_blocks").sub(0)`.
#[derive(Clone)]
pub struct Scope<'a> {
    weights: &'a Weights,
    path: String,
}

impl<'a> Scope<'a> {
    /// The place one dot further down.
    pub fn sub(&self, name: impl Display) -> Scope<'a> {
        Scope { weights: self.weights, path: self.name(name) }
    }

    /// The full name of `name` here.
    pub fn name(&self, name: impl Display) -> String {
        if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) }
    }

    /// The path from the root, such as `down_blocks.0.resnets.1.conv1`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tensor `name`, which must have the given shape; [`Weights::finish`] reports a fault.
    pub fn take(&self, name: impl Display, shape: &[i64]) -> Tensor {
        self.weights.take(self.name(name), shape, |tensor| tensor)
    }

    /// The factor of the adapter of the layer here, if it has one.
    pub(super) fn adapter_scale(&self) -> Option<f64> {
        self.weights.adapters.get(&self.path).copied()
    }

    /// The tensor `name`, of any shape: one that was checked before.
    pub(super) fn take_any(&self, name: &str) -> Tensor {
        let shape = self.weights.state.borrow().left.get(&self.name(name)).map(Tensor::size);
        self.take(name, &shape.unwrap_or_default())
    }

    /// The same for a convolution's weight [O, I, k, k], in the model's layout.
    pub fn take_filters(&self, name: impl Display, shape: &[i64]) -> Tensor {
        let together = |tensor: Tensor| {
            if self.weights.layout.channels_last && tensor.dim() == 4 {
                channels_last(&tensor)
            } else {
                tensor
            }
        };
        self.weights.take(self.name(name), shape, together)
    }

    /// The tensors `name` of several places below, each of this shape, as parts of one that holds them one after the other.
    ///
    /// The parts are the model's parameters: writing to one writes to the fused tensor.
    pub fn take_fused(&self, places: &[&str], name: &str, shape: &[i64]) -> (Vec<Tensor>, Tensor) {
        let found: Vec<Tensor> = places.iter().map(|place| self.sub(place).take(name, shape)).collect();
        // A stand-in for what the file lacks is on the CPU.
        let device = found.iter().map(Tensor::device).find(|device| device.is_cuda()).unwrap_or(Device::Cpu);
        let fused = Tensor::cat(&found.iter().map(|tensor| tensor.to_device(device)).collect::<Vec<_>>(), 0);
        let part = |index: usize| fused.narrow(0, index as i64 * shape[0], shape[0]);
        let parts: Vec<Tensor> = (0..places.len()).map(part).collect();
        for (place, part) in places.iter().zip(&parts) {
            let name = self.sub(place).name(name);
            self.weights.state.borrow_mut().taken.insert(name, part.shallow_clone());
        }
        (parts, fused)
    }

    /// A tensor as products take it: itself, not a copy, unless the model's layout asks for another type.
    pub fn to_compute_dtype(&self, tensor: &Tensor) -> Tensor {
        match self.weights.layout.products {
            Some(kind) => tensor.to_kind(kind),
            None => tensor.shallow_clone(),
        }
    }
}

/// Puts the tensors of the file `changed` in place of those of `tensors`.
///
/// # Errors
/// A name or a shape that `tensors` does not have.
pub(super) fn replace(
    tensors: &mut BTreeMap<String, Tensor>,
    changed: BTreeMap<String, Tensor>,
    file: &Path,
) -> Result<(), ModelError> {
    let mut faults = KeyErrors::default();
    for (name, tensor) in changed {
        match tensors.get_mut(&name) {
            Some(old) if old.size() == tensor.size() => *old = tensor,
            Some(old) => faults.misshaped.push((name, tensor.size(), old.size())),
            None => faults.unexpected.push(name),
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(ModelError::Keys { file: file.to_owned(), faults }) }
}

/// The keys of a checkpoint that do not fit the model.
#[derive(Debug, Default)]
pub struct KeyErrors {
    /// Wanted by the model, not in the file.
    pub missing: Vec<String>,
    /// In the file, not wanted by the model.
    pub unexpected: Vec<String>,
    /// Name, shape found, shape wanted.
    pub misshaped: Vec<(String, Vec<i64>, Vec<i64>)>,
    /// Name and element type of those that are no floats.
    pub integers: Vec<String>,
}

impl KeyErrors {
    fn is_empty(&self) -> bool {
        let Self { missing, unexpected, misshaped, integers } = self;
        missing.is_empty() && unexpected.is_empty() && misshaped.is_empty() && integers.is_empty()
    }
}

impl Display for KeyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the tensors do not fit the configuration")?;
        let missing = self.missing.iter().map(|name| match nearest(name, &self.unexpected) {
            Some(found) => format!("{name} (the file has {found})"),
            None => name.clone(),
        });
        let misshaped = self
            .misshaped
            .iter()
            .map(|(name, found, wanted)| format!("{name} {found:?}, expected {wanted:?}"));
        list(f, "missing", missing)?;
        list(f, "of another shape", misshaped)?;
        list(f, "not of a float type", self.integers.iter().cloned())?;
        list(f, "unexpected", self.unexpected.iter().cloned())
    }
}

/// Writes `; 12 missing: a, b, … and 4 more`, or nothing for none.
fn list(f: &mut fmt::Formatter<'_>, what: &str, items: impl ExactSizeIterator<Item = String>) -> fmt::Result {
    let count = items.len();
    if count == 0 {
        return Ok(());
    }
    write!(f, "; {count} {what}: {}", items.take(SHOWN).collect::<Vec<_>>().join(", "))?;
    if count > SHOWN { write!(f, " and {} more", count - SHOWN) } else { Ok(()) }
}

/// The most similar of `names`, if it looks like a variant of `name` rather than another tensor.
fn nearest<'a>(name: &str, names: &'a [String]) -> Option<&'a String> {
    let similarity = |other: &String| strsim::normalized_levenshtein(name, other);
    names.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b))).filter(|best| similarity(best) > 0.8)
}
