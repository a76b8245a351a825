//! Stable Diffusion XL.

use super::*;

const FIRST: &str = "conditioner.embedders.0.transformer.";
const SECOND: &str = "conditioner.embedders.1.model.";

fn sdxl() -> Tensors {
    let bytes = fs_err::read(golden("sdxl.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec())).collect()
}

/// The file without the tensors whose names begin so.
fn without(prefixes: &[&str]) -> Tensors {
    let mut tensors = sdxl();
    tensors.retain(|name, _| !prefixes.iter().any(|prefix| name.starts_with(prefix)));
    tensors
}

#[test]
fn it_gives_the_four_folders_tensors_bit_for_bit() {
    let bytes = fs_err::read(golden("sdxl.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let parts = plan_of(&sdxl()).unwrap();
    assert_eq!(parts.family, Family::Sdxl);
    assert_same(&file, &parts.unet, "sdxl/unet/diffusion_pytorch_model.safetensors");
    assert_same(&file, &parts.vae, "sdxl/vae/diffusion_pytorch_model.safetensors");
    assert_same(&file, &parts.text_encoder, "sdxl/text_encoder/model.safetensors");
    assert_same(&file, &parts.text_encoder_2, "sdxl/text_encoder_2/model.safetensors");
    // Noise levels, positions and the scale.
    assert_eq!(parts.ignored, 3);
    let transposed: Vec<&str> = [&parts.unet, &parts.vae, &parts.text_encoder, &parts.text_encoder_2]
        .into_iter()
        .flatten()
        .filter_map(|(_, piece)| piece.transposed.then_some(piece.source.as_str()))
        .collect();
    assert_eq!(transposed, ["conditioner.embedders.1.model.text_projection"]);
}

#[test]
fn a_part_that_is_missing_is_named() {
    let whole = "a whole checkpoint is expected, missing";
    assert_eq!(
        message(&without(&[SECOND])),
        format!("this is only a UNet, VAE and text encoder: {whole} second text encoder")
    );
    assert_eq!(
        message(&without(&[FIRST, VAE])),
        format!("this is only a UNet and second text encoder: {whole} VAE and text encoder")
    );
    let what =
        "a UNet with more conditions than text, as Stable Diffusion XL's, without its two text encoders";
    assert!(message(&without(&["conditioner."])).starts_with(&format!("this is {what} (`{UNET}label_emb.")));
    for (name, part) in [("label_emb.0.0.weight", "UNet"), ("text_projection", "second text encoder")] {
        let mut tensors = sdxl();
        tensors.retain(|other, _| !other.ends_with(name));
        assert_eq!(message(&tensors), format!("the {part} has no `{name}`"));
    }
    let mut tensors = sdxl();
    tensors.retain(|name, _| !name.contains("resblocks.1."));
    assert_eq!(
        message(&tensors),
        "the second text encoder has gaps in the numbers of its layers, expected all from 0 on"
    );
}

#[test]
fn shapes_and_widths_have_to_fit() {
    let changed = |name: &str, shape: &[usize]| {
        let mut tensors = sdxl();
        assert!(tensors.insert(name.to_owned(), shape.to_vec()).is_some());
        message(&tensors)
    };
    let cross = format!("{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight");
    assert_eq!(
        changed(&cross, &[4, 8]),
        format!("`{cross}` has 8 columns, expected 14 as the embeddings of both text encoders have together")
    );
    let projection = format!("{SECOND}text_projection");
    assert_eq!(
        changed(&projection, &[4, 6]),
        format!("`{projection}` has 4 columns, expected 6 as its own embeddings have")
    );
    assert_eq!(changed(&projection, &[6]), format!("`{projection}` is [6], expected a matrix"));
    let inpainting = changed(&format!("{UNET}input_blocks.0.0.weight"), &[2, 9, 3, 3]);
    assert!(inpainting.starts_with("this is an inpainting model: its UNet takes 9 channels"), "{inpainting}");
}

#[test]
fn other_models_with_its_names_are_refused() {
    let added = |name: &str| {
        let mut tensors = sdxl();
        tensors.insert(name.to_owned(), vec![6, 4]);
        message(&tensors)
    };
    let refiner = "conditioner.embedders.0.model.ln_final.weight";
    assert!(added(refiner).starts_with(&format!("this is the refiner of Stable Diffusion XL (`{refiner}`)")));
    assert_eq!(
        added(&format!("{OPEN_CLIP}ln_final.weight")),
        format!(
            "names of the text encoders of two families (`{OPEN_CLIP}…` and `{FIRST}…`): expected those of one"
        )
    );
    // Which way round the first is cannot be seen, and the others change what the network predicts.
    for name in [format!("{SECOND}text_projection.weight"), "v_pred".to_owned(), "edm_mean".to_owned()] {
        assert!(added(&name).starts_with(&format!("unknown names (1): {name}; ")), "{}", added(&name));
    }
    for name in
        ["conditioner.embedders.0.logit_scale", "conditioner.embedders.0.transformer.text_projection.weight"]
    {
        let mut tensors = sdxl();
        tensors.insert(name.to_owned(), Vec::new());
        assert_eq!(plan_of(&tensors).unwrap().ignored, 4, "{name}");
    }
}
