"""Cost as work grows: seconds and peak memory of a loss pass over N images with the demo's network, synthetic data.

The time must grow as N does, and the memory not at all. What it costs to start is measured with a pass over nothing much and
taken off.

    python benches/speed/growth.py --binary target/release/attrflow-speed [--largest 10000]
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from speed import environment

ROOT = Path(__file__).resolve().parents[2]
LOSS = dict(time_samples=2, captions=1, seed=0, noise="per_batch", batch_size=64)


def make(folder, images):
    random = np.random.default_rng(0)
    shapes = dict(latents=(2 * images, 4, 16, 16), texts=(images, 1, 16, 64))
    for name, shape in shapes.items():
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)
        for start in range(0, len(array), 1000):
            some = array[start : start + 1000]
            some[:] = random.standard_normal(some.shape, dtype=np.float32)
        array.flush()
    unet = ROOT / "data/demo/model/unet"
    (folder / "unet").mkdir(exist_ok=True)
    shutil.copy(unet / "config.json", folder / "unet/config.json")
    shutil.copy(unet / "diffusion_pytorch_model.safetensors", folder / "model.safetensors")


def measure(options, images):
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), images)
        per_batch = LOSS["batch_size"] // LOSS["captions"] // LOSS["time_samples"]
        work = dict(what="loss", data=name, device="cpu", threads=os.cpu_count(), precision="fp32", micro_batch=128)
        work |= dict(select="all", batch_size=1, batches=[0, -(-2 * images // per_batch)], loss=LOSS)
        how = dict(input="go\n", capture_output=True, text=True, env=environment(keep=True), check=True)
        done = subprocess.run([options.binary, json.dumps(work)], **how)
        return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--largest", type=int, default=10_000)
    parser.add_argument("--out")
    options = parser.parse_args()
    table = []
    for images in (100, 1_000, 10_000):
        if images <= options.largest:
            answer = measure(options, images)
            row = dict(images=images, rows=answer["rows"], seconds=answer["seconds"], host_mib=answer["host_mib"])
            table.append(row)
            print(f"N = {images:6}  {row['rows']:7} rows  {row['seconds']:8.1f} s  {1e3 * row['seconds'] / row['rows']:6.2f} ms a row"
                  f"  peak memory {row['host_mib']} MiB", flush=True)
    first, last = table[0], table[-1]
    linear = last["seconds"] / last["rows"] / (first["seconds"] / first["rows"])
    print(f"time a row, largest to smallest: {linear:.2f}; memory: {last['host_mib'] / first['host_mib']:.2f}")
    if options.out:
        Path(options.out).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
