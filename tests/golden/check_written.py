"""Loads with torch and numpy what our writers wrote, and checks every value. On demand, in two steps:

    ATTRFLOW_WRITE_TO=/tmp/written cargo nextest run --run-ignored only -E 'test(files_for_python)'
    python tests/golden/check_written.py /tmp/written

The test (tests/numerics/written.rs) writes a state dict, a Fisher diagonal and arrays of every type;
both sides know the values.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

FOLDER = Path(sys.argv[1])
HERE = Path(__file__).parent
NETWORK = HERE / "unet/conv"


def state_dict():
    """The tiny network's, as `torch.save` would have written it; a fresh network takes it, with no key left over."""
    loaded = torch.load(FOLDER / "model.bin", weights_only=True)
    expected = load_file(NETWORK / "diffusion_pytorch_model.safetensors")
    assert set(loaded) == set(expected), set(loaded) ^ set(expected)
    for name, value in expected.items():
        assert loaded[name].dtype == torch.float32 and torch.equal(loaded[name], value), name
        assert loaded[name].is_contiguous()
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(NETWORK))
    unet.load_state_dict(loaded, strict=True)
    return f"{len(loaded)} tensors"


def fisher():
    """Squares of the weights in float64, as the published `fisher_info.pt` has it."""
    loaded = torch.load(FOLDER / "fisher_info.pt", weights_only=True)
    weights = load_file(NETWORK / "diffusion_pytorch_model.safetensors")
    assert set(loaded) == set(weights)
    for name, value in weights.items():
        assert loaded[name].dtype == torch.float64 and torch.equal(loaded[name], value.double().square()), name
    mapped = torch.load(FOLDER / "fisher_info.pt", weights_only=True, mmap=True)
    assert all(torch.equal(mapped[name], value) for name, value in loaded.items())
    return f"{len(loaded)} tensors, mapped too"


def arrays():
    """numpy reads the types and shapes, also as a map, and would have written the same bytes."""
    numbers = np.arange(-12, 12)
    shapes = {"half": "<f2", "single": "<f4", "double": "<f8", "long": "<i8"}
    for name, kind in shapes.items():
        file = FOLDER / f"{name}.npy"
        for loaded in (np.load(file, allow_pickle=False), np.load(file, mmap_mode="r")):
            scale = 1 if kind == "<i8" else 8
            assert loaded.dtype.str == kind and loaded.shape == (2, 3, 4) and loaded.flags.c_contiguous, name
            assert np.array_equal(loaded, (numbers / scale).astype(kind).reshape(2, 3, 4)), name
        np.save(FOLDER / "again.npy", loaded)
        assert (FOLDER / "again.npy").read_bytes() == file.read_bytes(), f"{name}: other bytes than numpy's"
        (FOLDER / "again.npy").unlink()
    assert np.load(FOLDER / "joined.npy").shape == (4, 3, 4)
    assert np.array_equal(np.load(FOLDER / "joined.npy"), np.concatenate([np.load(FOLDER / "single.npy")] * 2))
    assert np.load(FOLDER / "empty.npy").shape == (0, 3)
    return f"{len(shapes)} types, joined, empty"


if __name__ == "__main__":
    for check in (state_dict, fisher, arrays):
        print(f"{check.__name__}: {check()}")
