//! Files of low-rank adapters (LoRA): which tensors belong to which layer of a network, and with which factor.
//!
//! W' = W + s B A, A [r, I] being the map down and B [O, r] the map up (Hu et al. 2021, arXiv 2106.09685). The factor s is
//! alpha / r; where a file gives no alpha, it is 1. Names are those of PEFT and diffusers, of their older releases, or of
//! kohya's scripts, which write a layer's name with underscores: it is found again among the network's layers. For SDXL these
//! scripts name the UNet's layers as the original code (LDM) does, and others as diffusers does; both are known of every UNet.

mod error;
mod keys;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::names::few;
use super::tensor_file::{Header, TensorFile, TensorFileError};
use super::{Dtype, json};
pub use error::LoraError;
pub use keys::Network;
use keys::{Key, Role};

/// A layer's adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The layer, such as `mid_block.attentions.0.transformer_blocks.0.attn2.to_k`.
    pub layer: String,
    /// The names in the file of the maps down and up.
    pub names: [String; 2],
    /// Their shapes, as they go with the layer's weight: of as many axes as it has.
    pub shapes: [Vec<usize>; 2],
    /// The factor s.
    pub scale: f64,
}

impl Adapter {
    /// What the network calls the two tensors.
    pub fn parameters(&self) -> [String; 2] {
        ["lora_A", "lora_B"].map(|map| format!("{}.{map}.weight", self.layer))
    }
}

/// The adapters of one network in a file.
pub struct Lora {
    file: TensorFile,
    /// By layer.
    pub adapters: Vec<Adapter>,
    /// The other networks that the file has adapters of.
    pub others: BTreeSet<Network>,
}

/// A LoRA in a folder: as diffusers and as PEFT call it.
const FILES: [&str; 3] =
    ["pytorch_lora_weights.safetensors", "adapter_model.safetensors", "pytorch_lora_weights.bin"];

/// The file of a LoRA: itself, or the one in the folder.
///
/// # Errors
/// A folder without one.
pub fn find(path: &Path) -> Result<PathBuf, LoraError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let found = FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| LoraError::NoFile { folder: path.to_owned(), names: FILES.join(", ") })
}

impl Lora {
    /// Reads which tensors there are, and matches them with the layers of a network, whose parameters are given.
    ///
    /// # Errors
    /// A file that cannot be read, holds what is not a LoRA or of a kind that is not supported, or does not fit the network.
    pub fn open(path: &Path, network: Network, parameters: &[Header]) -> Result<Lora, LoraError> {
        let folder = path.is_dir().then_some(path);
        let file = TensorFile::open(find(path)?)?;
        let path = file.path().to_owned();
        let weights = weights_of(network, parameters);
        let layers = keys::Layers::new(network, weights.keys().copied());
        let (mut found, mut unfit): (BTreeMap<String, Parts>, Vec<String>) = (BTreeMap::new(), Vec::new());
        let (mut any, mut others) = (false, BTreeSet::new());
        // A network that is given no pooled text is of a model without a second text encoder.
        let alone = network == Network::Unet && !weights.contains_key("add_embedding.linear_1");
        for header in file.headers() {
            let key = Key::parse(&header.name).map_err(|what| LoraError::Unsupported {
                path: path.clone(),
                key: header.name.clone(),
                what,
            })?;
            let Some(Key { network: of, role, name }) = key else {
                unfit.push(header.name.clone());
                continue;
            };
            any = true;
            if of == Network::TextEncoder2 && alone {
                return Err(LoraError::SecondEncoder { path, key: header.name.clone() });
            }
            if of != network {
                others.insert(of);
                continue;
            }
            let Some(layer) = layers.find(&name) else {
                unfit.push(header.name.clone());
                continue;
            };
            if let Some(first) = found.entry(layer.to_owned()).or_default().set(role, header) {
                let (path, layer) = (path.clone(), layer.to_owned());
                let (first, second) = (first.name.clone(), header.name.clone());
                return Err(LoraError::Twice { path, layer, first, second });
            }
        }
        if !any {
            return Err(LoraError::None { path });
        }
        if !unfit.is_empty() {
            unfit.sort();
            return Err(LoraError::Unfit { path, network, count: unfit.len(), names: few(&unfit) });
        }
        let class_images = file.metadata("ss_num_reg_images").and_then(|count| count.parse::<u64>().ok());
        if let Some(count) = class_images.filter(|count| *count > 0) {
            return Err(LoraError::ClassImages { path, count });
        }
        if let Some((key, value)) = other_loss(&file) {
            return Err(LoraError::Loss { path, key, value });
        }
        let alphas = Alphas::read(&file, folder, network)?;
        alphas.check(&file, network, found.keys())?;
        let adapters = found
            .into_iter()
            .map(|(layer, parts)| adapter(&file, (&alphas, network), weights[layer.as_str()], layer, &parts))
            .collect::<Result<_, _>>()?;
        Ok(Lora { file, adapters, others })
    }

