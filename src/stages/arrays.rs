//! Memory-mapped arrays as the rows that the method reads.

use tch::{Device, Kind, Tensor};

use crate::io::npy::Npy;
use crate::math::data::Rows;
use crate::math::error::DataError;

/// The rows of an array [N, inner.., row..], taken as N * inner rows; only what is asked for is read.
pub(super) struct NpyRows {
    npy: Npy,
    /// Rows in one entry of the first dimension.
    inner: usize,
    shape: Vec<i64>,
}

impl NpyRows {
    /// Takes the first `leading` dimensions together as the rows: 1 for latents, 2 for text embeddings.
    pub fn new(npy: Npy, leading: usize) -> Self {
        let inner = npy.shape()[1..leading].iter().product();
        let shape = npy.shape()[leading..].iter().map(|&size| size as i64).collect();
        Self { npy, inner, shape }
    }

    fn row_len(&self) -> usize {
        self.npy.row_len() / self.inner
    }
}

impl Rows for NpyRows {
    fn len(&self) -> usize {
        self.npy.rows() * self.inner
    }

    fn gather(&self, rows: &[usize], device: Device) -> Result<Tensor, DataError> {
        let length = self.row_len();
        let mut values = Vec::with_capacity(rows.len() * length);
        let mut entry = Vec::new();
        let mut held = None;
        for &row in rows {
            let (outer, inner) = (row / self.inner, row % self.inner);
            if held != Some(outer) {
                entry.clear();
                self.npy.read_f32(outer..outer + 1, &mut entry)?;
                held = Some(outer);
            }
            values.extend_from_slice(&entry[inner * length..(inner + 1) * length]);
        }
        let shape = [&[rows.len() as i64], self.shape.as_slice()].concat();
        Ok(Tensor::from_slice(&values)
            .f_view(shape.as_slice())?
            .f_to_kind(Kind::Float)?
            .f_to_device(device)?)
    }
}

/// A tensor's values in row-major order.
pub(super) fn values(tensor: &Tensor) -> Vec<f32> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Vec::try_from(flat).expect("a flat float32 tensor on the CPU")
}
