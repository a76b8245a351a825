use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::*;

pub(in crate::io) mod published;
mod sdxl;

const CLIP: &str = "cond_stage_model.transformer.";
const OPEN_CLIP: &str = "cond_stage_model.model.";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/single_file").join(name)
}

/// Names and shapes, which tests change.
type Tensors = BTreeMap<String, Vec<usize>>;

fn plan_of(tensors: &Tensors) -> Result<Parts, SingleFileError> {
    plan(&tensors.iter().map(|(name, shape)| Header { name, shape }).collect::<Vec<_>>())
}

fn sd1() -> Tensors {
    let bytes = fs_err::read(golden("sd1.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, tensor)| (name.to_owned(), tensor.shape().to_vec())).collect()
}

/// The same, with OpenCLIP of this depth and as many columns as CLIP has.
fn sd2(layers: usize) -> Tensors {
    const WIDTH: usize = 8;
    let mut tensors = sd1();
    tensors.retain(|name, _| !name.starts_with(CLIP));
    let mut add =
        |name: &str, shape: &[usize]| drop(tensors.insert(format!("{OPEN_CLIP}{name}"), shape.to_vec()));
    add("token_embedding.weight", &[50, WIDTH]);
    add("positional_embedding", &[16, WIDTH]);
    add("text_projection", &[WIDTH, 5]);
    add("logit_scale", &[]);
    add("ln_final.weight", &[WIDTH]);
    add("ln_final.bias", &[WIDTH]);
    for layer in 0..layers {
        let mut add =
            |name: &str, shape: &[usize]| add(&format!("transformer.resblocks.{layer}.{name}"), shape);
        add("attn.in_proj_weight", &[3 * WIDTH, WIDTH]);
        add("attn.in_proj_bias", &[3 * WIDTH]);
        for (module, rows, columns) in [
            ("attn.out_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH),
            ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ] {
            add(&format!("{module}.weight"), &[rows, columns]);
            add(&format!("{module}.bias"), &[rows]);
        }
        for norm in ["ln_1", "ln_2"] {
            add(&format!("{norm}.weight"), &[WIDTH]);
            add(&format!("{norm}.bias"), &[WIDTH]);
        }
    }
    tensors
}

/// Only the tensors whose names begin so.
fn only(tensors: Tensors, prefixes: &[&str]) -> Tensors {
    tensors.into_iter().filter(|(name, _)| prefixes.iter().any(|prefix| name.starts_with(prefix))).collect()
}

fn named(names: &[&str]) -> Tensors {
    names.iter().map(|name| ((*name).to_owned(), vec![2, 2])).collect()
}

fn message(tensors: &Tensors) -> String {
    plan_of(tensors).unwrap_err().to_string()
}

/// Compares the tensors of a part with those in a folder, bit for bit.
fn assert_same(file: &SafeTensors<'_>, pieces: &BTreeMap<String, Piece>, folder: &str) {
    let bytes = fs_err::read(golden(folder)).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let names: BTreeSet<&str> = expected.names().into_iter().collect();
    assert_eq!(pieces.keys().map(String::as_str).collect::<BTreeSet<_>>(), names, "{folder}");
    for (name, piece) in pieces {
        let (source, expected) = (file.tensor(&piece.source).unwrap(), expected.tensor(name).unwrap());
        assert_eq!((&piece.shape[..], source.dtype()), (expected.shape(), expected.dtype()), "{name}");
        let mut data = source.data().to_vec();
        if let Some(rows) = &piece.rows {
            let row = data.len() / source.shape()[0];
            data = data[rows.start * row..rows.end * row].to_vec();
        }
        if piece.transposed {
            let [rows, columns] = piece.shape[..] else { panic!("{name}") };
            assert_eq!((source.shape(), &piece.rows), (&[columns, rows][..], &None), "{name}");
            let size = data.len() / rows / columns;
            let at = |row, column| data[(column * rows + row) * size..][..size].to_vec();
            let at = &at;
            data = (0..rows).flat_map(|row| (0..columns).flat_map(move |column| at(row, column))).collect();
        }
        assert!(data == expected.data(), "{name}");
    }
}

#[test]
fn a_checkpoint_gives_the_folders_tensors_bit_for_bit() {
    let bytes = fs_err::read(golden("sd1.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let parts = plan_of(&sd1()).unwrap();
    assert_eq!((parts.family, &parts.text_encoder_2), (Family::Sd1, &BTreeMap::new()));
    assert_same(&file, &parts.unet, "diffusers/unet/diffusion_pytorch_model.safetensors");
    assert_same(&file, &parts.vae, "diffusers/vae/diffusion_pytorch_model.safetensors");
    assert_same(&file, &parts.text_encoder, "diffusers/text_encoder/model.safetensors");
    // Two tables, the positions, and three means.
    assert_eq!(parts.ignored, 6);
    assert_eq!(parts.unet.len() + parts.vae.len() + parts.text_encoder.len() + parts.ignored, file.len());
}

#[test]
fn the_number_of_blocks_and_layers_is_read_off_the_names() {
    for (blocks, layers) in [(1, 1), (1, 2), (2, 1), (3, 2), (4, 2), (4, 3)] {
        let (places, mut pairs) = (layers + 1, Vec::new());
        let resnet = |place: String, target: String| {
            (format!("{place}.0.in_layers.2.weight"), format!("{target}.conv1.weight"))
        };
        for block in 0..blocks {
            let (input, output) = (1 + block * places, block * places);
            pairs.extend((0..layers).map(|layer| {
                resnet(
                    format!("input_blocks.{}", input + layer),
                    format!("down_blocks.{block}.resnets.{layer}"),
                )
            }));
            pairs.extend((0..places).map(|layer| {
                resnet(
                    format!("output_blocks.{}", output + layer),
                    format!("up_blocks.{block}.resnets.{layer}"),
                )
            }));
            if block + 1 < blocks {
                let changed = [
                    (format!("input_blocks.{}.0.op.bias", input + layers), "down", "downsamplers"),
                    (format!("output_blocks.{}.2.conv.bias", output + layers), "up", "upsamplers"),
                ];
                pairs.extend(
                    changed
                        .map(|(name, way, kind)| (name, format!("{way}_blocks.{block}.{kind}.0.conv.bias"))),
                );
            }
        }
        pairs.push(("input_blocks.0.0.weight".to_owned(), "conv_in.weight".to_owned()));
        let tensors: Vec<_> = pairs.iter().map(|(name, _)| Header { name, shape: &[] }).collect();
        let names = unet::Names::of(&tensors).unwrap();
        for (name, target) in &pairs {
            assert_eq!(names.find(name), Some(Use::Whole(target.clone())), "{blocks} of {layers}: {name}");
        }
    }
}

#[test]
fn blocks_that_do_not_fit_together_are_refused() {
    let mut tensors = sd1();
    tensors.retain(|name, _| !name.contains("input_blocks.4.0.op"));
    assert_eq!(
        message(&tensors),
        "the UNet has gaps in its `input_blocks` with `op` in [2, 6] and 8 `output_blocks` with `conv` in \
         [1, 3, 5], expected blocks of as many layers each"
    );
    let mut tensors = sd1();
    tensors.insert("first_stage_model.decoder.up.9.block.0.conv1.weight".to_owned(), vec![2]);
    assert_eq!(
        message(&tensors),
        "the VAE has 4 blocks `encoder.down` and gaps in blocks `decoder.up`, expected as many of both, \
         and no gaps"
    );
    let mut tensors = sd1();
    tensors.retain(|name, _| !name.contains("decoder.up.3."));
    assert_eq!(
        message(&tensors),
        "the VAE has 4 blocks `encoder.down` and 3 blocks `decoder.up`, expected as many of both, and no gaps"
    );
    let mut tensors = sd1();
    tensors.retain(|name, _| !name.contains("encoder.layers.0."));
    assert_eq!(
        message(&tensors),
        "the text encoder has gaps in the numbers of its layers, expected all from 0 on"
    );
    assert_eq!(
        message(&sd2(25)),
        "the text encoder has 25 layers, expected 24 or fewer, as OpenCLIP ViT-H/14 has"
    );
}

#[test]
fn openclip_is_split_and_loses_its_layer_23() {
    for (layers, kept, unused) in [(24, 23, 12), (23, 23, 0), (3, 3, 0)] {
        let parts = plan_of(&sd2(layers)).unwrap();
        assert_eq!(parts.family, Family::Sd2);
        assert_eq!(parts.text_encoder.len(), kept * 16 + 4, "{layers}");
        // Of the schedule two, of means three, and the projection and scale.
        assert_eq!(parts.ignored, 5 + 2 + unused, "{layers}");
        assert!(
            parts.text_encoder.contains_key(&format!("text_model.encoder.layers.{}.mlp.fc1.bias", kept - 1))
        );
        assert!(!parts.text_encoder.contains_key("text_model.encoder.layers.23.mlp.fc1.bias"));
    }
    let text = plan_of(&sd2(3)).unwrap().text_encoder;
    let piece = |source: &str, rows: Option<Range<usize>>, shape: &[usize]| Piece {
        source: format!("{OPEN_CLIP}{source}"),
        rows,
        transposed: false,
        shape: shape.to_vec(),
    };
    for (name, expected) in [
        ("embeddings.token_embedding.weight", piece("token_embedding.weight", None, &[50, 8])),
        ("embeddings.position_embedding.weight", piece("positional_embedding", None, &[16, 8])),
        ("final_layer_norm.bias", piece("ln_final.bias", None, &[8])),
        ("encoder.layers.2.layer_norm1.weight", piece("transformer.resblocks.2.ln_1.weight", None, &[8])),
        ("encoder.layers.2.layer_norm2.bias", piece("transformer.resblocks.2.ln_2.bias", None, &[8])),
        ("encoder.layers.0.mlp.fc1.weight", piece("transformer.resblocks.0.mlp.c_fc.weight", None, &[32, 8])),
        (
            "encoder.layers.0.mlp.fc2.weight",
            piece("transformer.resblocks.0.mlp.c_proj.weight", None, &[8, 32]),
        ),
        (
            "encoder.layers.1.self_attn.out_proj.weight",
            piece("transformer.resblocks.1.attn.out_proj.weight", None, &[8, 8]),
        ),
    ] {
        assert_eq!(text[&format!("text_model.{name}")], expected, "{name}");
    }
    for (map, rows) in [("q", 0..8), ("k", 8..16), ("v", 16..24)] {
        let name = format!("text_model.encoder.layers.1.self_attn.{map}_proj");
        let fused = "transformer.resblocks.1.attn.in_proj_";
        assert_eq!(
            text[&format!("{name}.weight")],
            piece(&format!("{fused}weight"), Some(rows.clone()), &[8, 8])
        );
        assert_eq!(text[&format!("{name}.bias")], piece(&format!("{fused}bias"), Some(rows), &[8]));
    }
}

#[test]
fn other_ways_to_write_a_checkpoint_give_the_same_parts() {
    let rename = |from: &str, to: &str| -> Tensors {
        sd1().into_iter().map(|(name, shape)| (name.replace(from, to), shape)).collect()
    };
    let names = |parts: &Parts| {
        let keys = [&parts.unet, &parts.vae, &parts.text_encoder]
            .map(|part| part.keys().cloned().collect::<Vec<_>>());
        (keys, parts.ignored)
    };
    let expected = names(&plan_of(&sd1()).unwrap());
    for (from, to) in [
        ("transformer.text_model.", "transformer."),
        (".attn_1.q.", ".attn_1.to_q."),
        (".attn_1.proj_out.", ".attn_1.to_out.0."),
    ] {
        assert_eq!(names(&plan_of(&rename(from, to)).unwrap()), expected, "{from}");
    }
    let attention = "first_stage_model.encoder.mid.attn_1.q.weight";
    for shape in [vec![4, 4], vec![4, 4, 1], vec![4, 4, 1, 1]] {
        let mut tensors = sd1();
        tensors.insert(attention.to_owned(), shape);
        let piece = &plan_of(&tensors).unwrap().vae["encoder.mid_block.attentions.0.to_q.weight"];
        assert_eq!((piece.source.as_str(), &piece.shape[..]), (attention, &[4, 4][..]));
    }
}

#[test]
fn what_a_file_is_instead_is_named() {
    let supported = "which is not supported: expected a checkpoint of Stable Diffusion 1, 2 or XL";
    for (name, what) in [
        ("conditioner.embedders.0.model.ln_final.weight", "the refiner of Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("conditioner.embedders.0.open_clip.model.ln_final.weight", "Stable Video Diffusion"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("depth_model.model.pretrained.cls_token", "a model that also takes depth"),
        (
            "model.diffusion_model.label_emb.0.0.weight",
            "a UNet with more conditions than text, as Stable Diffusion XL's, without its two text encoders",
        ),
    ] {
        let mut tensors = sd1();
        tensors.insert(name.to_owned(), vec![2, 2]);
        assert_eq!(message(&tensors), format!("this is {what} (`{name}`), {supported}"));
    }
    for (channels, what) in
        [(9, "an inpainting model"), (5, "a model that also takes depth"), (6, "a model of another kind")]
    {
        let mut tensors = sd1();
        tensors.insert(format!("{UNET}input_blocks.0.0.weight"), vec![2, channels, 3, 3]);
        assert_eq!(
            message(&tensors),
            format!(
                "this is {what}: its UNet takes {channels} channels and its VAE's latents have 4, \
                 expected a model that makes images from text alone, with as many"
            )
        );
    }
    for (name, part) in [
        ("down_blocks.0.resnets.0.conv1.weight", "UNet"),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "VAE"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "text encoder"),
    ] {
        let start = format!("this is the {part} of a diffusers folder (`{name}`), expected a checkpoint");
        assert!(message(&named(&[name])).starts_with(&start), "{name}");
    }
    for name in [
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
        "unet.mid_block.attentions.0.proj_in.lora_A.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_k_lora.up.weight",
    ] {
        let expected = format!("this is a LoRA (`{name}`), expected a checkpoint: give it as `lora`");
        assert_eq!(message(&named(&[name])), expected);
    }
    assert_eq!(plan_of(&named(&["weight", "betas"])), Err(SingleFileError::None));
    assert_eq!(plan_of(&Tensors::new()), Err(SingleFileError::None));
}

#[test]
fn a_part_that_is_missing_is_named() {
    let only_this = |prefixes: &[&str]| message(&only(sd1(), prefixes));
    let whole = "a whole checkpoint is expected, missing";
    assert_eq!(only_this(&[UNET]), format!("this is only a UNet: {whole} VAE and text encoder"));
    assert_eq!(only_this(&[VAE, "betas"]), format!("this is only a VAE: {whole} UNet and text encoder"));
    assert_eq!(only_this(&[UNET, CLIP]), format!("this is only a UNet and text encoder: {whole} VAE"));
    assert_eq!(
        message(&named(&["encoder.down.0.block.0.conv1.weight"])),
        format!("this is only a VAE: {whole} UNet and text encoder")
    );
    assert_eq!(
        only_this(&["model_ema.", VAE, CLIP]),
        "the UNet's weights are here only as their means over training (1 tensors `model_ema.…`), \
         expected the weights (`model.diffusion_model.…`)"
    );
    for name in ["input_blocks.0.0.weight", "post_quant_conv.weight", "token_embedding.weight"] {
        let mut tensors = sd1();
        tensors.retain(|other, _| !other.ends_with(name));
        assert!(message(&tensors).contains(name), "{}", message(&tensors));
    }
}

#[test]
fn nothing_is_left_out_without_a_word() {
    let mut all = sd1();
    for name in [
        "model.diffusion_model.input_blocks.1.0.in_layers.1.weight",
        "model.diffusion_model.input_blocks.01.0.in_layers.0.weight",
        "model.diffusion_model.output_blocks.0.0.op.weight",
        "first_stage_model.encoder.up.0.block.0.conv1.weight",
        "first_stage_model.decoder.up.18446744073709551615.block.0.conv1.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.scale",
        "cond_stage_model.roberta.embeddings.weight",
        "v_pred",
    ] {
        let mut tensors = sd1();
        for tensors in [&mut tensors, &mut all] {
            tensors.insert(name.to_owned(), vec![2, 2]);
        }
        let expected = "expected those of Stable Diffusion 1, 2 or XL alone";
        assert_eq!(message(&tensors), format!("unknown names (1): {name}; {expected}"));
    }
    let expected = "unknown names (8): cond_stage_model.roberta.embeddings.weight, ";
    assert!(
        message(&all).starts_with(expected) && message(&all).contains(" and 4 more; "),
        "{}",
        message(&all)
    );
}

#[test]
fn shapes_and_widths_have_to_fit() {
    let changed = |mut tensors: Tensors, name: &str, shape: &[usize]| {
        assert!(tensors.insert(name.to_owned(), shape.to_vec()).is_some());
        message(&tensors)
    };
    let cross = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight";
    assert_eq!(
        changed(sd1(), cross, &[6, 12]),
        format!("`{cross}` has 12 columns, expected 8 as the text encoder's embeddings have")
    );
    let attention = "first_stage_model.encoder.mid.attn_1.q.weight";
    assert_eq!(
        changed(sd1(), attention, &[4, 4, 3, 3]),
        format!("`{attention}` is [4, 4, 3, 3], expected a matrix, or a convolution of kernel size 1")
    );
    let fused = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias";
    assert_eq!(
        changed(sd2(3), fused, &[25]),
        format!("`{fused}` is [25], expected the rows of queries, keys and values, as many of each")
    );
}

#[test]
fn one_tensor_is_not_there_twice() {
    let mut tensors = sd1();
    let name = "final_layer_norm.bias";
    tensors.insert(format!("{CLIP}{name}"), vec![8]);
    assert_eq!(
        message(&tensors),
        format!(
            "`{CLIP}{name}` and `{CLIP}text_model.{name}` are both `text_model.{name}` of the text encoder"
        )
    );
    tensors.insert(format!("{OPEN_CLIP}ln_final.bias"), vec![8]);
    assert_eq!(
        message(&tensors),
        format!(
            "names of the text encoders of two families (`{CLIP}…` and `{OPEN_CLIP}…`): expected those of one"
        )
    );
}
