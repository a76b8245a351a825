"""Golden images: what Pillow reads, resizes and crops.

    python tests/golden/make_image.py        (packages: tests/golden/requirements.txt)

Writes `image/*.png`, `image/photo.jpg` (inputs) and `image.safetensors` (expected pixels, uint8 [H, W, 3]):
`load/NAME` for `Image.open(NAME).convert("RGB")`, `fit/NAME/SIZE` for torchvision's `Resize(SIZE)` and
`CenterCrop(SIZE)` on top of it, `bytes/out` for diffusers' `numpy_to_pil` of `bytes/in`.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

HERE = Path(__file__).parent
OUT = HERE / "image"


def picture(width, height, seed):
    """Waves, an edge and noise: smooth and sharp parts, all levels from 0 to 255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [127.5 + 127.5 * np.sin(x / (3 + 2 * c) + y / (9 - 2 * c)) for c in range(3)]
    image = np.stack(planes, -1) + rng.normal(0, 12, (height, width, 3))
    image[height // 3 : height // 2, width // 4 : width // 2] = [255, 0, 64]
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


def fit(image, size, filter):
    """torchvision's rules: the longer side is truncated, half margins are rounded to even."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    size_out = (size, longer) if width <= height else (longer, size)
    # Pillow of the years of the published latents (10.4) always resizes rows first. Pillow 13
    # takes columns first for some shapes, which changes roundings: two calls pin the order.
    image = image.resize((size_out[0], height), filter)
    image = image.resize(size_out, filter)
    left, top = round((image.size[0] - size) / 2.0), round((image.size[1] - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def inputs():
    rgb = picture(61, 45, 0)
    alpha = Image.fromarray(np.linspace(0, 255, 61 * 45).reshape(45, 61).astype(np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    palette = rgb.quantize(40)
    palette.info["transparency"] = 3
    return {
        "rgb.png": rgb,
        "tall.png": picture(37, 80, 1),
        "gray.png": rgb.convert("L"),
        "gray_alpha.png": rgba.convert("LA"),
        "rgba.png": rgba,
        "palette.png": palette,
        "bits.png": rgb.convert("1"),
        "gray16.png": Image.fromarray(np.arange(0, 600, 4, dtype=np.uint16).reshape(10, 15)),
        "photo.jpg": picture(64, 48, 2),
    }


def main():
    OUT.mkdir(exist_ok=True)
    expected = {}
    for name, image in inputs().items():
        image.save(OUT / name, **({"quality": 90} if name.endswith("jpg") else {"optimize": True}))
        rgb = Image.open(OUT / name).convert("RGB")
        expected[f"load/{name}"] = np.asarray(rgb)
        if name in ("rgb.png", "tall.png"):
            for size in (16, 32, 37, 64):
                for filter in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
                    expected[f"fit/{filter.name.lower()}/{name}/{size}"] = np.asarray(fit(rgb, size, filter))
    rng = np.random.default_rng(3)
    chw = rng.normal(0, 0.7, (3, 24, 32)).astype(np.float32)
    unit = (chw / 2 + 0.5).clip(0, 1).transpose(1, 2, 0)
    expected["bytes/in"], expected["bytes/out"] = chw, (unit * 255).round().astype(np.uint8)
    save_file({key: np.ascontiguousarray(value) for key, value in expected.items()}, HERE / "image.safetensors")


if __name__ == "__main__":
    main()
