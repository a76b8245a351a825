"""Golden outputs of diffusers' UNet2DConditionModel: tests/golden/unet/.

Each variant is a folder in the diffusers layout (config.json, diffusion_pytorch_model.safetensors) of a tiny network
with random weights, and a case.safetensors with inputs and output. `demo.safetensors` holds a case of data/demo/model.
Six rows share three texts (two consecutive rows each), as the Rust network wants them; here the texts are repeated.

    python tests/golden/make_unet.py
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

HERE = Path(__file__).parent
DEMO = HERE.parent.parent / "data/demo/model/unet"
torch.set_num_threads(1)

TINY = dict(
    sample_size=8,
    block_out_channels=(8, 16),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    norm_num_groups=4,
    cross_attention_dim=12,
)
THREE = dict(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
)

# Name: configuration, latent height and width.
VARIANTS = {
    # 1x1 convolutions around the transformers, one number of heads, one layer a block.
    "conv": (TINY | dict(attention_head_dim=2, layers_per_block=1), (8, 8)),
    # Linear maps, heads as a list, two layers a block, three blocks; sizes that don't halve evenly.
    "linear": (
        TINY
        | THREE
        | dict(
            block_out_channels=(8, 8, 12),
            attention_head_dim=[1, 2, 3],
            layers_per_block=2,
            use_linear_projection=True,
        ),
        (10, 6),
    ),
    # Everything as a list, several transformer blocks, the other order of sines, another spread and padding.
    "lists": (
        TINY
        | dict(
            attention_head_dim=[4, 2],
            layers_per_block=[1, 2],
            transformer_layers_per_block=[2, 1],
            flip_sin_to_cos=False,
            freq_shift=1,
            downsample_padding=0,
            norm_eps=1e-4,
            in_channels=3,
            out_channels=5,
        ),
        (8, 8),
    ),
    # As Stable Diffusion XL: pooled texts and sizes enter the time embedding, no attention at the finest resolution.
    "text_time": (
        TINY
        | dict(
            block_out_channels=(8, 8, 12),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=[1, 2, 3],
            transformer_layers_per_block=[1, 2, 3],
            layers_per_block=1,
            use_linear_projection=True,
            upcast_attention=None,
            addition_embed_type="text_time",
            addition_time_embed_dim=6,
            projection_class_embeddings_input_dim=10 + 6 * 6,
        ),
        (8, 8),
    ),
}


def case(unet, height, width, seed):
    """Random inputs for six rows and three texts, and what the network makes of them."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=generator)
    xt = normal(6, unet.config.in_channels, height, width)
    timesteps = torch.randint(1000, (6,), generator=generator)
    given = dict(text=normal(3, 5, unet.config.cross_attention_dim))
    if unet.config.addition_embed_type:
        given["pooled"] = normal(3, 10)
        given["size_ids"] = torch.randint(1024, (3, 6), generator=generator)
    rows = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in given.items()}
    added = dict(text_embeds=rows.get("pooled"), time_ids=rows.get("size_ids"))
    with torch.no_grad():
        output = unet(xt, timesteps, rows["text"], added_cond_kwargs=added).sample
    return dict(xt=xt, timesteps=timesteps, output=output, **given)


def main():
    for number, (name, (config, (height, width))) in enumerate(VARIANTS.items()):
        torch.manual_seed(number)
        unet = UNet2DConditionModel(**config).eval()
        # Fresh norms are ones and zeros, which would hide a forgotten scale or shift.
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        folder = HERE / "unet" / name
        folder.mkdir(parents=True, exist_ok=True)
        unet.save_pretrained(folder)
        save_file(case(unet, height, width, 100 + number), folder / "case.safetensors")
        print(name, sum(parameter.numel() for parameter in unet.parameters()))
    save_file(case(UNet2DConditionModel.from_pretrained(DEMO, low_cpu_mem_usage=False).eval(), 16, 16, 200), HERE / "unet/demo.safetensors")


if __name__ == "__main__":
    main()
