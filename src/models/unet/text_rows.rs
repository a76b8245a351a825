//! Texts as arrays keep them: L rows of D numbers, and for networks like SDXL's a row or more added below them.
//!
//! What is added is, one number after the other: the pooled text (P numbers), six sizes (original height and width, top and left
//! of the crop, target height and width, in pixels), and zeros up to the end of the row. So a text and what belongs to it are
//! one row of one array, which all stages read, hash and cut as one.

use tch::Tensor;

use super::conditioning::Conditioning;

/// How many sizes there are.
pub const SIZES: usize = 6;

/// How many rows of `width` numbers are added to a text for a pooled text of `pooled` numbers.
pub fn added_rows(pooled: i64, width: i64) -> i64 {
    (pooled as usize + SIZES).div_ceil(width.max(1) as usize) as i64
}

/// Conditions as rows [K, L + added, D]; texts alone stay as they are.
pub fn join(conditioning: &Conditioning) -> Tensor {
    let Conditioning { context, pooled, size_ids } = conditioning;
    let (Some(pooled), Some(size_ids)) = (pooled, size_ids) else { return context.shallow_clone() };
    let [count, _, width] = [0, 1, 2].map(|axis| context.size()[axis]);
    let rows = added_rows(pooled.size()[1], width);
    let known = Tensor::cat(&[pooled, &size_ids.to_kind(pooled.kind())], 1); // [K, P + 6]
    let rest = Tensor::zeros([count, rows * width - known.size()[1]], (known.kind(), known.device()));
    let added = Tensor::cat(&[known, rest], 1).view([count, rows, width]);
    Tensor::cat(&[context, &added], 1)
}

/// The conditions in rows [K, L + added, D], for a network that takes a pooled text of `pooled` numbers.
pub fn split(rows: &Tensor, pooled: i64) -> Conditioning {
    let [count, length, width] = [0, 1, 2].map(|axis| rows.size()[axis]);
    let added = added_rows(pooled, width);
    let known = rows.narrow(1, length - added, added).reshape([count, added * width]);
    Conditioning {
        context: rows.narrow(1, 0, length - added).contiguous(),
        pooled: Some(known.narrow(1, 0, pooled).contiguous()),
        size_ids: Some(known.narrow(1, pooled, SIZES as i64).contiguous()),
    }
}

/// Refuses rows [L + added, D] of a text that hold no sizes: another array's numbers would be taken for them without a word.
///
/// # Errors
/// What was found.
pub fn check(rows: &[f32], width: usize, pooled: i64) -> Result<(), String> {
    let (length, added) = (rows.len() / width, added_rows(pooled, width as i64) as usize);
    if length <= added {
        return Err(format!("a text of {length} rows, of which {added} hold the pooled text and the sizes"));
    }
    let (sizes, rest) = rows[(length - added) * width + pooled as usize..].split_at(SIZES);
    let is_size = |size: &f32| *size >= 0.0 && size.fract() == 0.0;
    if !sizes.iter().all(is_size) || rest.iter().any(|number| *number != 0.0) {
        return Err(format!("its last row holds {sizes:?} in place of six sizes in pixels"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    /// Checks the rows [L + added, D] of a text.
    fn checked(rows: &Tensor, pooled: i64) -> Result<(), String> {
        let values: Vec<f32> = Vec::try_from(rows.flatten(0, -1)).unwrap();
        check(&values, rows.size()[1] as usize, pooled)
    }

    #[test]
    fn what_is_joined_is_split_again() {
        for (pooled, width, rows) in [(10, 20, 1), (14, 20, 1), (15, 20, 2), (1280, 1280, 2), (1280, 2048, 1)]
        {
            assert_eq!(added_rows(pooled, width), rows);
            let sizes = Tensor::from_slice(&[1023f32, 768.0, 0.0, 12.0, 512.0, 512.0]).repeat([3, 1]);
            let known = Conditioning {
                context: random(&[3, 4, width]),
                pooled: Some(random(&[3, pooled])),
                size_ids: Some(sizes),
            };
            let joined = join(&known);
            assert_eq!(joined.size(), [3, 4 + rows, width]);
            let found = split(&joined, pooled);
            assert_eq!(found.context, known.context);
            assert_eq!((found.pooled, found.size_ids), (known.pooled, known.size_ids));
            assert_eq!(checked(&joined.get(1), pooled), Ok(()));
        }
    }

    #[test]
    fn a_dropped_caption_leaves_the_sizes() {
        let of = |number: f64| {
            let full = |shape: &[i64]| Tensor::full(shape, number, (Kind::Float, Device::Cpu));
            Conditioning {
                context: full(&[2, 3, 4]),
                pooled: Some(full(&[2, 5])),
                size_ids: Some(full(&[2, 6])),
            }
        };
        let (own, empty) = (of(1.0), of(0.0));
        own.set_text(1, &empty);
        let sums = |tensor: &Tensor| [0, 1].map(|row| tensor.get(row).sum(Kind::Float).double_value(&[]));
        assert_eq!(sums(&own.context), [12.0, 0.0]);
        assert_eq!(own.pooled.as_ref().map(sums), Some([5.0, 0.0]));
        assert_eq!(own.size_ids.as_ref().map(sums), Some([6.0, 6.0]));
    }

    #[test]
    fn rows_of_texts_alone_are_refused() {
        let error = checked(&random(&[5, 20]), 10).unwrap_err();
        assert!(error.starts_with("its last row holds ["), "{error}");
        let short = checked(&random(&[1, 20]), 10).unwrap_err();
        assert_eq!(short, "a text of 1 rows, of which 1 hold the pooled text and the sizes");
        // What follows the sizes counts too.
        let rows = join(&Conditioning {
            context: random(&[1, 2, 20]),
            pooled: Some(random(&[1, 10])),
            size_ids: Some(Tensor::ones([1, 6], (Kind::Float, Device::Cpu))),
        });
        assert_eq!(checked(&rows.get(0), 10), Ok(()));
        let _ = rows.get(0).get(2).get(19).fill_(0.5);
        assert!(checked(&rows.get(0), 10).unwrap_err().ends_with("in place of six sizes in pixels"));
    }
}
