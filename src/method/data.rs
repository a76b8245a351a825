//! The training set: rows of latents, and rows of text embeddings.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::error::{DataError, MathError};

/// A long array whose rows are read on demand.
pub trait Rows {
    /// How many rows there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The given rows in the given order, on the CPU, as float32 or as the smaller float type in which they are stored:
    /// [rows.len(), ..].
    ///
    /// # Errors
    /// The rows cannot be read.
    fn read(&self, rows: &[usize]) -> Result<Tensor, DataError>;

    /// The same rows for another thread, if that is possible.
    fn shared(&self) -> Option<&(dyn Rows + Sync)> {
        None
    }
}

/// Rows for the network: float32 on `device`. A smaller type is converted there, so that fewer bytes are copied.
pub fn to_device(rows: &Tensor, device: Device) -> Tensor {
    rows.to_device_(device, rows.kind(), true, false).to_kind(Kind::Float)
}

/// A tensor holds rows along its first dimension.
impl Rows for Tensor {
    fn len(&self) -> usize {
        self.size()[0] as usize
    }

    fn read(&self, rows: &[usize]) -> Result<Tensor, DataError> {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_slice(&rows).to_device(self.device());
        Ok(self.f_index_select(0, &index)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?)
    }
}

/// Latents and the captions' embeddings of N training images.
#[derive(Clone, Copy)]
pub struct DataSet<'a> {
    latents: &'a dyn Rows,
    texts: &'a dyn Rows,
    captions: usize,
}

impl<'a> DataSet<'a> {
    /// `latents` are rows [C, H, W]: N, or 2N where the second half are the images flipped left-right. `texts`
    /// are N * `captions` rows [L, D], the captions of an image one after the other: an array
    /// [N, captions, L, D], viewed as N * captions rows.
    ///
    /// # Errors
    /// The numbers of rows don't fit each other.
    pub fn new(
        latents: &'a dyn Rows,
        texts: &'a dyn Rows,
        captions: usize,
    ) -> Result<DataSet<'a>, MathError> {
        if captions == 0 || texts.is_empty() || !texts.len().is_multiple_of(captions) {
            let expected = format!("a multiple of the {captions} captions an image");
            return Err(MathError::Rows { what: "text embeddings", found: texts.len(), expected });
        }
        let images = texts.len() / captions;
        if latents.len() != images && latents.len() != 2 * images {
            let expected =
                format!("{images} (images with captions) or {} (with their mirror images)", 2 * images);
            return Err(MathError::Rows { what: "latents", found: latents.len(), expected });
        }
        Ok(DataSet { latents, texts, captions })
    }

    /// N, the number of images without their mirror images.
    pub fn images(&self) -> usize {
        self.texts.len() / self.captions
    }

    /// The number of latents: N, or 2N with the mirror images.
    pub fn latents_len(&self) -> usize {
        self.latents.len()
    }

    /// Captions an image.
    pub fn captions(&self) -> usize {
        self.captions
    }

    /// The image of a latent: a mirror image shares captions and noise with it.
    pub fn image_of(&self, latent: usize) -> usize {
        latent % self.images()
    }

    /// An error that names a latent, with the name of its image instead.
    pub fn named(&self, error: MathError) -> MathError {
        match error {
            MathError::LossNotFinite { image: latent, timestep, value, .. } => {
                let (image, mirrored) = (self.image_of(latent), latent >= self.images());
                MathError::LossNotFinite { image, mirrored, timestep, value }
            }
            error => error,
        }
    }

    /// Latents [n, C, H, W].
    ///
    /// # Errors
    /// The rows can't be read.
    pub fn latents(&self, rows: &[usize], device: Device) -> Result<Tensor, MathError> {
        Ok(to_device(&self.latents.read(rows).map_err(MathError::Data)?, device))
    }

    /// Texts [n, L, D] of pairs (latent, caption).
    ///
    /// # Errors
    /// The rows can't be read.
    pub fn texts(&self, pairs: &[(usize, usize)], device: Device) -> Result<Tensor, MathError> {
        let rows = self.text_rows(pairs);
        Ok(to_device(&self.texts.read(&rows).map_err(MathError::Data)?, device))
    }

    /// Whether another thread may read the rows, and the parts that it needs for it.
    pub fn shared(&self) -> Option<SharedData<'a>> {
        let (latents, texts) = (self.latents.shared()?, self.texts.shared()?);
        Some(SharedData { latents, texts, images: self.images(), captions: self.captions })
    }

    fn text_rows(&self, pairs: &[(usize, usize)]) -> Vec<usize> {
        text_rows(pairs, self.images(), self.captions)
    }
}

fn text_rows(pairs: &[(usize, usize)], images: usize, captions: usize) -> Vec<usize> {
    pairs.iter().map(|&(latent, caption)| latent % images * captions + caption).collect()
}

/// A [`DataSet`] that threads can read at the same time.
#[derive(Clone, Copy)]
pub struct SharedData<'a> {
    latents: &'a (dyn Rows + Sync),
    texts: &'a (dyn Rows + Sync),
    images: usize,
    captions: usize,
}

/// Some of the rows, on the CPU, in the type in which they are stored.
pub struct Loaded {
    /// [n, C, H, W].
    pub latents: Tensor,
    /// [n * captions, L, D], an image's captions one after the other.
    pub texts: Tensor,
}

impl SharedData<'_> {
    /// Reads latents and the first `captions` texts of each. For a GPU, into pinned memory.
    ///
    /// # Errors
    /// The rows can't be read.
    pub fn load(&self, latents: Range<usize>, captions: usize, device: Device) -> Result<Loaded, DataError> {
        let (rows, texts) = loaded_rows(latents, captions, self.images, self.captions);
        let pinned = |tensor: Tensor| match device {
            Device::Cuda(_) => tensor.f_pin_memory(device),
            _ => Ok(tensor),
        };
        Ok(Loaded { latents: pinned(self.latents.read(&rows)?)?, texts: pinned(self.texts.read(&texts)?)? })
    }
}

impl DataSet<'_> {
    /// As [`SharedData::load`], in this thread.
    ///
    /// # Errors
    /// As there.
    pub fn load(&self, latents: Range<usize>, captions: usize) -> Result<Loaded, DataError> {
        let (rows, texts) = loaded_rows(latents, captions, self.images(), self.captions);
        Ok(Loaded { latents: self.latents.read(&rows)?, texts: self.texts.read(&texts)? })
    }
}

/// The rows of latents, and of the first `captions` of the `all` texts of each.
fn loaded_rows(
    latents: Range<usize>,
    captions: usize,
    images: usize,
    all: usize,
) -> (Vec<usize>, Vec<usize>) {
    let rows: Vec<usize> = latents.collect();
    let each = |&latent: &usize| (0..captions).map(move |caption| (latent, caption));
    let pairs: Vec<_> = rows.iter().flat_map(each).collect();
    let texts = text_rows(&pairs, images, all);
    (rows, texts)
}
