"""Golden noise of `noise = "per_image_philox"`: tests/golden/philox.safetensors.

Philox4x32-10 as Salmon et al. 2011 (doi 10.1145/2063384.2063405) describe it, in whole numbers, and the transform of Box and Muller in
float64. `tests/golden/plain.py` has the seeds.

    python tests/golden/make_philox.py
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from plain import derived_seed

HERE = Path(__file__).parent
SHAPE, OFFSET, SEED = (2, 4, 8, 8), 0.1, 7
IMAGES, POINTS = (0, 3), ((250, 0), (500, 1))


def philox(place, key):
    a, b, c, d = place
    for step in range(10):
        k0, k1 = ((key[i] + step * (0x9E3779B9, 0xBB67AE85)[i]) % 2**32 for i in range(2))
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k0, second % 2**32, (first >> 32) ^ d ^ k1, first % 2**32
    return a, b, c, d


def normals(purpose, place, count):
    seed = derived_seed(purpose, SEED)
    key, found = (seed % 2**32, seed >> 32), []
    for block in range(-(-count // 4)):
        words = philox((block, *place), key)
        for a, b in (words[:2], words[2:]):
            # The uniform number in float32, as it is drawn.
            u = (np.float32(a) + np.float32(0.5)) * np.float32(2.0**-32)
            length, angle = np.sqrt(-2 * np.log(np.float64(u))), 2 * np.pi * b / 2**32
            found += [length * np.cos(angle), length * np.sin(angle)]
    return torch.tensor(found[:count], dtype=torch.float64)


def main():
    count, channels = int(np.prod(SHAPE)), int(np.prod(SHAPE[:2]))
    noise = torch.stack([
        torch.stack([normals("philox image noise", (image, *point), count).view(SHAPE) for point in POINTS], dim=1) for image in IMAGES
    ])  # [images, captions, points, C, H, W]
    shift = torch.stack([
        torch.stack([normals("philox noise offset", (image, *point), channels).view(*SHAPE[:2], 1, 1) for point in POINTS], dim=1)
        for image in IMAGES
    ])
    drawing = normals("philox drawing", (5, 999, 0), count // 2).view(SHAPE[1:])
    save_file(dict(noise=noise, shifted=noise + OFFSET * shift, drawing=drawing), HERE / "philox.safetensors")


if __name__ == "__main__":
    main()
