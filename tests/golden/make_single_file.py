"""Golden files of one tiny network in all packings, by diffusers: tests/golden/single_file/.

    python tests/golden/make_single_file.py     (packages: tests/golden/requirements.txt)

A UNet, VAE and text encoder of Stable Diffusion 1's layout (four blocks of two layers), with random weights:
- `diffusers/`: as folders `unet`, `vae`, `text_encoder`;
- `sd1.safetensors`: as one file with the names of the original code (LDM), with some entries real files have besides;
- `sd1.ckpt`: the same by `torch.save`, all in half precision;
- `sharded`, `fp16`, `sharded_fp16`: the UNet alone, in several files, as half-precision variant, as both.
All weights are half-precision numbers, so every packing holds exactly the same.

The names are by the rules below; diffusers' own converters, from LDM back, have to give every tensor.
"""

import shutil
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from make_vae_clip import random_, save_config

OUT = Path(__file__).parent / "single_file"
torch.set_num_threads(1)

LEVELS, LAYERS = 4, 2
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

# Parts of names, in diffusers and in LDM.
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
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


def unet_name(name):
    """A place in LDM is a resnet, the attention after it, and what changes the size; the input convolution comes first."""
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
            return f"input_blocks.{(LAYERS + 1) * (block + 1)}.0.op.{leaf}"
        if kind == "upsamplers":
            # The first block up has no attention before it.
            return f"output_blocks.{(LAYERS + 1) * block + LAYERS}.{1 if block == 0 else 2}.conv.{leaf}"
        number = (LAYERS + 1) * block + index
        place = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
        place += ".1" if kind == "attentions" else ".0"
    if kind == "resnets":
        rest = [UNET_RESNET[rest[0]], *rest[1:]]
    return ".".join([place, *rest])


def vae_name(name):
    """The decoder's levels are counted from the finest, and blocks in the middle from one."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for index in range(2):
        name = name.replace(f"mid_block.resnets.{index}", f"mid.block_{index + 1}")
    if "mid_block.attentions.0" in name:
        head, tail = name.split("mid_block.attentions.0.")
        module, leaf = tail.rsplit(".", 1)
        return f"{head}mid.attn_1.{VAE_ATTENTION[module]}.{leaf}"
    for level in range(LEVELS):
        name = name.replace(f"down_blocks.{level}.", f"down.{level}.").replace(f"up_blocks.{level}.", f"up.{LEVELS - 1 - level}.")
    return name.replace("resnets", "block").replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")


def vae_value(name, value):
    """LDM's attention has 1x1 convolutions where diffusers has linear maps."""
    return value[:, :, None, None] if "mid.attn_1" in name and value.dim() == 2 else value


def extras(unet):
    """Of what the original training leaves in its files: the schedule, positions, and means of the weights."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    # Names of means are those of weights without their dots. Real files have one for each; other numbers, to be told apart.
    mean = unet["input_blocks.0.0.weight"] + 1
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


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    unet, vae = rounded(UNet2DConditionModel(**UNET), 70), rounded(AutoencoderKL(**VAE), 71)
    text_encoder = rounded(CLIPTextModel(CLIPTextConfig(**TEXT)), 72)
    # As in the released folders; transformers now leaves `text_model.` out.
    text = {f"text_model.{name}": value.contiguous() for name, value in text_encoder.state_dict().items()}

    unet.save_pretrained(OUT / "diffusers/unet")
    vae.save_pretrained(OUT / "diffusers/vae")
    save_config(text_encoder, OUT / "diffusers/text_encoder")
    save_file(text, OUT / "diffusers/text_encoder/model.safetensors", metadata=dict(format="pt"))

    ldm = {unet_name(name): value for name, value in unet.state_dict().items()}
    tensors = {f"model.diffusion_model.{name}": value for name, value in ldm.items()}
    for name, value in vae.state_dict().items():
        name = vae_name(name)
        tensors[f"first_stage_model.{name}"] = vae_value(name, value)
    tensors |= {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
    assert len(tensors) == len(unet.state_dict()) + len(vae.state_dict()) + len(text)
    tensors = {name: value.contiguous() for name, value in (tensors | extras(ldm)).items()}
    save_file(tensors, OUT / "sd1.safetensors")
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    torch.save(dict(state_dict=halves, global_step=10, epoch=1), OUT / "sd1.ckpt")

    unet.save_pretrained(OUT / "sharded", max_shard_size="40KB")
    half = deepcopy(unet).half()
    half.save_pretrained(OUT / "fp16", variant="fp16")
    half.save_pretrained(OUT / "sharded_fp16", variant="fp16", max_shard_size="20KB")

    check(load_file(OUT / "sd1.safetensors"), unet, vae, text)
    check(torch.load(OUT / "sd1.ckpt", weights_only=True)["state_dict"], unet, vae, text)
    for folder, variant in [("sharded", None), ("fp16", "fp16"), ("sharded_fp16", "fp16")]:
        loaded = UNet2DConditionModel.from_pretrained(OUT / folder, variant=variant, low_cpu_mem_usage=False)
        same(loaded.state_dict(), unet.state_dict())


if __name__ == "__main__":
    main()