    /// The file.
    pub fn file(&self) -> &TensorFile {
        &self.file
    }

    /// The parameters that these adapters add to the network.
    pub fn headers(&self) -> Vec<Header> {
        let of = |adapter: &Adapter| {
            let parameters = adapter.parameters().into_iter().zip(adapter.shapes.clone());
            parameters.map(|(name, shape)| Header { name, dtype: Dtype::F32, shape }).collect::<Vec<_>>()
        };
        self.adapters.iter().flat_map(of).collect()
    }

    /// What kohya's scripts say of the training, by their keys without `ss_`.
    pub fn training(&self) -> BTreeMap<&str, &str> {
        let entries = self.file.metadata_entries();
        entries.filter_map(|(key, value)| Some((key.strip_prefix("ss_")?, value))).collect()
    }
}

/// What kohya's scripts say of a loss that is not computed here.
fn other_loss(file: &TensorFile) -> Option<(&'static str, String)> {
    /// Keys, and the values with which the loss is the plain one.
    const PLAIN: [(&str, &[&str]); 5] = [
        ("ss_loss_type", &["l2", "None", ""]),
        ("ss_debiased_estimation", &["False", "None", ""]),
        ("ss_multires_noise_iterations", &["0", "None", ""]),
        ("ss_ip_noise_gamma", &["0", "0.0", "None", ""]),
        ("ss_scale_v_pred_loss_like_noise_pred", &["False", "None", ""]),
    ];
    PLAIN.into_iter().find_map(|(key, plain)| {
        let value = file.metadata(key).filter(|value| !plain.contains(value))?;
        Some((key, value.to_owned()))
    })
}

/// The weights of layers that can have an adapter: linear maps and convolutions, by the layer's name.
fn weights_of(network: Network, parameters: &[Header]) -> BTreeMap<&str, &[usize]> {
    let layers = parameters.iter().filter(|header| matches!(header.shape.len(), 2 | 4));
    let named = layers.filter_map(|header| {
        let layer = header.name.strip_suffix(".weight")?;
        Some((network.without_prefix(layer), header.shape.as_slice()))
    });
    named.collect()
}

/// The tensors of one layer's adapter.
#[derive(Default)]
struct Parts<'a> {
    down: Option<&'a Header>,
    up: Option<&'a Header>,
    alpha: Option<&'a Header>,
}

