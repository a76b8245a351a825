//! Convolutions of 3 x 3 on images of 2 x 2 as one product: each of the four outputs sees all four inputs, so that of the 36 products
//! of a pair of channels 16 are with numbers of the image and 20 with the border's zeros.

use std::cell::RefCell;

use tch::Tensor;

use super::lies_together;

/// Rows below which it is not worth it: the matrix has more numbers than the filters, and would be read for too few of them.
const FEWEST: i64 = 64;

/// A convolution's filters as a matrix, made when it is first needed.
#[derive(Default)]
pub struct Matrix(RefCell<Option<(u64, Tensor)>>);

impl Matrix {
    /// Whether it pays for images [B, I, H, W] with filters [O, I, 3, 3].
    pub fn serves(x: &Tensor, weight: &Tensor) -> bool {
        let many =
            x.size4().is_ok_and(|(rows, _, height, width)| rows >= FEWEST && [height, width] == [2, 2]);
        many && weight.size()[2..] == [3, 3] && lies_together(x) && !weight.requires_grad()
    }

    /// The convolution of x [B, I, 2, 2] with `weight` [O, I, 3, 3], a border of zeros and a bias [O]: [B, O, 2, 2].
    ///
    /// `version` is another number whenever the weight has changed. `None` for what is not served.
    pub fn convolve(&self, x: &Tensor, weight: &Tensor, bias: &Tensor, version: u64) -> Option<Tensor> {
        if !Matrix::serves(x, weight) || bias.requires_grad() {
            return None;
        }
        let (rows, inputs, ..) = x.size4().ok()?;
        let mut kept = self.0.borrow_mut();
        let matrix = match &*kept {
            Some((known, matrix)) if *known == version => matrix,
            _ => &kept.insert((version, tch::no_grad(|| matrix(weight)))).1,
        };
        let places = x.permute([0, 2, 3, 1]).reshape([rows, 4 * inputs]);
        let y = places.linear(matrix, Some(&bias.repeat([4]))); // [B, 4O]
        Some(y.view([rows, 2, 2, -1]).permute([0, 3, 1, 2]))
    }
}

/// Filters [O, I, 3, 3] as a matrix from the inputs of all places to their outputs: [4O, 4I].
fn matrix(weight: &Tensor) -> Tensor {
    let [outputs, inputs] = [weight.size()[0], weight.size()[1]];
    let places = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let tap = |(y, x): (i64, i64), (from_y, from_x): (i64, i64)| {
        weight.select(3, 1 + from_x - x).select(2, 1 + from_y - y) // [O, I]
    };
    let blocks: Vec<Tensor> = places.iter().flat_map(|&to| places.map(|from| tap(to, from))).collect();
    let blocks = Tensor::stack(&blocks, 0).view([4, 4, outputs, inputs]); // by output's and input's place
    blocks.permute([0, 2, 1, 3]).reshape([4 * outputs, 4 * inputs])
}
