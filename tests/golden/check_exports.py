"""Loads what `attrflow export` wrote, as Python's users would, and holds it to the results that it was written of.

    attrflow export --published OUT --unet OUT pipelines/demo.toml
    python tests/golden/check_exports.py OUT results/demo

With no folders it only loads `pickle/written.pkl`, which is what `io::pickle::writer` makes, byte for byte: a test
compares, and `ATTRFLOW_BLESS=1` rewrites it. Run this after each change of that file, in numpy 1 and 2. A warning about
names that numpy is about to drop is a failure.

Needs torch, numpy, safetensors, Pillow and, for networks, diffusers.
"""

import pickle
import sys
import warnings
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def check_pickle(path, influence, rank):
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pickle.load(file)
    assert list(found) == ["influence", "rank"], found.keys()
    for name, dtype, expected in [("influence", np.float32, influence), ("rank", np.int64, rank)]:
        array = found[name]
        assert type(array) is np.ndarray and array.dtype == dtype and array.shape == (len(expected),), array
        assert array.flags.writeable and array.flags.c_contiguous
        np.testing.assert_array_equal(array, expected)
        # What else is made of it must be a full array too.
        assert pickle.loads(pickle.dumps(array)).tobytes() == np.asarray(expected, dtype).tobytes()


def check_published(out, results):
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    losses = np.load(out / "pretrain_loss.npy")
    assert losses.dtype == np.float32 and losses.ndim == 1
    np.testing.assert_array_equal(losses, np.load(results / "pretrain_loss/pretrain_loss.npy"))
    fisher = torch.load(out / "fisher_info.pt", weights_only=True)
    own = load_file(results / "fisher/fisher.safetensors")
    assert isinstance(fisher, dict) and set(fisher) == set(own)
    for name, tensor in fisher.items():
        assert tensor.dtype == torch.float64 and torch.equal(tensor, own[name].double()), name
    print(f"pretrain_loss.npy {losses.shape}, fisher_info.pt with {len(fisher)} tensors")
    queries = sorted(path.stem.removeprefix("influence_") for path in out.glob("influence_*.pkl"))
    assert queries, f"{out}: no influence_*.pkl"
    for query in queries:
        folder = results / "influence" / query
        influence, rank = np.load(folder / "influence.npy"), np.load(folder / "rank.npy")
        check_pickle(out / f"influence_{query}.pkl", influence, rank)
        assert len(losses) in (len(influence), 2 * len(influence))
        assert (np.diff(influence[rank]) <= 0).all()
        jpeg, png = Image.open(out / f"visualization_{query}.jpg"), Image.open(results / "ranking" / query / "top.png").convert("RGB")
        assert (jpeg.format, jpeg.mode, jpeg.size) == ("JPEG", "RGB", png.size)
        error = np.abs(np.asarray(jpeg, np.int16) - np.asarray(png, np.int16)).mean()
        assert error < 5, f"{query}: the picture is {error} levels off"
        print(f"query {query}: {len(influence)} images, picture {jpeg.size}, {error:.2f} levels off")


def check_unets(out, results):
    import torch
    from diffusers import UNet2DConditionModel
    from safetensors.torch import load_file

    for folder in sorted(out.glob("unet_*")):
        query = folder.name.removeprefix("unet_")
        unet, info = UNet2DConditionModel.from_pretrained(
            folder, output_loading_info=True, low_cpu_mem_usage=False
        )
        assert not any(info.values()), info
        changed = load_file(results / "unlearn" / query / "unlearned.safetensors")
        state = unet.state_dict()
        for name, tensor in changed.items():
            assert state[name].dtype == torch.float32 and torch.equal(state[name], tensor), name
        config = unet.config
        latents = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
        with torch.no_grad():
            drawn = unet(latents, 10, torch.zeros(1, 4, config.cross_attention_dim)).sample
        assert drawn.shape == latents.shape and torch.isfinite(drawn).all()
        print(f"{folder.name}: {len(state)} tensors, {len(changed)} of them changed")


check_pickle(HERE / "pickle/written.pkl", np.array([0.5, -1.25, 3e-9, 0.0, 7.0], np.float32), [4, 0, 2, 3, 1])
print(f"written.pkl is as expected in numpy {np.__version__}")
if len(sys.argv) > 1:
    out, results = map(Path, sys.argv[1:])
    if (out / "pretrain_loss.npy").exists():
        check_published(out, results)
    check_unets(out, results)
