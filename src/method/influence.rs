//! From two loss passes to a ranking: whose loss rose most when the image was unlearned.

use attrflow_engine::choice;

use super::error::MathError;

choice! {
    /// What an image's score is of its own influence and that of its mirror image.
    pub enum Flips {
        /// The larger one, as published.
        Max = "max",
        /// The mean of both.
        Mean = "mean",
    }
}

/// The rise in loss of every latent: tau = L(z; theta without the query) - L(z; theta).
///
/// # Errors
/// The passes differ in length, or a difference is not finite.
pub fn influence(unlearned: &[f32], pretrained: &[f32]) -> Result<Vec<f32>, MathError> {
    if unlearned.len() != pretrained.len() {
        let expected = format!("{}, as the pretrained loss", pretrained.len());
        return Err(MathError::Rows { what: "the unlearned loss", found: unlearned.len(), expected });
    }
    let rise: Vec<f32> = unlearned.iter().zip(pretrained).map(|(after, before)| after - before).collect();
    finite(&rise)?;
    Ok(rise)
}

/// Per image its value and its mirror image's as one: [2N] (or [N], without mirror images) to [N].
///
/// The larger of two values with errors is too large on average: of two equal values with independent normal errors by
/// 1/sqrt(pi) = 0.56 standard errors of one. The mean has no such bias.
///
/// # Errors
/// The length is neither `images` nor twice that.
pub fn per_image(influence: &[f32], images: usize, flips: Flips) -> Result<Vec<f32>, MathError> {
    match influence.len() {
        n if n == images => Ok(influence.to_vec()),
        n if n == 2 * images => {
            let (plain, flipped) = influence.split_at(images);
            let of = |(&a, &b): (&f32, &f32)| match flips {
                Flips::Max => a.max(b),
                Flips::Mean => (f64::midpoint(a.into(), b.into())) as f32,
            };
            Ok(plain.iter().zip(flipped).map(of).collect())
        }
        found => {
            let expected = format!("{images} or {}", 2 * images);
            Err(MathError::Rows { what: "the influence", found, expected })
        }
    }
}

/// Image indices by falling influence; equal ones keep their order, so that a ranking can be reproduced.
///
/// # Errors
/// A value is not finite.
pub fn rank(influence: &[f32]) -> Result<Vec<i64>, MathError> {
    finite(influence)?;
    let mut order: Vec<usize> = (0..influence.len()).collect();
    // total_cmp would put 0.0 before -0.0, which are equal.
    order.sort_by(|&a, &b| influence[b].partial_cmp(&influence[a]).expect("finite numbers are ordered"));
    Ok(order.into_iter().map(|index| index as i64).collect())
}

/// The same with the images first whose influence is exact; the others' are estimates.
///
/// # Errors
/// As [`rank`].
pub fn rank_exact_first(influence: &[f32], exact: &[bool]) -> Result<Vec<i64>, MathError> {
    let (mut first, last): (Vec<i64>, Vec<i64>) =
        rank(influence)?.into_iter().partition(|&index| exact[index as usize]);
    first.extend(last);
    Ok(first)
}

fn finite(values: &[f32]) -> Result<(), MathError> {
    match values.iter().position(|value| !value.is_finite()) {
        Some(image) => Err(MathError::InfluenceNotFinite { image, value: values[image] }),
        None => Ok(()),
    }
}
