//! What files hold besides, and files that are something else.

use super::{Family, Header, Part, SingleFileError, UNET, is_of_part};

/// Tables of the noise schedule.
const TABLES: [&str; 14] = [
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "denoiser.sigmas",
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

/// What is of CLIP as a whole, beside or in the text encoder: that of a folder does not have it, but for the projection of a
/// second one.
const OF_CLIP: [&str; 5] = [
    "logit_scale",
    "text_projection",
    "text_projection.weight",
    "embeddings.position_ids",
    "text_model.embeddings.position_ids",
];

/// Where else it may stand.
const BARE: [&str; 2] = ["cond_stage_model.", "conditioner.embedders.0."];

/// Whether a tensor is known to belong to no part.
pub(super) fn is_extra(name: &str) -> bool {
    let of_clip = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| OF_CLIP.contains(&rest));
    let mut encoders = Family::ALL.into_iter().flat_map(Family::encoders);
    TABLES.contains(&name)
        || BESIDES.iter().any(|prefix| name.starts_with(prefix))
        || BARE.into_iter().any(of_clip)
        || encoders.any(|encoder| {
            let is_used = encoder.part == Part::TextEncoder2 && name.contains("text_projection");
            of_clip(encoder.prefix) && !is_used
        })
}

/// What names of models begin with that are not supported, `model.diffusion_model.` left out, and what they
/// are.
const UNSUPPORTED: [(&str, &str); 13] = [
    ("conditioner.embedders.0.model.", "the refiner of Stable Diffusion XL"),
    ("conditioner.embedders.0.open_clip.", "Stable Video Diffusion"),
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
    let is_lora = |name: &str| LORA.iter().any(|part| name.contains(part));
    if let Some(name) = names().find(|name| is_lora(name))
        && !names().any(|name| is_of_part(name) && !is_lora(name))
    {
        return Err(SingleFileError::Lora { name: name.to_owned() });
    }
    for (prefix, what) in UNSUPPORTED {
        let of = |name: &&str| name.strip_prefix(UNET).unwrap_or(name).starts_with(prefix);
        if let Some(name) = names().find(of) {
            return Err(SingleFileError::Unsupported { name: name.to_owned(), what });
        }
    }
    let of_xl = |name: &str| Family::Sdxl.encoders().iter().any(|encoder| name.starts_with(encoder.prefix));
    let conditions = |name: &&str| name.strip_prefix(UNET).unwrap_or(name).starts_with("label_emb.");
    if let Some(name) = names().find(conditions).filter(|_| !names().any(of_xl)) {
        let what =
            "a UNet with more conditions than text, as Stable Diffusion XL's, without its two text encoders";
        return Err(SingleFileError::Unsupported { name: name.to_owned(), what });
    }
    let means = names().filter(|name| name.starts_with("model_ema.diffusion_model")).count();
    if means > 0 && begins(UNET).is_none() {
        return Err(SingleFileError::OnlyMeans { count: means });
    }
    if names().any(is_of_part) {
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
