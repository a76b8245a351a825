"""Golden numbers of DINO's vision transformers: tests/golden/dino/{vit,dinov2} with random weights, and tests/golden/dino.safetensors.

`vit` is transformers' `ViTModel`, under the names of a whole classifier; `dinov2` its `Dinov2Model`, whose position embeddings are
interpolated, since pictures are smaller than those that it was made for.

    python tests/golden/make_dino.py     (packages: tests/golden/requirements.txt)
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from make_image import picture
from make_vae_clip import random_

HERE = Path(__file__).parent
torch.set_num_threads(1)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Width and height of pictures.
SIZES = [(41, 23), (30, 52)]


def prepared(image, resized, cropped):
    """The shorter side resized as torchvision does it, and the middle; rows first, as in make_image.py."""
    width, height = image.size
    longer = int(resized * max(width, height) / min(width, height))
    size = (resized, longer) if width <= height else (longer, resized)
    image = image.resize((size[0], height), Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - resized) // 2, (size[1] - resized) // 2
    margin = (resized - cropped) // 2
    image = image.crop((left + margin, top + margin, left + margin + cropped, top + margin + cropped))
    values = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    channels = lambda values: torch.tensor(values)[:, None, None]
    return (values - channels(MEAN)) / channels(STD)


@torch.no_grad()
def main():
    vit = ViTConfig(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=20, patch_size=5)
    dinov2 = Dinov2Config(hidden_size=24, mlp_ratio=2, num_hidden_layers=2, num_attention_heads=3, image_size=36, patch_size=4)
    out = {}
    for name, model, sides, prefix in [
        # Without a preprocessor's file: 256 over 224 of the picture's size.
        ("vit", random_(ViTModel(vit), 60), (20 * 256 // 224, 20), "vit."),
        ("dinov2", random_(Dinov2Model(dinov2), 61), (22, 20), ""),
    ]:
        folder = HERE / "dino" / name
        # Under the names of published files, which differ from those in memory.
        model.save_pretrained(folder)
        stored = load_file(folder / "model.safetensors")
        save_file({prefix + key: value for key, value in stored.items()}, folder / "model.safetensors")
        if name == "dinov2":
            sizes = dict(size={"shortest_edge": sides[0]}, crop_size={"height": sides[1], "width": sides[1]}, resample=3)
            (folder / "preprocessor_config.json").write_text(json.dumps(dict(image_mean=MEAN, image_std=STD, **sizes)) + "\n")
        images = [picture(*size, 70 + number) for number, size in enumerate(SIZES)]
        inputs = torch.stack([prepared(image, *sides) for image in images])
        out |= {f"{name}/prepared": inputs, f"{name}/vectors": model(pixel_values=inputs).last_hidden_state[:, 0]}
        for number, image in enumerate(images):
            out[f"images/{number}"] = torch.tensor(np.asarray(image))
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "dino.safetensors")


if __name__ == "__main__":
    main()