impl<'a> Parts<'a> {
    /// Returns what was in this place.
    fn set(&mut self, role: Role, header: &'a Header) -> Option<&'a Header> {
        let place = match role {
            Role::Down => &mut self.down,
            Role::Up => &mut self.up,
            Role::Alpha => &mut self.alpha,
        };
        place.replace(header)
    }
}

fn adapter(
    file: &TensorFile,
    (alphas, network): (&Alphas, Network),
    weight: &[usize],
    layer: String,
    parts: &Parts<'_>,
) -> Result<Adapter, LoraError> {
    let path = || file.path().to_owned();
    let (Some(down), Some(up)) = (parts.down, parts.up) else {
        let missing = if parts.down.is_none() { "down (A)" } else { "up (B)" };
        return Err(LoraError::Half { path: path(), layer, missing });
    };
    let rank = down.shape.first().copied().unwrap_or(0);
    let shapes =
        [[&[rank], &weight[1..]].concat(), [&[weight[0], rank], &[1, 1][..weight.len() - 2]].concat()];
    for (header, expected) in [down, up].into_iter().zip(&shapes) {
        if !header.dtype.is_float() {
            let (path, tensor, found) = (path(), header.name.clone(), header.dtype);
            return Err(TensorFileError::NotFloat { path, tensor, found }.into());
        }
        // A linear map may be written as a 1x1 convolution, and a 1x1 convolution as a linear map.
        let same = without_ones(&header.shape) == without_ones(expected);
        if rank == 0 || !same {
            let (key, found, expected) = (header.name.clone(), header.shape.clone(), expected.clone());
            return Err(LoraError::Shape { path: path(), key, found, expected });
        }
    }
    let scale = match parts.alpha {
        Some(header) => alpha(file, header)? / rank as f64,
        None => alphas.scale(network, &layer, rank),
    };
    Ok(Adapter { layer, names: [down.name.clone(), up.name.clone()], shapes, scale })
}

/// Lengths of axes without the last two, where those are 1.
fn without_ones(shape: &[usize]) -> &[usize] {
    if shape.len() == 4 && shape[2..] == [1, 1] { &shape[..2] } else { shape }
}

/// The one number in a tensor.
fn alpha(file: &TensorFile, header: &Header) -> Result<f64, LoraError> {
    let value = match header.dtype {
        Dtype::I64 => <[u8; 8]>::try_from(file.bytes(header)?.as_ref())
            .map(|bytes| i64::from_le_bytes(bytes) as f64)
            .ok(),
        Dtype::I32 => <[u8; 4]>::try_from(file.bytes(header)?.as_ref())
            .map(|bytes| i32::from_le_bytes(bytes).into())
            .ok(),
        _ => <[u8; 8]>::try_from(file.bytes_as(header, Dtype::F64)?.as_ref()).map(f64::from_le_bytes).ok(),
    };
    value.filter(|value| value.is_finite()).ok_or_else(|| LoraError::Alpha {
        path: file.path().to_owned(),
        key: header.name.clone(),
        shape: header.shape.clone(),
    })
}

/// What a file, or PEFT's `adapter_config.json` beside it, says of alpha.
#[derive(Default)]
struct Alphas {
    config: Json,
    /// Of the keys of this network, in metadata that are of several.
    prefix: String,
}

impl Alphas {
    /// A file of PEFT's has its alpha in another one, so the folder with both is what is connected.
    fn read(file: &TensorFile, folder: Option<&Path>, network: Network) -> Result<Alphas, LoraError> {
        const METADATA: &str = "lora_adapter_metadata";
        let path = || file.path().to_owned();
        let is_peft = file.headers().iter().any(|header| header.name.starts_with("base_model.model."));
        let beside =
            folder.map(|folder| folder.join("adapter_config.json")).filter(|config| config.is_file());
        let alphas = match (file.metadata(METADATA), beside) {
            (Some(text), _) => {
                let config = serde_json::from_str(text).map_err(|source| LoraError::Metadata {
                    path: path(),
                    key: METADATA,
                    source,
                })?;
                Alphas { config, prefix: format!("{}.", network.name()) }
            }
            (None, Some(config)) if is_peft => Alphas { config: json::read(&config)?, prefix: String::new() },
            (None, None) if is_peft => return Err(LoraError::NoConfig { path: path() }),
            (None, _) => Alphas::default(),
        };
        let unsupported =
            |key: &str, what| LoraError::Unsupported { path: path(), key: key.to_owned(), what };
        if alphas.value("use_dora") == &Json::Bool(true) {
            return Err(unsupported("use_dora", "DoRA"));
        }
        // These change the weights of the base as well.
        let begun = alphas.value("init_lora_weights").as_str().unwrap_or_default();
        if ["pissa", "olora", "loftq", "corda"].iter().any(|name| begun.starts_with(name)) {
            return Err(unsupported(
                "init_lora_weights",
                "a LoRA that changes its base (PiSSA, OLoRA, LoftQ, CorDA)",
            ));
        }
        Ok(alphas)
    }

    /// Refuses an alpha of its own for layers that are not there: PEFT reads such names as regular expressions.
    fn check<'a>(
        &self,
        file: &TensorFile,
        network: Network,
        mut layers: impl Iterator<Item = &'a String> + Clone,
    ) -> Result<(), LoraError> {
        let own = self.value("alpha_pattern").as_object().into_iter().flatten();
        for (name, _) in own {
            if !layers.clone().any(|layer| fits(layer, network.without_prefix(name)))
                && layers.next().is_some()
            {
                let (path, name) = (file.path().to_owned(), name.clone());
                return Err(LoraError::Pattern { path, name });
            }
        }
        Ok(())
    }

    fn value(&self, key: &str) -> &Json {
        self.config.get(format!("{}{key}", self.prefix)).unwrap_or(&Json::Null)
    }

    /// The factor of a layer: by its own alpha, or else by that of all; 1 where there is none.
    fn scale(&self, network: Network, layer: &str, rank: usize) -> f64 {
        let own = self.value("alpha_pattern").as_object().into_iter().flatten();
        let own = own.filter(|(name, _)| fits(layer, network.without_prefix(name)));
        let alpha = own.map(|(_, value)| value).next().unwrap_or_else(|| self.value("lora_alpha"));
        let rank = rank as f64;
        let divisor = if self.value("use_rslora") == &Json::Bool(true) { rank.sqrt() } else { rank };
        alpha.as_f64().map_or(1.0, |alpha| alpha / divisor)
    }
}

/// Whether a name is that of a layer, or its end.
fn fits(layer: &str, name: &str) -> bool {
    layer == name || layer.ends_with(&format!(".{name}"))
}

#[cfg(test)]
mod tests;
