//! EK-FAC: the Fisher information of each linear layer, diagonal in an eigenbasis that is a Kronecker product.
//!
//! For a layer with inputs x_s and gradients d_s at its outputs, s = 1..S tokens of a row, the row's gradient is
//! G = sum_s d_s x_s^T [O, I]. With A = mean of x x^T = U_A a U_A^T and C = mean of d d^T = U_C c U_C^T over rows and tokens, the
//! matrix of the eigenvalues is the mean over rows of (U_C^T G U_A)^2, elementwise (George et al. 2018, arXiv 1806.03884; for
//! influence Grosse et al. 2023, arXiv 2308.03296). It has the trace of the diagonal Fisher information of the same rows, whatever
//! the basis. Where the bias is chosen too, x has a one at its end, and I counts it.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::damping::Damping;
use super::error::MathError;
use super::per_sample::{room, tokens};
use crate::models::kernels::add_squares;
use crate::models::tape::{LayerRecord, Op};
use crate::models::unet::conditioning::reads_text;

/// What the layers that read the texts share: the activations' eigenvectors stand under this name once.
pub const TEXTS: &str = "text_embeddings";

/// Ends of names, after the layer's: those of kronfluence's files.
pub const ACTIVATION: &str = "activation_eigenvectors";
/// [O, O].
pub const GRADIENT: &str = "gradient_eigenvectors";
/// [O, I].
pub const LAMBDA: &str = "lambda_matrix";

/// Ends of the names of sums over rows.
const ACTIVATION_COVARIANCE: &str = "activation_covariance";
const GRADIENT_COVARIANCE: &str = "gradient_covariance";
const TRACE: &str = "trace";

fn join(layer: &str, end: &str) -> String {
    format!("{layer}.{end}")
}

/// A linear layer's inputs [B, S, I] and output gradients [B, S, O]; `None` for what is no linear map.
fn linear(record: &LayerRecord, gradient: &Tensor) -> Option<(Tensor, Tensor)> {
    if !record.weight || !matches!(record.op, Op::Linear | Op::Pointwise) {
        return None;
    }
    let [x, d] = tokens(record.op, &record.input, gradient)?;
    let x = match record.bias {
        true => Tensor::cat(&[&x, &x.narrow(2, 0, 1).ones_like()], 2),
        false => x,
    };
    Some((x, d))
}

/// Whether a layer's inputs are the texts as they are.
fn shares_texts(record: &LayerRecord) -> bool {
    !record.bias && reads_text(&record.layer)
}

/// The sum over tokens of x x^T, in float64: [.., I] to [I, I].
pub fn covariance(x: &Tensor) -> Tensor {
    let x = x.flatten(0, x.dim() as i64 - 2);
    x.transpose(0, 1).matmul(&x).to_kind(Kind::Double)
}

/// Sums over rows and tokens of the covariances of output gradients, and of inputs other than the texts.
pub fn covariances(found: &[(LayerRecord, Tensor)]) -> BTreeMap<String, Tensor> {
    let mut sums = BTreeMap::new();
    for (record, gradient) in found {
        let Some((x, d)) = linear(record, gradient) else { continue };
        sums.insert(join(&record.layer, GRADIENT_COVARIANCE), covariance(&d));
        if !shares_texts(record) {
            sums.insert(join(&record.layer, ACTIVATION_COVARIANCE), covariance(&x));
        }
    }
    sums
}

