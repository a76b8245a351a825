//! What files hold besides, and files that are something else.

use super::{CLIP, Header, OPEN_CLIP, Part, SingleFileError, TEXT, UNET, VAE};

/// Tables of the noise schedule.
const TABLES: [&str; 13] = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "posterior_variance",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
];

/// What names of other things begin with: means of weights, states of the training, the training of the VAE.
const BESIDES: [&str; 6] = [
    "model_ema.",
    "optimizer_states.",
    "lr_schedulers.",
    "callbacks.",
    "first_stage_model.loss.",
    "first_stage_model.model_ema.",
];

/// What is of CLIP as a whole, below the three places where it may stand: the text encoder of a folder does
/// not have it.
const OF_CLIP: [&str; 5] = [
    "logit_scale",
    "text_projection",
    "text_projection.weight",
    "embeddings.position_ids",
    "text_model.embeddings.position_ids",
];

/// Whether a tensor is known to belong to no part.
pub(super) fn is_extra(name: &str) -> bool {
    let of_clip = [CLIP, OPEN_CLIP, TEXT].iter().find_map(|prefix| name.strip_prefix(prefix));
    TABLES.contains(&name)
        || BESIDES.iter().any(|prefix| name.starts_with(prefix))
        || of_clip.is_some_and(|rest| OF_CLIP.contains(&rest))
}

/// What names of models begin with that are not supported, `model.diffusion_model.` left out, and what they
/// are.
const UNSUPPORTED: [(&str, &str); 14] = [
    ("conditioner.embedders.1.", "Stable Diffusion XL"),
    ("conditioner.", "the refiner of Stable Diffusion XL"),
    ("joint_blocks.", "Stable Diffusion 3"),
    ("text_encoders.", "Stable Diffusion 3 or later"),
    ("double_blocks.", "Flux"),
    ("single_blocks.", "Flux"),
    ("double_stream_blocks.", "HiDream"),
    ("control_model.", "a ControlNet"),
    ("input_hint_block.", "a ControlNet"),
    ("depth_model.", "a model that also takes depth"),
    ("low_scale_model.", "an upscaler"),
    ("noise_augmentor.", "unCLIP"),
    ("label_emb.", "Stable Diffusion XL or another model with more conditions"),
    ("time_embedding.cond_proj.", "a latent consistency model"),
];

/// Parts of names in a LoRA.
const LORA: [&str; 5] = ["lora", "hada_w", "lokr_w", ".oft_", "dora_scale"];

/// What names of a part begin with in a diffusers folder.
const DIFFUSERS: [(&str, Part); 7] = [
    ("down_blocks.", Part::Unet),
    ("mid_block.", Part::Unet),
    ("up_blocks.", Part::Unet),
    ("encoder.down_blocks.", Part::Vae),
    ("decoder.up_blocks.", Part::Vae),
    ("text_model.", Part::TextEncoder),
    ("encoder.layers.", Part::TextEncoder),
];

/// What names of a part begin with in a file that holds only this part.
const ALONE: [(&str, Part); 6] = [
    ("input_blocks.", Part::Unet),
    ("output_blocks.", Part::Unet),
    ("encoder.down.", Part::Vae),
    ("decoder.up.", Part::Vae),
    ("transformer.resblocks.", Part::TextEncoder),
    ("token_embedding.", Part::TextEncoder),
];

/// # Errors
/// A file of which the names say that it is something else.
pub(super) fn refuse(headers: &[Header<'_>]) -> Result<(), SingleFileError> {
    let names = || headers.iter().map(|header| header.name);
    let begins = |with: &str| names().find(|name| name.starts_with(with));
    let of_checkpoint = |name: &str| [UNET, VAE, TEXT].iter().any(|prefix| name.starts_with(prefix));
    let is_lora = |name: &str| LORA.iter().any(|part| name.contains(part));
    if let Some(name) = names().find(|name| is_lora(name))
        && !names().any(|name| of_checkpoint(name) && !is_lora(name))
    {
        return Err(SingleFileError::Lora { name: name.to_owned() });
    }
    for (prefix, what) in UNSUPPORTED {
        let of = |name: &&str| name.strip_prefix(UNET).unwrap_or(name).starts_with(prefix);
        if let Some(name) = names().find(of) {
            return Err(SingleFileError::Unsupported { name: name.to_owned(), what });
        }
    }
    let means = names().filter(|name| name.starts_with("model_ema.diffusion_model")).count();
    if means > 0 && begins(UNET).is_none() {
        return Err(SingleFileError::OnlyMeans { count: means });
    }
    if names().any(of_checkpoint) {
        return Ok(());
    }
    for (prefix, part) in DIFFUSERS {
        if let Some(name) = begins(prefix) {
            return Err(SingleFileError::Diffusers { name: name.to_owned(), part });
        }
    }
    if let Some((_, part)) = ALONE.iter().find(|(prefix, _)| begins(prefix).is_some()) {
        let missing = [Part::Unet, Part::Vae, Part::TextEncoder].into_iter().filter(|other| other != part);
        return Err(SingleFileError::Missing { found: vec![*part], missing: missing.collect() });
    }
    Ok(())
}
