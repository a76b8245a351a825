//! Whether the step that unlearned a query fits the data set whose losses it changes.

use std::path::Path;

use super::fisher::IMAGES;
use super::shared::{arrays, tensors};
use super::unlearn::{SIZE, size};
use attrflow_engine::kind::Inputs;

/// What is accepted of a step that does not fit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accepted {
    /// It was divided by another number of images.
    pub other_images: bool,
    /// The query's latent has another size.
    pub other_size: bool,
}

impl Accepted {
    /// Refuses a file of weights whose step does not fit the data set on `latents` and `text_embeddings`, unless that is wanted.
    ///
    /// # Errors
    /// The file, what was found and what was expected.
    pub fn check(self, inputs: &Inputs, weights: &Path) -> anyhow::Result<()> {
        if let Some((counted, here)) = other_images(inputs, weights)?.filter(|_| !self.other_images) {
            anyhow::bail!(
                "{}: its step was divided by {counted} images, expected {here}, the rows of {}: with {here} the step would be \
                 {:.3} times as large; set `other_images = true` to accept it",
                weights.display(),
                inputs.path("text_embeddings").display(),
                counted as f64 / here as f64
            );
        }
        if let Some((query, here)) = other_size(inputs, weights)?.filter(|_| !self.other_size) {
            anyhow::bail!(
                "{}: the latent of its query is {query}, expected {here}, as in {}: encode the query's image with the same \
                 `pixels`, or set `other_size = true` to accept it",
                weights.display(),
                inputs.path("latents").display(),
            );
        }
        Ok(())
    }
}

/// Says by how much a step that was accepted does not fit.
pub(super) fn warn(inputs: &Inputs, weights: &Path) -> anyhow::Result<()> {
    if let Some((counted, here)) = other_images(inputs, weights)? {
        let factor = counted as f64 / here as f64;
        tracing::warn!(
            "the step was divided by {counted} images, this data set has {here}: with {here} it would be {factor:.3} times as \
             large"
        );
    }
    if let Some((query, here)) = other_size(inputs, weights)? {
        tracing::warn!("the latent of the query is {query}, those of this data set are {here}");
    }
    Ok(())
}

/// Height and width of the query's latent and of the data set's, if they differ.
fn other_size(inputs: &Inputs, weights: &Path) -> anyhow::Result<Option<(String, String)>> {
    let Some(query) = tensors::metadata(weights, SIZE)? else { return Ok(None) };
    let here = size(&arrays::open(inputs)?.0);
    Ok((query != here).then_some((query, here)))
}

/// The number of images that the step of the weights was divided by and that of the data set, if they differ.
fn other_images(inputs: &Inputs, weights: &Path) -> anyhow::Result<Option<(usize, usize)>> {
    let counted = tensors::number::<usize>(weights, IMAGES)?;
    let here = arrays::count_images(inputs)?;
    Ok(counted.filter(|counted| *counted != here).map(|counted| (counted, here)))
}
