//! Arrays in files as the rows that the method reads.

use anyhow::Context as _;
use bytemuck::Zeroable;
use tch::{Device, Kind, Tensor};

use crate::io::dtype::{Float, not_finite};
use crate::io::npy::{Dtype, Npy, NpyError};
use crate::method::data::{DataSet, Rows};
use crate::method::error::DataError;
use crate::models::unet::UNet;
use crate::models::unet::config::UNetConfig;
use attrflow_engine::kind::{Input, Inputs};

/// Images and their mirror images, as the network reads them.
pub(crate) const LATENTS: Input = Input::new("latents", "float [2N, C, H, W]");
/// All captions of each image.
pub(crate) const TEXT_EMBEDDINGS: Input = Input::new("text_embeddings", "float [N, captions, L, D]");

/// The rows of an array [N, inner.., row..], taken as N * inner rows; only what is asked for is read.
pub struct NpyRows {
    npy: Npy,
    /// Rows in one entry of the first dimension.
    inner: usize,
    shape: Vec<i64>,
}

impl NpyRows {
    /// The rows are the first `leading` dimensions together: 1 for latents, 2 for text embeddings.
    #[must_use]
    pub fn new(npy: Npy, leading: usize) -> Self {
        let inner = npy.shape()[1..leading].iter().product();
        let shape = npy.shape()[leading..].iter().map(|&size| size as i64).collect();
        Self { npy, inner, shape }
    }

    /// The values of some rows; `read` fills a slice from a place in the file on.
    ///
    /// A value that is not finite would make every later number NaN, and be blamed on it.
    fn values<T: Zeroable + Float>(
        &self,
        rows: &[usize],
        read: impl Fn(usize, &mut [T]) -> Result<(), NpyError>,
    ) -> Result<Vec<T>, NpyError> {
        let length = self.npy.row_len() / self.inner;
        let mut values = vec![T::zeroed(); rows.len() * length];
        let mut rest = values.as_mut_slice();
        // Consecutive rows are read at once.
        for run in rows.chunk_by(|row, next| row + 1 == *next) {
            let (some, others) = rest.split_at_mut(run.len() * length);
            read(run[0] * length, some)?;
            if let Some((place, value)) = not_finite(some) {
                return Err(self.npy.not_finite(run[0] * length + place, value));
            }
            rest = others;
        }
        Ok(values)
    }
}

impl Rows for NpyRows {
    fn len(&self) -> usize {
        self.npy.rows() * self.inner
    }

    fn read(&self, rows: &[usize]) -> Result<Tensor, DataError> {
        let shape = [&[rows.len() as i64], self.shape.as_slice()].concat();
        // Half precision is converted on the device: half the bytes to copy.
        let values = match self.npy.dtype() {
            Dtype::F16 => Tensor::from_slice(&self.values(rows, |at, out| self.npy.read_f16_at(at, out))?),
            _ => Tensor::from_slice(&self.values(rows, |at, out| self.npy.read_f32_at(at, out))?),
        };
        Ok(values.f_view(shape.as_slice())?)
    }

    fn shared(&self) -> Option<&(dyn Rows + Sync)> {
        Some(self)
    }
}

/// Opens the arrays on `latents` and `text_embeddings`, and refuses those that are not of one data set.
///
/// # Errors
/// The file, what was found and what was expected.
pub(crate) fn open(inputs: &Inputs) -> anyhow::Result<(Npy, Npy)> {
    let latents = Npy::open(inputs.path("latents"))?;
    let texts = Npy::open(inputs.path("text_embeddings"))?;
    for npy in [&latents, &texts] {
        npy.expect_shape(&[None, None, None, None])?;
        npy.expect_values()?;
        let found = npy.dtype();
        let float = matches!(found, Dtype::F16 | Dtype::F32 | Dtype::F64);
        anyhow::ensure!(float, "{}: dtype {found}, expected a float type", npy.path().display());
    }
    let (found, images) = (latents.rows(), texts.rows());
    anyhow::ensure!(
        found == images || found == 2 * images,
        "{}: {found} rows, expected {images} or {} (with mirror images), since {} has {images} rows",
        latents.path().display(),
        2 * images,
        texts.path().display()
    );
    Ok((latents, texts))
}

/// Refuses arrays that the network cannot read.
///
/// # Errors
/// As [`open`].
pub(crate) fn expect_fit(latents: &Npy, texts: &Npy, config: &UNetConfig) -> anyhow::Result<()> {
    let channels = Some(config.in_channels as usize);
    latents.expect_shape(&[None, channels, None, None]).context("the latents do not fit the network")?;
    expect_texts_fit(texts, config)
}

/// Refuses texts that the network cannot read.
///
/// # Errors
/// As [`open`].
pub(crate) fn expect_texts_fit(texts: &Npy, config: &UNetConfig) -> anyhow::Result<()> {
    let width = Some(config.cross_attention_dim as usize);
    texts.expect_shape(&[None, None, None, width]).context("the text embeddings do not fit the network")
}

/// The training set on `latents` and `text_embeddings`, checked against the network that reads it.
pub(crate) struct TrainingSet {
    latents: NpyRows,
    texts: NpyRows,
    captions: usize,
}

impl TrainingSet {
    /// Opens the arrays.
    ///
    /// # Errors
    /// As [`open`] and [`expect_fit`].
    pub fn open(inputs: &Inputs, unet: &UNet) -> anyhow::Result<Self> {
        let (latents, texts) = open(inputs)?;
        expect_fit(&latents, &texts, unet.config())?;
        let captions = texts.shape()[1];
        Ok(Self { latents: NpyRows::new(latents, 1), texts: NpyRows::new(texts, 2), captions })
    }

    /// The texts, [L, D] each.
    pub fn texts(&self) -> &NpyRows {
        &self.texts
    }

    /// The rows as the method reads them.
    ///
    /// # Errors
    /// Numbers of rows that do not fit each other.
    pub fn data(&self) -> anyhow::Result<DataSet<'_>> {
        Ok(DataSet::new(&self.latents, &self.texts, self.captions)?)
    }
}

impl TrainingSet {
    /// The shapes of a latent and of a text.
    pub fn row_shapes(&self) -> [&[i64]; 2] {
        [&self.latents.shape, &self.texts.shape]
    }
}

/// The number of training images, from the header of the text embeddings [N, captions, L, D].
///
/// # Errors
/// As [`open`].
pub(crate) fn count_images(inputs: &Inputs) -> anyhow::Result<usize> {
    Ok(open(inputs)?.1.rows())
}

/// A tensor's values in row-major order.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Vec::try_from(flat).expect("a flat float32 tensor on the CPU")
}

#[cfg(test)]
#[path = "arrays_tests.rs"]
mod tests;
