//! The training set as the method sees it: rows of latents, and rows of text embeddings.

use tch::{Device, Tensor};

use super::error::{DataError, MathError};

/// A long array whose rows are read as they are needed.
pub trait Rows {
    /// How many rows there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The given rows in the given order as float32 on `device`: [rows.len(), ..].
    ///
    /// # Errors
    /// Whatever keeps the rows from being read.
    fn gather(&self, rows: &[usize], device: Device) -> Result<Tensor, DataError>;
}

/// A tensor holds rows along its first dimension.
impl Rows for Tensor {
    fn len(&self) -> usize {
        self.size()[0] as usize
    }

    fn gather(&self, rows: &[usize], device: Device) -> Result<Tensor, DataError> {
        let rows: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_slice(&rows).to_device(self.device());
        Ok(self.f_index_select(0, &index)?.f_to_kind(tch::Kind::Float)?.f_to_device(device)?)
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
    /// [N, captions, L, D], read as one of rows.
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

    /// The original image of a latent: a mirror image shares captions and noise with it.
    pub fn original(&self, latent: usize) -> usize {
        latent % self.images()
    }

    /// An error that names a latent, with the name of its image instead.
    pub fn named(&self, error: MathError) -> MathError {
        match error {
            MathError::LossNotFinite { image: latent, timestep, value, .. } => {
                let (image, mirrored) = (self.original(latent), latent >= self.images());
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
        self.latents.gather(rows, device).map_err(MathError::Data)
    }

    /// Texts [n, L, D] of pairs (latent, caption).
    ///
    /// # Errors
    /// The rows can't be read.
    pub fn texts(&self, pairs: &[(usize, usize)], device: Device) -> Result<Tensor, MathError> {
        let row = |&(latent, caption): &(usize, usize)| self.original(latent) * self.captions + caption;
        let rows: Vec<usize> = pairs.iter().map(row).collect();
        self.texts.gather(&rows, device).map_err(MathError::Data)
    }
}
