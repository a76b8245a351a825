//! Scores of training images by simpler means than unlearning: similarities of gradients and of pictures.
//!
//! Shapes: R training vectors phi_i of k numbers, the rows of Phi [R, k], and a query's vector phi_q [k]. A vector is a row that is read
//! and mapped. Sums are in float64.

use std::ops::Range;

use attrflow_engine::choice;
use tch::{Device, Kind, Tensor};

use super::data::Rows;
use super::error::{DataError, MathError};

choice! {
    /// How training images are scored.
    pub enum Baseline {
        /// The product of gradients, TracIn of one checkpoint.
        Dot = "dot",
        /// Its cosine.
        Cosine = "cosine",
        /// TRAK, of gradients of the loss.
        Trak = "trak",
        /// D-TRAK: the same, of gradients of the squared prediction.
        DTrak = "d-trak",
        /// Journey-TRAK: the same as TRAK, with a query's gradient at one timestep of its own drawing.
        JourneyTrak = "journey-trak",
        /// The cosine of latents.
        Vae = "vae",
        /// The cosine of text embeddings.
        Text = "text",
        /// The cosine of pixels.
        Pixel = "pixel",
        /// The cosine of CLIP's vectors of pictures.
        Clip = "clip",
        /// The cosine of DINO's vectors of pictures.
        Dino = "dino",
    }
}

/// Which linear system [`trak`] solves. Both give the same scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// k x k.
    Primal,
    /// R x R.
    Dual,
}

/// Training vectors, read a block at a time.
#[derive(Clone, Copy)]
pub struct Vectors<'a> {
    /// Their rows.
    pub rows: &'a dyn Rows,
    /// From rows [n, ..] to vectors [n, k].
    pub map: fn(&Tensor) -> Tensor,
    /// Where to compute.
    pub device: Device,
}

/// Numbers in a block (64 MiB in float32).
const BLOCK: usize = 1 << 24;

impl Vectors<'_> {
    /// The vectors of some rows, [n, k] in float64.
    fn read(&self, rows: Range<usize>) -> Result<Tensor, MathError> {
        let rows = self.rows.read(&rows.collect::<Vec<_>>()).map_err(MathError::Data)?;
        Ok((self.map)(&rows.to_device(self.device).to_kind(Kind::Double)))
    }

    /// Calls a function with each block of vectors.
    fn each(&self, work: &mut dyn FnMut(Range<usize>, Tensor)) -> Result<(), MathError> {
        let (count, mut start, mut at_once) = (self.rows.len(), 0, 1);
        while start < count {
            let some = start..count.min(start + at_once);
            start = some.end;
            let rows = self.rows.read(&some.clone().collect::<Vec<_>>()).map_err(MathError::Data)?;
            // The first row alone tells how long a row is.
            at_once = (BLOCK * some.len() / rows.numel().max(1)).max(1);
            work(some, (self.map)(&rows.to_device(self.device).to_kind(Kind::Double)));
        }
        Ok(())
    }

    /// The result of a function on each block, [R] in all.
    fn scores(&self, of: &dyn Fn(&Tensor) -> Tensor) -> Result<Vec<f32>, MathError> {
        let mut scores = Vec::with_capacity(self.rows.len());
        self.each(&mut |_, vectors| scores.extend(floats(&of(&vectors))))?;
        Ok(scores)
    }

    /// The vector of one row, [k] in float64.
    ///
    /// # Errors
    /// The row can't be read.
    pub fn vector(&self, row: usize) -> Result<Tensor, MathError> {
        Ok(self.read(row..row + 1)?.squeeze_dim(0))
    }

    /// The mean of all vectors, [k] in float64.
    ///
    /// # Errors
    /// The rows can't be read.
    pub fn mean(&self) -> Result<Tensor, MathError> {
        let mut sum: Option<Tensor> = None;
        self.each(&mut |_, vectors| {
            let some = vectors.sum_dim_intlist(0, false, None);
            sum = Some(sum.take().map_or_else(|| some.shallow_clone(), |sum| sum + &some));
        })?;
        let empty = || MathError::Rows { what: "the training set", found: 0, expected: "some".to_owned() };
        Ok(sum.ok_or_else(empty)? / self.rows.len() as f64)
    }
}

fn floats(values: &Tensor) -> Vec<f32> {
    let values = values.to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view(-1);
    Vec::try_from(values).expect("a flat float32 tensor on the CPU")
}

/// The products phi_i . phi_q, [R]: TracInCP (Pruthi et al. 2020, arXiv 2002.08484) of one checkpoint and a learning rate of 1.
///
/// # Errors
/// The rows can't be read.
pub fn dot(vectors: &Vectors<'_>, query: &Tensor) -> Result<Vec<f32>, MathError> {
    vectors.scores(&|some| some.mv(query))
}

