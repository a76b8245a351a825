//! Kronecker factors in files: of this program's stages, and of kronfluence.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use tch::{Kind, Tensor};

use super::parameters::Parameters;
use super::tensors;
use crate::io::tensor_file::{Header, TensorFile};
use crate::method::ekfac::{ACTIVATION, GRADIENT, LAMBDA, TEXTS};
use crate::method::selection::Selection;
use crate::models::unet::conditioning::reads_text;
use crate::models::weights::checkpoint;
use attrflow_engine::kind::Inputs;

/// A linear layer whose weight is chosen.
pub(crate) struct Linear {
    /// Its name.
    pub layer: String,
    /// O.
    pub outputs: usize,
    /// I, with one for a chosen bias.
    pub inputs: usize,
    bias: bool,
}

impl Linear {
    /// Whether its inputs are the texts as they are.
    pub fn shares_texts(&self) -> bool {
        !self.bias && reads_text(&self.layer)
    }
}

/// The linear layers among chosen parameters.
pub(crate) fn linear_layers(parameters: &Parameters) -> Vec<Linear> {
    let chosen: BTreeMap<&str, &Header> =
        parameters.selected().map(|header| (header.name.as_str(), header)).collect();
    let of = |(name, header): (&&str, &&Header)| {
        let layer = name.strip_suffix(".weight")?;
        // A 1x1 convolution between tokens and pixels is a linear map too; those of resnets are not recorded as one.
        let (outputs, inputs) = match header.shape[..] {
            [outputs, inputs] => (outputs, inputs),
            [outputs, inputs, 1, 1] if layer.ends_with("proj_in") || layer.ends_with("proj_out") => {
                (outputs, inputs)
            }
            _ => return None,
        };
        let bias = chosen.contains_key(format!("{layer}.bias").as_str());
        Some(Linear { layer: layer.to_owned(), outputs, inputs: inputs + usize::from(bias), bias })
    };
    chosen.iter().filter_map(of).collect()
}

/// The linear layers that a selection chooses of the network on the ports.
///
/// # Errors
/// Files that make no network.
pub(crate) fn layers(inputs: &Inputs, selection: &Selection) -> anyhow::Result<Vec<Linear>> {
    Ok(linear_layers(&Parameters::of(inputs, selection)?))
}

/// Refuses a selection without a linear layer.
pub(crate) fn expect_linear(inputs: &Inputs, selection: &Selection) -> anyhow::Result<()> {
    let network = Parameters::of(inputs, selection)?;
    ensure!(
        !linear_layers(&network).is_empty(),
        "the selection {selection} chooses no weight of a linear layer of {}",
        network.path.display()
    );
    Ok(())
}

/// Bytes of the factors in float32: eigenvectors, and eigenvalues where there are some.
pub(crate) fn bytes(layers: &[Linear], eigenvalues: bool) -> u64 {
    /// Approximate bytes per tensor in the header of a file.
    const NAME: usize = 150;
    let shared =
        layers.iter().find(|layer| layer.shares_texts()).map_or(0, |layer| layer.inputs * layer.inputs);
    let of = |layer: &Linear| {
        let own = if layer.shares_texts() { 0 } else { layer.inputs * layer.inputs };
        let values = if eigenvalues { layer.outputs * layer.inputs } else { 0 };
        4 * (own + layer.outputs * layer.outputs + values) + 2 * NAME
    };
    (4 * shared + layers.iter().map(of).sum::<usize>()) as u64
}

/// The names in a folder of kronfluence's factors: a file for each kind, whose tensors are named by their modules.
const PUBLISHED: [&str; 3] = [ACTIVATION, GRADIENT, LAMBDA];
const PROCESSED: &str = "num_lambda_processed";

fn kinds(eigenvalues: bool) -> &'static [&'static str] {
    &PUBLISHED[..if eigenvalues { 3 } else { 2 }]
}

/// Whether these are factors in the format of kronfluence: a folder.
pub(crate) fn is_published(path: &Path) -> bool {
    path.is_dir()
}

