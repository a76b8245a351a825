"""Golden files of tiny networks in all packings, and names of whole ones, by diffusers: tests/golden/single_file/.

    python tests/golden/make_single_file.py     (packages: tests/golden/requirements.txt)

A UNet, VAE and text encoder of Stable Diffusion 1's layout (four blocks, each of one layer), with random weights:
- `diffusers/`: as folders `unet`, `vae`, `text_encoder`;
- `sd1.safetensors`: as one file with the names of the original code (LDM), with some entries real files have besides;
- `sd1.ckpt`: the same by `torch.save`, all in half precision;
- `sharded`, `fp16`, `sharded_fp16`: the UNet alone, in several files, as half-precision variant, as both.
All weights are half-precision numbers, so every packing holds exactly the same.

Of SDXL's layout (three blocks, of which the first has no attention, and two text encoders), in half precision:
- `sdxl/`: as folders `unet`, `vae`, `text_encoder`, `text_encoder_2`;
- `sdxl.safetensors`: as one file, which `StableDiffusionXLPipeline.from_single_file` has to read.

`names/`: of Stable Diffusion 1, 2 and XL as they were published, gzipped, a line for each tensor of the folders: its name
in the file, its shape there, its part, its name there, its shape there. Of a tensor that is of no part the last three are `-`.

The names in LDM are by the rules below; diffusers' own converters, from LDM back, have to give every tensor.
"""

import gzip
import json
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from make_vae_clip import DEMO, random_, save_config

OUT = Path(__file__).parent / "single_file"
torch.set_num_threads(1)

LEVELS, LAYERS = 4, 1
UNET = dict(
    sample_size=8,
    block_out_channels=(2, 4, 6, 6),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=LAYERS,
    norm_num_groups=2,
    attention_head_dim=2,
    cross_attention_dim=8,
)
VAE = dict(
    sample_size=64,
    block_out_channels=(2, 4, 4, 4),
    down_block_types=("DownEncoderBlock2D",) * LEVELS,
    up_block_types=("UpDecoderBlock2D",) * LEVELS,
    layers_per_block=LAYERS,
    norm_num_groups=2,
    latent_channels=4,
)
TEXT = dict(
    vocab_size=50, hidden_size=8, intermediate_size=16, projection_dim=8, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
)

XL_DOWN = ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2
XL_UP = ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",)
XL_UNET = dict(
    sample_size=8,
    block_out_channels=(2, 4, 4),
    down_block_types=XL_DOWN,
    up_block_types=XL_UP,
    layers_per_block=1,
    transformer_layers_per_block=(1, 1, 2),
    norm_num_groups=2,
    attention_head_dim=(1, 2, 2),
    cross_attention_dim=14,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=2,
    projection_class_embeddings_input_dim=4 + 6 * 2,
)
XL_VAE = VAE | dict(
    block_out_channels=(2, 4),
    down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2,
)
# The projection is no square, so that it cannot be taken the wrong way round.
XL_TEXT_2 = TEXT | dict(hidden_size=6, intermediate_size=12, projection_dim=4, num_hidden_layers=3, hidden_act="gelu")

