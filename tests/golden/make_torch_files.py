"""Files that torch.save writes, and what is in them: tests/golden/torch/.

`expected.json` holds, for each file that can be read, its tensors in order: name, element type, shape, and the bytes in C
order as hexadecimal. The other files must be refused.

`written.pt` is not made here: it is what `io::torch_file::write` makes, byte for byte, so that a change of the writer
shows. A test compares; `ATTRFLOW_BLESS=1` rewrites it. This script loads it with `torch.load(weights_only=True)` and
compares it with `expected.json`: run it after each change of that file.

    python tests/golden/make_torch_files.py
"""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent / "torch"
HERE.mkdir(exist_ok=True)
torch.manual_seed(0)
torch.set_num_threads(1)


def module():
    """Two layers with buffers, so that the state dict carries versions as attributes."""
    return torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))


def views():
    """Tensors that share storages, skip elements, repeat them, or have none."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "base": base,
        "row": base[2],
        "column": base[:, 1],
        "transposed": base.T,
        "steps": base[1:, 1:6:2],
        "permuted": torch.arange(24, dtype=torch.int64).reshape(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.tensor([1.5, -2.5]).expand(3, 2),
        "channels_last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(7.25),
        "empty": torch.zeros(0, 3),
        "last": base[3, 5:],
        "ones": torch.arange(3.0).reshape(1, 3, 1),
    }


def kinds():
    values = torch.tensor([[0.0, 1.0, -2.5], [1e-3, 300.0, float("inf")]])
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
    tensors = {str(kind).removeprefix("torch."): values.to(kind) for kind in kinds}
    tensors["int64"] = torch.tensor([-(2**62), 0, 5])
    tensors["int32"] = torch.tensor([-7, 8], dtype=torch.int32)
    tensors["uint8"] = torch.arange(250, 256, dtype=torch.uint8)
    tensors["bool"] = torch.tensor([True, False, True])
    return tensors


READ = {
    "state_dict.pt": module().state_dict(),
    "fisher.pt": {name: value.double().square() for name, value in module().named_parameters()},
    "views.pt": views(),
    "kinds.pt": kinds(),
    "parameters.pt": OrderedDict(module().named_parameters()),
    "empty.pt": {},
}
WRITTEN = OrderedDict(
    {
        "down_blocks.0.attn2.to_k.weight": torch.arange(6, dtype=torch.float64).reshape(2, 3) / 8,
        "übung": torch.tensor([0.1, -3.5], dtype=torch.float32),
        "scalar": torch.tensor(2.0**-1074, dtype=torch.float64),
        "none": torch.zeros(2, 0, dtype=torch.float32),
    }
)


def listing(tensors):
    def entry(name, tensor):
        tensor = tensor.detach().contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        kind = str(tensor.dtype).removeprefix("torch.")
        return {"name": name, "dtype": kind, "shape": list(tensor.shape), "bytes": data.hex()}

    return [entry(name, tensor) for name, tensor in tensors.items()]


expected = {}
for name, tensors in READ.items():
    torch.save(tensors, HERE / name)
    expected[name] = listing(tensors)
    legacy = name.replace(".pt", ".legacy.pt")
    torch.save(tensors, HERE / legacy, _use_new_zipfile_serialization=False)
    expected[legacy] = listing(tensors)
for protocol in (3, 4, 5):
    name = f"protocol{protocol}.pt"
    torch.save(READ["state_dict.pt"], HERE / name, pickle_protocol=protocol)
    expected[name] = listing(READ["state_dict.pt"])
torch.serialization.set_crc32_options(False)
torch.save(READ["fisher.pt"], HERE / "no_crc.pt")
expected["no_crc.pt"] = listing(READ["fisher.pt"])
torch.serialization.set_crc32_options(True)
expected["written.pt"] = listing(WRITTEN)
(HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

# What must be refused.

weights = module().state_dict()
torch.save({"state_dict": weights, "epoch": 3}, HERE / "nested.pt")
torch.save({"model": weights, "optimizer": {"state": {}, "lr": 0.1}}, HERE / "nested.legacy.pt",
           _use_new_zipfile_serialization=False)
torch.save(torch.ones(2), HERE / "tensor.pt")
torch.save({"weight": torch.ones(2), "epoch": 3}, HERE / "mixed.pt")


class Malicious:
    """Asks the one who loads it to run a command; harmless even if it were run."""

    def __reduce__(self):
        return os.system, ("echo a pickle was executed",)


torch.save({"weight": Malicious()}, HERE / "malicious.pt")
torch.save({"weight": Malicious()}, HERE / "malicious.legacy.pt", _use_new_zipfile_serialization=False)

with zipfile.ZipFile(HERE / "fisher.pt") as good:
    with zipfile.ZipFile(HERE / "compressed.pt", "w", zipfile.ZIP_DEFLATED) as bad:
        for entry in good.namelist():
            bad.writestr(zipfile.ZipInfo(entry), good.read(entry), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(HERE / "big_endian.pt", "w") as bad:
        for entry in good.namelist():
            order = entry.endswith("/byteorder")
            bad.writestr(zipfile.ZipInfo(entry), b"big" if order else good.read(entry))
(HERE / "plain.pkl").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=2))

# What was written by us.

written = HERE / "written.pt"
if written.exists():
    found = torch.load(written, weights_only=True)
    assert isinstance(found, dict) and listing(found) == expected["written.pt"], found
    print("written.pt is as expected")