/// The eigenvectors of covariances, by falling eigenvalue, in float32 on the CPU; scales of the covariances do not matter.
///
/// # Errors
/// A covariance is not finite.
pub fn eigenvectors(covariances: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, MathError> {
    let of = |(name, matrix): (&String, &Tensor)| {
        if matrix.isfinite().all().int64_value(&[]) == 0 {
            let what = "a covariance";
            return Err(MathError::ParameterNotFinite { parameter: name.clone(), what });
        }
        let (_, vectors) = matrix.to_device(Device::Cpu).to_kind(Kind::Double).linalg_eigh("L");
        let (layer, end) = name.rsplit_once('.').unwrap_or(("", name));
        let end = if end == GRADIENT_COVARIANCE { GRADIENT } else { ACTIVATION };
        Ok((join(layer, end), vectors.flip([1]).to_kind(Kind::Float)))
    };
    covariances.iter().map(of).collect()
}

/// The name of the covariance of the texts among the sums.
pub fn of_texts() -> String {
    join(TEXTS, ACTIVATION_COVARIANCE)
}

/// The eigenbases of the linear layers.
pub struct Eigenbasis {
    vectors: BTreeMap<String, Tensor>,
}

impl Eigenbasis {
    /// Of the tensors of a file, on a device.
    pub fn new(tensors: BTreeMap<String, Tensor>, device: Device) -> Eigenbasis {
        let vectors =
            tensors.into_iter().filter(|(name, _)| name.ends_with(ACTIVATION) || name.ends_with(GRADIENT));
        Eigenbasis {
            vectors: vectors.map(|(name, x)| (name, x.to_kind(Kind::Float).to_device(device))).collect(),
        }
    }

    /// The activations' and the gradients' eigenvectors [I, I] and [O, O] of a layer.
    pub fn of(&self, layer: &str) -> Option<[&Tensor; 2]> {
        let own = self.vectors.get(&join(layer, ACTIVATION));
        let texts = || self.vectors.get(&join(TEXTS, ACTIVATION)).filter(|_| reads_text(layer));
        let activation = own.or_else(texts)?;
        Some([activation, self.vectors.get(&join(layer, GRADIENT))?])
    }

    /// The tensors by name.
    pub fn into_tensors(self) -> BTreeMap<String, Tensor> {
        self.vectors
    }

    fn of_record(
        &self,
        record: &LayerRecord,
        [inputs, outputs]: [i64; 2],
    ) -> Result<[&Tensor; 2], MathError> {
        let parameter = format!("{}.weight", record.layer);
        let Some(found @ [activation, gradient]) = self.of(&record.layer) else {
            return Err(MathError::NoFisher { parameter });
        };
        for (vectors, width) in [(activation, inputs), (gradient, outputs)] {
            if vectors.size() != [width, width] {
                let (found, expected) = (vectors.size(), vec![width, width]);
                return Err(MathError::FisherShape { parameter, found, expected });
            }
        }
        Ok(found)
    }

    /// Sums over rows of (U_C^T G U_A)^2 [O, I] by layer, and of the squared norms of G, whose sum must be the same.
    ///
    /// # Errors
    /// A layer has no eigenvectors, or others.
    pub fn squares(&self, found: &[(LayerRecord, Tensor)]) -> Result<BTreeMap<String, Tensor>, MathError> {
        let mut sums = BTreeMap::new();
        // All layers that read the texts share the product, where they share the eigenvectors too: others' factors need not.
        let mut texts: Option<([*const std::ffi::c_void; 2], Tensor)> = None;
        for (record, gradient) in found {
            let Some((x, d)) = linear(record, gradient) else { continue };
            let (_, tokens, inputs) = x.size3().expect("inputs have three dimensions");
            let (samples, _, outputs) = d.size3().expect("gradients have three dimensions");
            let [activation, gradients] = self.of_record(record, [inputs, outputs])?;
            let places = [x.data_ptr(), activation.data_ptr()].map(<*mut _>::cast_const);
            let rotated = match &texts {
                Some((known, rotated)) if shares_texts(record) && *known == places => rotated.shallow_clone(),
                _ => x.matmul(activation),
            };
            if shares_texts(record) {
                texts = Some((places, rotated.shallow_clone()));
            }
            let turned = d.matmul(gradients);
            let squares = Tensor::zeros([outputs, inputs], (Kind::Double, d.device()));
            let mut trace = Tensor::zeros([], (Kind::Double, d.device()));
            let at_once = room(d.device(), (outputs * inputs) as usize);
            // The norm of D^T X is also the sum over pairs of tokens of (x_s x_t) (d_s d_t).
            let pairs = tokens * (inputs + outputs) < inputs * outputs;
            for start in (0..samples).step_by(at_once as usize) {
                let some = |x: &Tensor| x.narrow(0, start, at_once.min(samples - start));
                add_squares(&some(&turned).transpose(1, 2).bmm(&some(&rotated)), &squares);
                let (x, d) = (some(&x), some(&d));
                let norm = match pairs {
                    true => x.bmm(&x.transpose(1, 2)) * d.bmm(&d.transpose(1, 2)),
                    false => d.transpose(1, 2).bmm(&x).square(),
                };
                trace += norm.sum(Kind::Double);
            }
            sums.insert(join(&record.layer, LAMBDA), squares);
            sums.insert(join(&record.layer, TRACE), trace);
        }
        Ok(sums)
    }
}

/// How far the sum of a layer's eigenvalues may be from the trace of its diagonal: float32 leaves about 1e-6.
const TOLERANCE: f64 = 1e-4;

/// Takes the traces out of the means over rows, and compares them with the sums of the eigenvalues: the largest relative difference.
///
/// # Errors
/// A layer whose sums differ: the eigenvectors are not orthogonal.
pub fn check_traces(means: &mut BTreeMap<String, Tensor>) -> Result<f64, MathError> {
    let ends = format!(".{TRACE}");
    let layers: Vec<String> =
        means.keys().filter_map(|name| name.strip_suffix(&ends).map(str::to_owned)).collect();
    let mut largest: f64 = 0.0;
    for layer in layers {
        let trace = means.remove(&join(&layer, TRACE)).expect("it was listed").double_value(&[]);
        let sum = means[&join(&layer, LAMBDA)].sum(Kind::Double).double_value(&[]);
        let difference = (sum - trace).abs() / trace.max(f64::MIN_POSITIVE);
        if sum.max(trace) > 0.0 && (difference.is_nan() || difference > TOLERANCE) {
            return Err(MathError::Trace { layer, sum, trace });
        }
        largest = largest.max(if sum.max(trace) > 0.0 { difference } else { 0.0 });
    }
    Ok(largest)
}

/// How far products of eigenvectors may be from those of orthogonal ones: float32 leaves about 1e-6.
const ORTHOGONAL: f64 = 1e-3;

/// The Fisher information of linear layers in their eigenbases.
pub struct Ekfac {
    basis: Eigenbasis,
    /// By layer, [O, I] in float64.
    lambda: BTreeMap<String, Tensor>,
}

impl Ekfac {
    /// Of the tensors of a file, whose names end as those of kronfluence.
    pub fn new(tensors: BTreeMap<String, Tensor>, device: Device) -> Ekfac {
        let end = format!(".{LAMBDA}");
        let lambda = tensors
            .iter()
            .filter_map(|(name, x)| {
                Some((name.strip_suffix(&end)?.to_owned(), x.to_kind(Kind::Double).to_device(device)))
            })
            .collect();
        Ekfac { basis: Eigenbasis::new(tensors, device), lambda }
    }

    /// Multiplies the information of all layers.
    pub fn scale(&mut self, by: f64) {
        self.lambda.values_mut().for_each(|lambda| *lambda *= by);
    }

    /// How many times the sums of eigenvalues the traces of a diagonal are, over the layers of some parameters.
    ///
    /// # Errors
    /// A layer that one of the two lacks, or whose eigenvalues or diagonal sum to nothing.
    pub fn traces<'b>(
        &self,
        names: impl Iterator<Item = &'b str>,
        diagonal: &BTreeMap<String, Tensor>,
    ) -> Result<Ratios, MathError> {
        let sum = |x: &Tensor| x.sum(Kind::Double).double_value(&[]);
        let mut traces: BTreeMap<&str, f64> = BTreeMap::new();
        for name in names {
            let Some(values) = diagonal.get(name) else {
                return Err(MathError::NoFisher { parameter: name.to_owned() });
            };
            *traces.entry(layer_of(name)).or_default() += sum(values);
        }
        let (mut ratios, mut all) = (Vec::new(), [0.0; 2]);
        for (layer, trace) in traces {
            let Some(lambda) = self.lambda.get(layer).map(sum) else {
                return Err(MathError::NoFisher { parameter: format!("{layer}.weight") });
            };
            let ratio = trace / lambda;
            if !(ratio.is_finite() && ratio > 0.0) {
                return Err(MathError::NoScale { layer: layer.to_owned(), sum: lambda, trace });
            }
            ratios.push(ratio);
            all = [all[0] + trace, all[1] + lambda];
        }
        let largest = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Ok(Ratios {
            all: all[0] / all[1],
            smallest: ratios.into_iter().fold(f64::INFINITY, f64::min),
            largest,
        })
    }

    pub(super) fn check(
        &self,
        parameters: &BTreeMap<String, Tensor>,
        damping: Damping,
    ) -> Result<(), MathError> {
        for layer in layers(parameters) {
            let parameter = format!("{layer}.weight");
            let (Some(lambda), Some([activation, gradient])) =
                (self.lambda.get(&layer), self.basis.of(&layer))
            else {
                return Err(MathError::NoFisher { parameter });
            };
            let Some(weight) = parameters.get(&parameter) else {
                return Err(MathError::BiasAlone { layer });
            };
            let bias = i64::from(parameters.contains_key(&format!("{layer}.bias")));
            let (outputs, inputs) = (weight.size()[0], weight.numel() as i64 / weight.size()[0] + bias);
            for (found, expected) in
                [(lambda, [outputs, inputs]), (activation, [inputs; 2]), (gradient, [outputs; 2])]
            {
                if found.size() != expected {
                    return Err(MathError::FisherShape {
                        parameter,
                        found: found.size(),
                        expected: expected.to_vec(),
                    });
                }
            }
            for vectors in [activation, gradient] {
                if vectors.isfinite().all().int64_value(&[]) == 0 {
                    let what = "its eigenvectors";
                    return Err(MathError::ParameterNotFinite { parameter, what });
                }
                let identity = Tensor::eye(vectors.size()[0], (Kind::Float, vectors.device()));
                let far = (vectors.tr().matmul(vectors) - identity).abs().max().double_value(&[]);
                if far > ORTHOGONAL {
                    return Err(MathError::NotOrthogonal { parameter, far });
                }
            }
            damping.check(&parameter, lambda)?;
        }
        Ok(())
    }

    pub(super) fn solve(
        &self,
        gradient: &BTreeMap<String, Tensor>,
        damping: Damping,
    ) -> BTreeMap<String, Tensor> {
        let of = |layer: String| {
            let (turned, [activation, gradients]) = self.turned(gradient, &layer);
            let solved = turned / damping.add_to(&self.lambda[&layer]);
            let step = gradients.matmul(&solved).matmul(&activation.transpose(0, 1)); // [O, I]
            apart(step, &layer, gradient)
        };
        layers(gradient).into_iter().flat_map(of).collect()
    }

    pub(super) fn form(&self, step: &BTreeMap<String, Tensor>) -> f64 {
        let of = |layer: String| {
            let (turned, _) = self.turned(step, &layer);
            (&self.lambda[&layer] * turned.square()).sum(Kind::Double).double_value(&[])
        };
        layers(step).into_iter().map(of).sum()
    }

    /// U_C^T G U_A of a layer's values G, and both bases, in float64.
    fn turned(&self, values: &BTreeMap<String, Tensor>, layer: &str) -> (Tensor, [Tensor; 2]) {
        let found = self.basis.of(layer).expect("the factors were checked");
        let [activation, gradient] = found.map(|vectors| vectors.to_kind(Kind::Double));
        let matrix = values[&format!("{layer}.weight")].flatten(1, -1).to_kind(Kind::Double);
        let matrix = match values.get(&format!("{layer}.bias")) {
            Some(bias) => Tensor::cat(&[matrix, bias.to_kind(Kind::Double).unsqueeze(1)], 1),
            None => matrix,
        };
        (gradient.transpose(0, 1).matmul(&matrix).matmul(&activation), [activation, gradient])
    }
}

/// How many times the sums of eigenvalues the traces of the same layers' diagonals are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratios {
    /// Of all layers together.
    pub all: f64,
    /// Of the layer where it is smallest.
    pub smallest: f64,
    /// Of the layer where it is largest.
    pub largest: f64,
}

fn layer_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(layer, _)| layer)
}

/// The layers of parameters, each once.
fn layers(parameters: &BTreeMap<String, Tensor>) -> Vec<String> {
    let mut layers: Vec<String> = parameters.keys().map(|name| layer_of(name).to_owned()).collect();
    layers.dedup();
    layers
}

/// A layer's matrix [O, I] as weight and bias, in the shapes of `like`.
fn apart(matrix: Tensor, layer: &str, like: &BTreeMap<String, Tensor>) -> Vec<(String, Tensor)> {
    let [weight, bias] = ["weight", "bias"].map(|end| join(layer, end));
    let shape = like[&weight].size();
    let Some(_) = like.get(&bias) else { return vec![(weight, matrix.view(shape.as_slice()))] };
    let inputs = matrix.size()[1] - 1;
    let weights = matrix.narrow(1, 0, inputs).contiguous().view(shape.as_slice());
    vec![(weight, weights), (bias, matrix.select(1, inputs))]
}