# The published sizes.
WHOLE_VAE = dict(
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4,
)
WHOLE_UNET = UNET | dict(
    sample_size=64, block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, norm_num_groups=32, attention_head_dim=8,
    cross_attention_dim=768,
)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12, num_attention_heads=12)
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, projection_dim=1024, num_hidden_layers=23, num_attention_heads=16)
CLIP_G = dict(hidden_size=1280, intermediate_size=5120, projection_dim=1280, num_hidden_layers=32, num_attention_heads=20)
WHOLE = {
    "sd1": (WHOLE_UNET, [(CLIPTextModel, CLIP_L)]),
    "sd2": (
        WHOLE_UNET | dict(attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True),
        [(CLIPTextModel, CLIP_H)],
    ),
    "sdxl": (
        XL_UNET | dict(
            sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, transformer_layers_per_block=(1, 2, 10),
            norm_num_groups=32, attention_head_dim=(5, 10, 20), cross_attention_dim=2048, addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        [(CLIPTextModel, CLIP_L), (CLIPTextModelWithProjection, CLIP_G)],
    ),
}
# As `sum(p.numel() for p in unet.parameters())` of the published UNets.
PARAMETERS = {"sd1": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684}

# Parts of names, in diffusers and in LDM.
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name, config):
    """A place in LDM is a resnet, the attention after it, and what changes the size; the input convolution comes first."""
    places = config["layers_per_block"] + 1
    stem, leaf = name.rsplit(".", 1)
    if stem in UNET_ENDS:
        return f"{UNET_ENDS[stem]}.{leaf}"
    side, *rest = name.split(".")
    if side == "mid_block":
        kind, index, rest = rest[0], int(rest[1]), rest[2:]
        place = f"middle_block.{1 if kind == 'attentions' else 2 * index}"
    else:
        block, kind, index, rest = int(rest[0]), rest[1], int(rest[2]), rest[3:]
        if kind == "downsamplers":
            return f"input_blocks.{places * (block + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            # After the attention, which not all blocks have.
            after = 2 if "CrossAttn" in config["up_block_types"][block] else 1
            return f"output_blocks.{places * (block + 1) - 1}.{after}.conv.{leaf}"
        number = places * block + index
        place = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
        place += ".1" if kind == "attentions" else ".0"
    if kind == "resnets":
        rest = [UNET_RESNET[rest[0]], *rest[1:]]
    return ".".join([place, *rest])


def vae_name(name, levels):
    """The decoder's levels are counted from the finest, and blocks in the middle from one."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for index in range(2):
        name = name.replace(f"mid_block.resnets.{index}", f"mid.block_{index + 1}")
    if "mid_block.attentions.0" in name:
        head, tail = name.split("mid_block.attentions.0.")
        module, leaf = tail.rsplit(".", 1)
        return f"{head}mid.attn_1.{VAE_ATTENTION[module]}.{leaf}"
    for level in range(levels):
        name = name.replace(f"down_blocks.{level}.", f"down.{level}.").replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
    return name.replace("resnets", "block").replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")


def vae_value(name, value):
    """LDM's attention has 1x1 convolutions where diffusers has linear maps."""
    return value[:, :, None, None] if "mid.attn_1" in name and value.dim() == 2 else value


OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def open_clip(text):
    """OpenCLIP has queries, keys and values in one tensor, and the projection the other way round."""
    tensors = {}
    for name, value in text.items():
        if name == "text_projection.weight":
            tensors["text_projection"] = value.T
            continue
        for own, other in OPEN_CLIP.items():
            name = name.replace(own, other)
        head, _, tail = name.partition("self_attn.")
        if tail:
            name = f"{head}attn.in_proj_{tail.rsplit('.', 1)[1]}"
            value = torch.cat([tensors[name], value]) if name in tensors else value
        tensors[name] = value
    return tensors


def thirds_in_order(text):
    """Queries, keys, values."""
    order = {"q_proj": 0, "k_proj": 1, "v_proj": 2}
    return dict(sorted(text.items(), key=lambda item: order.get(item[0].split(".")[-2], 3)))


def in_one_file(unet, unet_config, vae, levels):
    """The UNet and the VAE in the names of LDM."""
    tensors = {f"model.diffusion_model.{unet_name(name, unet_config)}": value for name, value in unet.items()}
    for name, value in vae.items():
        name = vae_name(name, levels)
        tensors[f"first_stage_model.{name}"] = vae_value(name, value)
    assert len(tensors) == len(unet) + len(vae)
    return tensors


def released(text_encoder):
    """The tensors as in the released folders; transformers now leaves `text_model.` out in some."""
    of = lambda name: name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
    return {of(name): value.contiguous() for name, value in text_encoder.state_dict().items()}


