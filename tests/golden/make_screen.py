"""Golden numbers of the first-order screen: tests/golden/screen.safetensors.

Uses the tiny network tests/golden/unet/conv, and of make_method.py the latents, the texts and the weights after unlearning, whose
two steps stand for two queries.

    python tests/golden/make_screen.py     (packages: tests/golden/requirements.txt)
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from plain import image_noise, per_sample_gradients

HERE = Path(__file__).parent
torch.set_num_threads(1)

CAPTIONS, TIMESTEPS = 2, torch.arange(0, 1000, 250)


def steps(unet):
    """What unlearning added to each weight, by query."""
    weights, own = load_file(HERE / "method/unlearned.safetensors"), dict(unet.named_parameters())
    of = lambda query: {n.split(".", 1)[1]: x for n, x in weights.items() if n.startswith(f"step{query}.")}
    return [{name: x.double() - own[name].detach().double() for name, x in of(query).items()} for query in range(2)]


def main():
    unet = UNet2DConditionModel.from_pretrained(HERE / "unet/conv", low_cpu_mem_usage=False).eval()
    queries, data = steps(unet), load_file(HERE / "method/losses.safetensors")
    latents, texts = data["latents"], data["texts"]
    unet, noise_of = unet.double(), image_noise(len(texts), latents.shape[1:])
    found = []
    for image in range(len(latents)):
        rows = [(image, caption, t) for caption in range(CAPTIONS) for t in TIMESTEPS]
        gradients = per_sample_gradients(
            unet,
            latents[image].double().expand(len(rows), -1, -1, -1),
            noise_of(0, rows).double(),
            torch.stack([t for _, _, t in rows]),
            torch.stack([texts[image % len(texts), caption] for _, caption, _ in rows]).double(),
        )
        dot = lambda step: sum((gradients[name].flatten(1) @ x.flatten()) for name, x in step.items())
        products = torch.stack([dot(step) for step in queries], dim=-1)
        found.append(products.view(CAPTIONS, len(TIMESTEPS), len(queries)).mean(dim=0))
    # [2N, timesteps, queries]
    save_file({"screen": torch.stack(found).float()}, HERE / "screen.safetensors")


if __name__ == "__main__":
    main()
