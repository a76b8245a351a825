"""Golden numbers of `query-loss`: losses on queries, and how far drawings are off: tests/golden/query_loss.safetensors.

Uses the tiny network tests/golden/unet/conv, and makes the image encoder tests/golden/clip_image, with random weights, as
transformers' `CLIPVisionModelWithProjection`.

    python tests/golden/make_query_loss.py     (packages: tests/golden/requirements.txt)
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from make_image import fit, picture
from make_vae_clip import random_, save_config
from plain import image_noise, loss_pass, seeded

HERE = Path(__file__).parent
torch.set_num_threads(1)

SHAPE, TOKENS, WIDTH = (4, 8, 8), 5, 12
# Two sources: one of two queries, one of one. The noise is keyed by the row in the own source.
SOURCES = {"pair": 2, "single": 1}
SEED, TIME_SAMPLES, SIDE = 3, 8, 20
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def encoder():
    config = CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, projection_dim=16, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE,
        patch_size=5, hidden_act="quick_gelu",
    )
    model = random_(CLIPVisionModelWithProjection(config), 30)
    folder = HERE / "clip_image"
    save_config(model, folder)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(state, folder / "model.safetensors")
    preprocessing = dict(image_mean=MEAN, image_std=STD, resample=3, size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing) + "\n")
    return model


def prepared(image):
    """As transformers' CLIPImageProcessor: half margins are rounded down."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(SIDE * long / short)
    size = (SIDE, longer) if width <= height else (longer, SIDE)
    # Rows first, as in make_image.py.
    image = image.resize((size[0], height), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    image = image.crop((left, top, left + SIDE, top + SIDE))
    values = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    channels = lambda values: torch.tensor(values)[:, None, None]
    return (values - channels(MEAN)) / channels(STD)


@torch.no_grad()
def main():
    unet = UNet2DConditionModel.from_pretrained(HERE / "unet/conv", low_cpu_mem_usage=False).eval()
    clip, generator, out = encoder(), seeded(50), {}
    for number, (name, rows) in enumerate(SOURCES.items()):
        latents, drawn = (torch.randn((rows, *SHAPE), generator=generator) for _ in range(2))
        texts = torch.randn((rows, 1, TOKENS, WIDTH), generator=generator)
        noise = image_noise(rows, SHAPE, captions=1, seed=SEED)
        losses = loss_pass(unet, latents, texts, noise, batch_size=TIME_SAMPLES, time_samples=TIME_SAMPLES, captions=1)
        out |= {f"{name}/latents": latents, f"{name}/drawn_latents": drawn, f"{name}/text_embeddings": texts}
        out |= {f"{name}/losses": losses[:, 0], f"{name}/loss": losses.double().mean(dim=(1, 2))}
        cosine = torch.nn.functional.cosine_similarity
        out[f"{name}/latent_cosine"] = cosine(latents.double().flatten(1), drawn.double().flatten(1))
        own, other = ([picture(41 + row, 23 + 9 * row, 10 * number + row + seed) for row in range(rows)] for seed in (0, 5))
        for row in range(rows):
            out |= {f"{name}/images/{row}": torch.tensor(np.asarray(own[row])), f"{name}/drawn_images/{row}": torch.tensor(np.asarray(other[row]))}
        pixels = [[torch.tensor(np.asarray(image)).double() / 255 for image in images] for images in (own, other)]
        out[f"{name}/pixel_mse"] = torch.stack([(a - b).square().mean() for a, b in zip(*pixels)])
        inputs = [torch.stack([prepared(image) for image in images]) for images in (own, other)]
        embeds = [clip(pixel_values=images).image_embeds for images in inputs]
        out |= {f"{name}/prepared": inputs[0], f"{name}/embeds": embeds[0]}
        out[f"{name}/clip_cosine"] = cosine(embeds[0].double(), embeds[1].double())
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "query_loss.safetensors")


if __name__ == "__main__":
    main()