/// Refuses factors that lack one of the layers, or are of another network: by their headers.
///
/// # Errors
/// The file, the layer, what was found and what was expected.
pub(crate) fn validate(path: &Path, layers: &[Linear], eigenvalues: bool) -> anyhow::Result<()> {
    let published = is_published(path);
    for kind in kinds(eigenvalues) {
        let file = if published { path.join(format!("{kind}.safetensors")) } else { path.to_owned() };
        let file = TensorFile::open(&file)?;
        for linear @ Linear { layer, outputs, inputs, .. } in layers {
            let name = if published { layer.clone() } else { format!("{layer}.{kind}") };
            let shared = !published && *kind == ACTIVATION && linear.shares_texts();
            let shared = shared.then(|| format!("{TEXTS}.{ACTIVATION}"));
            let header = file.header(&name).or_else(|| file.header(&shared?));
            let header = header.with_context(|| {
                format!(
                    "{}: no `{name}`, which `select` needs: compute the factors with a `select` that holds it",
                    file.path().display()
                )
            })?;
            let expected = match *kind {
                ACTIVATION => [*inputs; 2],
                GRADIENT => [*outputs; 2],
                _ => [*outputs, *inputs],
            };
            ensure!(
                header.shape == expected,
                "{}: `{}` has the shape {:?}, expected {expected:?} for the network's layer `{layer}`: the factors are of another network",
                file.path().display(),
                header.name,
                header.shape
            );
        }
    }
    Ok(())
}

/// Refuses factors with which not all chosen weights can be changed: also where some are of no linear layer.
///
/// # Errors
/// The weight, or as [`validate`].
pub(crate) fn validate_all(path: &Path, inputs: &Inputs, selection: &Selection) -> anyhow::Result<()> {
    let network = Parameters::of(inputs, selection)?;
    let layers = linear_layers(&network);
    let ends = [".weight", ".bias"];
    let linear = |name: &str| {
        layers.iter().any(|own| name.strip_prefix(own.layer.as_str()).is_some_and(|end| ends.contains(&end)))
    };
    let others: Vec<&str> =
        network.selected().map(|header| header.name.as_str()).filter(|name| !linear(name)).collect();
    ensure!(
        others.is_empty(),
        "`select` chooses {} weights of no linear layer, for instance `{}`, which EK-FAC does not cover: choose linear layers alone",
        others.len(),
        others[0]
    );
    validate(path, &layers, true)
}

/// Reads factors, by layer and kind: eigenvectors, and eigenvalues where they are wanted.
///
/// # Errors
/// Files that cannot be read, or a number of rows that is none.
pub(crate) fn read(path: &Path, eigenvalues: bool) -> anyhow::Result<BTreeMap<String, Tensor>> {
    if !is_published(path) {
        return tensors::read(path);
    }
    let mut all = BTreeMap::new();
    for kind in kinds(eigenvalues) {
        let found = tensors::read(&path.join(format!("{kind}.safetensors")))?;
        all.extend(found.into_iter().map(|(module, tensor)| (format!("{module}.{kind}"), tensor)));
    }
    if !eigenvalues {
        return Ok(all);
    }
    // Their eigenvalues are sums over rows.
    let file = path.join(format!("{PROCESSED}.safetensors"));
    let counts = checkpoint::read(&file)?;
    for (name, lambda) in &mut all {
        let Some(module) = name.strip_suffix(LAMBDA).and_then(|name| name.strip_suffix('.')) else {
            continue;
        };
        let count = counts.get(module).with_context(|| {
            format!(
                "{}: no `{module}`, expected the number of rows that its eigenvalues are a sum over",
                file.display()
            )
        })?;
        let count = count.to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
        ensure!(count > 0.0, "{}: `{module}` is {count}, expected a number of rows above 0", file.display());
        *lambda = lambda.to_kind(Kind::Double) / count;
    }
    Ok(all)
}