def extras(unet):
    """Of what the original training leaves in its files: the schedule, positions, and means of the weights."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    # Names of means are those of weights without their dots. Real files have one for each; other numbers, to be told apart.
    mean = unet["model.diffusion_model.input_blocks.0.0.weight"] + 1
    return {
        "betas": betas.float(),
        "alphas_cumprod": (1 - betas).cumprod(0).float(),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(TEXT["max_position_embeddings"])[None],
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(10, dtype=torch.int32),
        "model_ema.diffusion_modelinput_blocks00weight": mean,
    }


def rounded(module, seed):
    """Random weights, all of them half-precision numbers."""
    random_(module, seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
    return module


def same(tensors, expected):
    assert sorted(tensors) == sorted(expected), set(tensors) ^ set(expected)
    for name, value in expected.items():
        assert torch.equal(tensors[name].float(), value.float()), name


def check(tensors, unet, vae, text):
    """diffusers' way back."""
    same(convert_ldm_unet_checkpoint(dict(tensors), unet.config), unet.state_dict())
    same(convert_ldm_vae_checkpoint(dict(tensors), vae.config), vae.state_dict())
    back = convert_ldm_clip_checkpoint(dict(tensors))
    del back["text_model.embeddings.position_ids"]
    same(back, text)


def sd1():
    unet, vae = rounded(UNet2DConditionModel(**UNET), 70), rounded(AutoencoderKL(**VAE), 71)
    text_encoder = rounded(CLIPTextModel(CLIPTextConfig(**TEXT)), 72)
    text = released(text_encoder)

    unet.save_pretrained(OUT / "diffusers/unet")
    vae.save_pretrained(OUT / "diffusers/vae")
    save_config(text_encoder, OUT / "diffusers/text_encoder")
    save_file(text, OUT / "diffusers/text_encoder/model.safetensors", metadata=dict(format="pt"))

    tensors = in_one_file(unet.state_dict(), UNET, vae.state_dict(), LEVELS)
    tensors |= {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
    tensors = {name: value.contiguous() for name, value in (tensors | extras(tensors)).items()}
    save_file(tensors, OUT / "sd1.safetensors")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    torch.save(dict(state_dict=halves, global_step=10, epoch=1), OUT / "sd1.ckpt")

    unet.save_pretrained(OUT / "sharded", max_shard_size="26KB")
    half = deepcopy(unet).half()
    half.save_pretrained(OUT / "fp16", variant="fp16")
    half.save_pretrained(OUT / "sharded_fp16", variant="fp16", max_shard_size="13KB")

    check(load_file(OUT / "sd1.safetensors"), unet, vae, text)
    check(torch.load(OUT / "sd1.ckpt", weights_only=True)["state_dict"], unet, vae, text)
    for folder, variant in [("sharded", None), ("fp16", "fp16"), ("sharded_fp16", "fp16")]:
        loaded = UNet2DConditionModel.from_pretrained(OUT / folder, variant=variant, low_cpu_mem_usage=False)
        same(loaded.state_dict(), unet.state_dict())


def sdxl():
    parts = dict(
        unet=rounded(UNet2DConditionModel(**XL_UNET), 80),
        vae=rounded(AutoencoderKL(**XL_VAE), 81),
        text_encoder=rounded(CLIPTextModel(CLIPTextConfig(**TEXT)), 82),
        text_encoder_2=rounded(CLIPTextModelWithProjection(CLIPTextConfig(**XL_TEXT_2)), 83),
    )
    states = {}
    for name, part in parts.items():
        part.half()
        states[name] = released(part) if name.startswith("text_encoder") else part.state_dict()
        save_config(part, OUT / "sdxl" / name)
        file = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file(states[name], OUT / "sdxl" / name / f"{file}.safetensors", metadata=dict(format="pt"))

    tensors = in_one_file(states["unet"], XL_UNET, states["vae"], len(XL_VAE["block_out_channels"]))
    tensors |= {f"conditioner.embedders.0.transformer.{name}": value for name, value in states["text_encoder"].items()}
    second = open_clip(thirds_in_order(states["text_encoder_2"]))
    tensors |= {f"conditioner.embedders.1.model.{name}": value for name, value in second.items()}
    positions = torch.arange(TEXT["max_position_embeddings"])[None]
    tensors |= {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": positions,
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "denoiser.sigmas": torch.linspace(0.03, 14.6, 1000).half(),
    }
    file = OUT / "sdxl.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, file)

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(OUT / "sdxl", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
        for name in ["scheduler", "tokenizer", "tokenizer_2"]:
            shutil.copytree(DEMO / name.removesuffix("_2"), Path(folder) / name)
        library = lambda name: "diffusers" if name in ("unet", "vae") else "transformers"
        classes = {name: [library(name), type(part).__name__] for name, part in parts.items()}
        scheduler = json.loads((DEMO / "scheduler/scheduler_config.json").read_text())["_class_name"]
        classes |= dict(tokenizer=["transformers", "CLIPTokenizer"], tokenizer_2=["transformers", "CLIPTokenizer"])
        classes |= dict(scheduler=["diffusers", scheduler])
        index = dict(_class_name="StableDiffusionXLPipeline", force_zeros_for_empty_prompt=True, **classes)
        (Path(folder) / "model_index.json").write_text(json.dumps(index))
        options = dict(torch_dtype=torch.float16, local_files_only=True)
        loaded = StableDiffusionXLPipeline.from_single_file(str(file), config=folder, **options)
    for name, part in parts.items():
        same(getattr(loaded, name).state_dict(), part.state_dict())


def numbered(tensors):
    """Tensors of the same shapes: each holds its place in the list everywhere, and takes the memory of one number."""
    number = lambda index, value: torch.tensor(index, dtype=torch.int16).expand(value.shape)
    return {name: number(index, value) for index, (name, value) in enumerate(tensors.items())}


def whole(family, unet_config, encoders):
    """Lists the tensors of a whole model: LDM's by the rules here, diffusers' by its converters."""
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**WHOLE_VAE)
        encoders = [kind(CLIPTextConfig(max_position_embeddings=77, vocab_size=49408, **config)) for kind, config in encoders]
    assert sum(parameter.numel() for parameter in unet.parameters()) == PARAMETERS[family]
    parts = dict(unet=unet.state_dict(), vae=vae.state_dict())
    parts |= {name: released(encoder) for name, encoder in zip(["text_encoder", "text_encoder_2"], encoders)}
    tensors = in_one_file(parts["unet"], unet_config, parts["vae"], len(WHOLE_VAE["block_out_channels"]))
    clip = "conditioner.embedders.0.transformer." if family == "sdxl" else "cond_stage_model.transformer."
    other = "conditioner.embedders.1.model." if family == "sdxl" else "cond_stage_model.model."
    positions = torch.arange(77, device="meta")[None]
    if family != "sd2":
        tensors |= {f"{clip}{name}": value for name, value in parts["text_encoder"].items()}
        tensors[f"{clip}text_model.embeddings.position_ids"] = positions
    if family != "sd1":
        text = open_clip(thirds_in_order(parts["text_encoder_2" if family == "sdxl" else "text_encoder"]))
        if family == "sd2":
            # What the text encoder of a folder leaves out.
            text |= {name.replace(".22.", ".23."): value for name, value in text.items() if ".22." in name}
            text["text_projection"] = torch.empty(1024, 1024, device="meta")
        tensors |= {f"{other}{name}": value for name, value in text.items()}
        tensors[f"{other}logit_scale"] = torch.empty((), device="meta")

    tensors, names = numbered(tensors), list(tensors)
    found = dict(
        unet=convert_ldm_unet_checkpoint(dict(tensors), unet.config), vae=convert_ldm_vae_checkpoint(dict(tensors), vae.config),
    )
    if family != "sd2":
        found["text_encoder"] = convert_ldm_clip_checkpoint(dict(tensors))
        del found["text_encoder"]["text_model.embeddings.position_ids"]
    if family != "sd1":
        name = "text_encoder_2" if family == "sdxl" else "text_encoder"
        found[name] = convert_open_clip_checkpoint(encoders[-1], dict(tensors), prefix=other)
    lines, left = [], set(names)
    shape = lambda value: "x".join(map(str, value.shape))
    for part, expected in parts.items():
        assert found[part].keys() == expected.keys(), part
        assert all(value.shape == expected[name].shape for name, value in found[part].items()), part
        for name, value in found[part].items():
            source = names[value.flatten()[0]]
            assert (value == value.flatten()[0]).all()
            lines.append([source, shape(tensors[source]), part, name, shape(value)])
            left.discard(source)
    lines += [[source, shape(tensors[source]), "-", "-", "-"] for source in sorted(left)]
    text = "".join("\t".join(line) + "\n" for line in sorted(lines))
    (OUT / f"names/{family}.tsv.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    sd1()
    sdxl()
    (OUT / "names").mkdir()
    for family, (unet, encoders) in WHOLE.items():
        whole(family, unet, encoders)


if __name__ == "__main__":
    main()
