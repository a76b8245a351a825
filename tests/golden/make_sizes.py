"""The networks of Stable Diffusion at their sizes, with random weights: tests/golden/sizes/.

Each folder holds a configuration in the diffusers or transformers layout, the names and shapes of its state dict, and an
output of the original with the weights of ruled.py, at even steps; inputs are drawn by the same rule.
- `unet_sd1`: heads as one number, 1x1 convolutions around the transformers, texts of width 768;
- `unet_sd2`: heads as a list, linear maps around the transformers, texts of width 1024;
- `vae`: 128, 256, 512 and 512 channels, of both;
- `clip`: the text encoder of Stable Diffusion 2, whose padding is id 0 (`!`).

Needs up to 12 GB, one at a time.

    python tests/golden/make_sizes.py [NAME..]
"""

import gc
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ruled import fill, normal, sampled, save

OUT = Path(__file__).parent / "sizes"
torch.set_num_threads(2)

SAMPLES = 2048


def unet(width, **more):
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=width, **more
    ).eval()


def unet_outputs(model):
    """Two rows of 24 x 16 latents, sides that are not alike, at two timesteps with a text each."""
    xt, text = normal(2, 4, 24, 16, seed=1), normal(2, 77, model.config.cross_attention_dim, seed=2)
    return {"output": model(xt, torch.tensor([20, 900]), text).sample}


def unet_sd1():
    model = unet(768, attention_head_dim=8)
    fill(model)
    return model, unet_outputs(model)


def unet_sd2():
    # Release 2.1 computes attention in float32 where the rest is in half precision: no difference in float32.
    more = dict(use_linear_projection=True, upcast_attention=True)
    model = unet(1024, attention_head_dim=[5, 10, 20, 20], **more)
    fill(model)
    return model, unet_outputs(model)


def vae():
    model = AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()
    fill(model)
    posterior = model.encode(normal(2, 3, 64, 96, seed=1).clamp(-1, 1)).latent_dist
    return model, {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": model.decode(posterior.mean).sample}


def clip():
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        max_position_embeddings=77,
        hidden_act="gelu",
        projection_dim=512,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    model = CLIPTextModel(config).eval()
    fill(model)
    ids = torch.zeros((2, 77), dtype=torch.int64)
    # Start, a few words, end, and `!` up to the full length; and a text that fills it.
    ids[0, :6] = torch.tensor([49406, 320, 2368, 525, 1929, 49407])
    ids[1] = torch.cat([torch.tensor([49406]), torch.arange(600, 45600, 600), torch.tensor([49407])])
    return model, {"ids": ids, "hidden": model(ids).last_hidden_state}


MODELS = {make.__name__: make for make in (unet_sd1, unet_sd2, vae, clip)}


@torch.no_grad()
def main():
    for name in sys.argv[1:] or MODELS:
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        model, outputs = MODELS[name]()
        model.save_config(folder) if hasattr(model, "save_config") else model.config.save_pretrained(folder)
        print(name, sum(parameter.numel() for parameter in model.parameters()), "parameters")
        out = {}
        for key, value in outputs.items():
            print(" ", key, tuple(value.shape), f"{value.double().std().item():.3g}")
            out |= {key: value} if key == "ids" else {
                f"{key}.shape": torch.tensor(value.shape),
                f"{key}.samples": sampled(value, SAMPLES),
                f"{key}.peak": value.abs().max(),
            }
        save(folder, model, out, count=1)
        del model, outputs
        gc.collect()


if __name__ == "__main__":
    main()
