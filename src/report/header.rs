//! What the head of a page says of a run.

use super::stages::ended;
use super::words::{seconds, time};
use crate::results::Run;

/// Names and values: what ran, when, on what.
pub(super) fn facts(run: &Run<'_>) -> Vec<(&'static str, String)> {
    let manifest = run.manifest;
    let mut facts = vec![
        ("Outcome", ended(run).to_owned()),
        ("Started", time(&manifest.started)),
        ("Duration", seconds(manifest.seconds)),
        ("attrflow", manifest.attrflow.version.clone()),
    ];
    let digest = |kind: &str, port: &str| {
        let recipe = run.of_kind(kind).find_map(|record| record.recipe.as_ref())?;
        recipe.inputs.get(port).map(|digest| digest.short())
    };
    let named = [
        ("Digest of the UNet", digest("influence", "unet").or_else(|| digest("pretrain-loss", "unet"))),
        ("Digest of the LoRA", digest("influence", "lora")),
        ("Digest of the images", digest("latents", "images")),
        ("Digest of the captions", digest("latents", "captions")),
    ];
    facts.extend(named.into_iter().filter_map(|(name, digest)| Some((name, digest?))));
    facts
}