/// The cosines of phi_i - centre and phi_q - centre, [R]; 0 for a training vector at the centre.
///
/// # Errors
/// The rows can't be read; the query's vector is at the centre.
pub fn cosine(vectors: &Vectors<'_>, query: &Tensor, centre: Option<&Tensor>) -> Result<Vec<f32>, MathError> {
    let moved = |x: &Tensor| centre.map_or_else(|| x.shallow_clone(), |centre| x - centre);
    let query = moved(query);
    let length = query.norm();
    if length.double_value(&[]) == 0.0 {
        return Err(MathError::NoDirection { what: "the query" });
    }
    let query = query / length;
    vectors.scores(&|some| {
        let some = moved(some);
        let lengths = some.norm_scalaropt_dim(2.0, [1i64].as_slice(), false);
        let products = some.mv(&query) / &lengths;
        products.masked_fill(&lengths.eq(0.0), 0.0)
    })
}

/// TRAK's scores phi_i . (Phi^T Phi + lambda)^-1 phi_q of one model, without the weight by 1 - p, which a loss as output function has not
/// (Park et al. 2023, arXiv 2303.14186, section 3); with their gradients D-TRAK's (Zheng et al. 2024, arXiv 2311.00500) and Journey-TRAK's
/// (Georgiev et al. 2023, arXiv 2312.06205). [R]
///
/// lambda = `damping` tr(Phi^T Phi) / k: gradients of another scale give the same ranking. The kernel is not divided by R. With fewer
/// vectors than numbers, the dual form (Phi Phi^T + lambda)^-1 Phi phi_q gives the same scores by a smaller system, unless `form` is given.
///
/// # Errors
/// The rows can't be read; all are zero; the kernel is singular without damping.
pub fn trak(
    vectors: &Vectors<'_>,
    query: &Tensor,
    damping: f64,
    form: Option<Form>,
) -> Result<Vec<f32>, MathError> {
    let (count, width) = (vectors.rows.len(), query.size()[0]);
    let form = form.unwrap_or(if (count as i64) < width { Form::Dual } else { Form::Primal });
    match form {
        Form::Primal => {
            let mut kernel = Tensor::zeros([width, width], (Kind::Double, vectors.device));
            vectors.each(&mut |_, some| {
                let _ = kernel.addmm_(&some.tr(), &some);
            })?;
            let solved = solve(kernel, query, damping, width)?;
            dot(vectors, &solved)
        }
        Form::Dual => {
            // A block of rows at a time beside each block before it: two blocks are in memory, beside the kernel.
            let kernel = Tensor::zeros([count as i64; 2], (Kind::Double, vectors.device));
            let products = Tensor::zeros([count as i64], (Kind::Double, vectors.device));
            let part = |kernel: &Tensor, rows: &Range<usize>, columns: &Range<usize>| {
                kernel.narrow(0, rows.start as i64, rows.len() as i64).narrow(
                    1,
                    columns.start as i64,
                    columns.len() as i64,
                )
            };
            let mut failed = None;
            vectors.each(&mut |rows, some| {
                products.narrow(0, rows.start as i64, rows.len() as i64).copy_(&some.mv(query));
                part(&kernel, &rows, &rows).copy_(&some.matmul(&some.tr()));
                let before = Vectors { rows: &First(vectors.rows, rows.start), ..*vectors };
                let found = before.each(&mut |columns, others| {
                    let found = some.matmul(&others.tr());
                    part(&kernel, &columns, &rows).copy_(&found.tr());
                    part(&kernel, &rows, &columns).copy_(&found);
                });
                failed = failed.take().or(found.err());
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            Ok(floats(&solve(kernel, &products, damping, width)?))
        }
    }
}

/// The first of some rows.
struct First<'a>(&'a dyn Rows, usize);

impl Rows for First<'_> {
    fn len(&self) -> usize {
        self.1
    }

    fn read(&self, rows: &[usize]) -> Result<Tensor, DataError> {
        self.0.read(rows)
    }
}

/// (kernel + lambda)^-1 b by Cholesky's decomposition, lambda relative to the kernel's trace over `width`.
fn solve(kernel: Tensor, b: &Tensor, damping: f64, width: i64) -> Result<Tensor, MathError> {
    let trace = kernel.diagonal(0, 0, 1).sum(None).double_value(&[]);
    if trace == 0.0 {
        return Err(MathError::NoDirection { what: "every training image" });
    }
    let mut kernel = kernel;
    let mut diagonal = kernel.diagonal(0, 0, 1);
    diagonal += damping * trace / width as f64;
    kernel = kernel.contiguous();
    let (factor, info) = kernel.linalg_cholesky_ex(false, false);
    if info.int64_value(&[]) != 0 {
        return Err(MathError::SingularKernel { damping });
    }
    Ok(b.unsqueeze(1).cholesky_solve(&factor, false).squeeze_dim(1))
}
