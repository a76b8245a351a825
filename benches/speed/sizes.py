"""The loss pass at the sizes of Stable Diffusion 1 and XL, with random weights, beside diffusers with its best settings.

Both sides in turns, as in speed.py, whose protocol this is. The peer has its weights and images with the channels last, and with
`--compile` is compiled by torch.compile. Rows a second and peak memory are printed. XL needs 20 GB of memory and of disk.

    python benches/speed/sizes.py --binary PATH [--device cuda] [--compile] [--out FILE.json] [sd1] [sdxl]
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from speed import compare

# The configuration of the network, a latent's side, the rows of a text, and rows that are computed at once.
SIZES = {
    "sd1": (dict(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8), 64, 77, 4),
    "sdxl": (
        dict(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        ),
        128,
        78,
        1,
    ),
}


@torch.no_grad()
def prepare(folder, name):
    """Weights, latents and texts that both sides read."""
    from diffusers import UNet2DConditionModel

    config, side, length, _ = SIZES[name]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=side, **config)
    for parameter, value in unet.state_dict().items():
        if value.dim() > 1:
            value.normal_(0, value[0].numel() ** -0.5)
        else:
            value.normal_(float(parameter.endswith("weight")), 0.1)
    unet.save_config(folder / "unet")
    save_file({key: value.contiguous() for key, value in unet.state_dict().items()}, folder / "model.safetensors")
    random, width = np.random.default_rng(0), config["cross_attention_dim"]
    np.save(folder / "latents.npy", random.standard_normal((8, 4, side, side), dtype=np.float32))
    texts = random.standard_normal((4, 1, length, width), dtype=np.float32)
    if name == "sdxl":
        # The pooled text, six sizes, and zeros.
        texts[:, 0, -1, 1280:] = 0
        texts[:, 0, -1, 1280:1286] = [8 * side, 8 * side, 0, 0, 8 * side, 8 * side]
    np.save(folder / "texts.npy", texts)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", default=list(SIZES), help=f"some of {list(SIZES)} [default: all]")
    parser.add_argument("--binary", required=True)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out")
    options = parser.parse_args()
    unknown = [name for name in options.sizes if name not in SIZES]
    if unknown:
        parser.error(f"unknown size {unknown[0]!r}, expected some of {list(SIZES)}")
    options.trials, options.keep, options.cores = False, True, os.cpu_count()
    rows = []
    for name in options.sizes:
        at_once = SIZES[name][3] * (1 if options.device == "cpu" else 8)
        # A worker for each core, but one with all where two networks are too much for memory.
        options.workers = 1 if name == "sdxl" else options.cores
        options.threads = options.cores // options.workers
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            prepare(folder, name)
            for precision in ("fp32",) if options.device == "cpu" else ("fp32", "tf32", "bf16"):
                loss = dict(time_samples=at_once, captions=1, seed=0, noise="per_batch", batch_size=at_once)
                work = dict(what="loss", precision=precision, select="all", batch_size=1, micro_batch=at_once, loss=loss)
                best = work | dict(channels_last=True, compile=options.compile)
                batches = dict(ours=2, peer=2) if options.device == "cpu" else dict(ours=6, peer=6)
                row = compare(options, folder, f"{name}, loss pass, {precision}", work, batches, best)
                print(f"  memory: ours {row['host_mib']['ours']} MiB, peer {row['host_mib']['peer']} MiB; "
                      f"device {row['device_mib']['ours']} and {row['device_mib']['peer']} MiB", flush=True)
                rows.append(row)
    if options.out:
        Path(options.out).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
