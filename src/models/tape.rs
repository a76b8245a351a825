//! Records the inputs and outputs of chosen layers, for per-sample gradients.
//!
//! Autograd sums a parameter's gradient over the batch. With a layer's input and the gradient at its output, the
//! gradient of each sample is a contraction of the two (`method::per_sample`). So the tape asks autograd for gradients
//! at *outputs* only: parameters never require grad, and nothing is kept below the first chosen layer.

use std::cell::RefCell;
use std::rc::Rc;

use tch::Tensor;

use super::weights::Scope;

/// What a layer computes, as far as its gradient depends on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// `y = x w^T + b` over the last dimension.
    Linear,
    /// The same with a weight of the shape [outputs, inputs, 1, 1]: a 1x1 convolution of tokens.
    Pointwise,
    /// A square convolution of NCHW images.
    Conv2d {
        /// Height and width of the window.
        kernel: i64,
        /// Step of the window.
        stride: i64,
        /// Zeros at each border.
        padding: i64,
    },
    /// Normalisation over groups of channels, NCHW.
    GroupNorm {
        /// Number of groups.
        groups: i64,
        /// Added to the variance.
        eps: f64,
    },
    /// Normalisation over the last dimension.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
    },
}

/// One pass through a layer with a chosen parameter.
#[derive(Debug)]
pub struct LayerRecord {
    /// The layer's name; its parameters are `{layer}.weight` and `{layer}.bias`.
    pub layer: String,
    /// What it computed.
    pub op: Op,
    /// Whether the weight is chosen.
    pub weight: bool,
    /// Whether there is a bias and it is chosen.
    pub bias: bool,
    /// What went in.
    pub input: Tensor,
    /// What came out; it requires grad.
    pub output: Tensor,
}

type Select = Box<dyn Fn(&str) -> bool>;

/// A recorder shared by all layers of a model; a clone records onto the same tape.
#[derive(Clone, Default)]
pub struct Tape(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    version: u64,
    select: Option<Select>,
    records: Vec<LayerRecord>,
}

impl Tape {
    /// A tape that does not record yet.
    pub fn new() -> Tape {
        Tape::default()
    }

    /// Starts to record the layers that hold a parameter (full name, `conv_in.weight`) that `select` chooses.
    pub fn record(&self, select: impl Fn(&str) -> bool + 'static) {
        let mut state = self.0.borrow_mut();
        state.select = Some(Box::new(select));
        state.records.clear();
    }

    /// Invalidates everything that layers derived from parameters.
    pub(super) fn parameters_changed(&self) {
        self.0.borrow_mut().version += 1;
    }

    /// How often parameters have changed.
    pub(super) fn version(&self) -> u64 {
        self.0.borrow().version
    }

    /// Whether it records.
    pub fn records(&self) -> bool {
        self.0.borrow().select.is_some()
    }

    /// Stops recording and hands out what was recorded, in the order of computation.
    pub fn take(&self) -> Vec<LayerRecord> {
        let mut state = self.0.borrow_mut();
        state.select = None;
        std::mem::take(&mut state.records)
    }

    /// Records a pass of a chosen layer, and returns the output to use from here on.
    ///
    /// An output that does not require grad yet is made to: it becomes a leaf, the lowest end of the graph.
    fn observe(&self, layer: &str, has_bias: bool, op: Op, input: &Tensor, output: Tensor) -> Tensor {
        let mut state = self.0.borrow_mut();
        let Some(select) = &state.select else { return output };
        let weight = select(&format!("{layer}.weight"));
        let bias = has_bias && select(&format!("{layer}.bias"));
        if !weight && !bias {
            return output;
        }
        let output = if output.requires_grad() { output } else { output.set_requires_grad(true) };
        let (input, kept) = (input.detach(), output.shallow_clone());
        state.records.push(LayerRecord { layer: layer.to_owned(), op, weight, bias, input, output: kept });
        output
    }
}

/// A layer's place in the model: what it is called, and where it reports to.
pub(super) struct Place {
    name: String,
    tape: Tape,
    has_bias: bool,
}

impl Place {
    pub fn new(scope: &Scope<'_>, tape: &Tape, has_bias: bool) -> Place {
        Place { name: scope.path().to_owned(), tape: tape.clone(), has_bias }
    }

    /// See [`Tape::observe`].
    pub fn observe(&self, op: Op, input: &Tensor, output: Tensor) -> Tensor {
        self.tape.observe(&self.name, self.has_bias, op, input, output)
    }

    /// The tape that it reports to.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Whether neither gradients nor a recording are needed of these tensors.
    pub fn is_quiet<'a>(&self, tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
        !self.tape.records() && !tensors.into_iter().any(Tensor::requires_grad)
    }
}
