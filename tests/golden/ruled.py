"""Weights by a rule, and digests of sets of tensors too large to commit. The other half is tests/numerics/ruled.rs.

The rule: the tensor at place i of the names in sorted order is a `randn` of its shape from a generator seeded 1000 + i,
- with more than one dimension: over the square root of the fan-in, which is the number of values of an output;
- with one dimension and a name that ends in `weight` (norms): a tenth of it, plus one;
- else (biases): a tenth of it.

A digest of T tensors, sorted by name:
- `samples` [T, K]: values at even steps through the flat tensor, filled up with zeros;
- `peaks`, `norms` [T]: the largest absolute value, the Euclidean norm;
- `projections` [T]: the product with cos(0), cos(1), cos(2), ...: it changes with any value and any order.
"""

import json

import torch
from safetensors.torch import save_file

from plain import seeded


def normal(*shape, seed):
    return torch.randn(shape, generator=seeded(seed))


@torch.no_grad()
def fill(module):
    """Gives a module the weights of the rule, and returns them by name."""
    state = module.state_dict()
    for i, name in enumerate(sorted(state)):
        value = torch.randn(state[name].shape, generator=seeded(1000 + i))
        if value.dim() > 1:
            value = value / value[0].numel() ** 0.5
        elif name.endswith("weight"):
            value = value * 0.1 + 1
        else:
            value = value * 0.1
        state[name].copy_(value)
    return state


def sampled(x, count):
    """`count` values at even steps through the flat tensor, or all of a small one and zeros."""
    x = x.detach().reshape(-1)
    some = x[:: max(1, len(x) // count)][:count]
    return torch.cat([some, some.new_zeros(count - len(some))])


def digest(tensors, count):
    """The digest of named tensors, as the head of this file says."""
    out = {"samples": [], "peaks": [], "norms": [], "projections": []}
    for name in sorted(tensors):
        x = tensors[name].detach().double().reshape(-1)
        out["samples"].append(sampled(tensors[name], count).float())
        out["peaks"].append(x.abs().max())
        out["norms"].append(x.norm())
        out["projections"].append(x @ torch.arange(len(x), dtype=torch.float64).cos())
    return {key: torch.stack(values) for key, values in out.items()}


def save(folder, module, out, count=4):
    """Writes the shapes, the digest of the weights, and `out`, where a dict is replaced by the digest's entries."""
    state = module.state_dict()
    shapes = [f"{json.dumps(name)}: {list(state[name].shape)}" for name in sorted(state)]
    (folder / "shapes.json").write_text("{\n" + ",\n".join(shapes) + "\n}\n")
    flat = {}
    for key, value in ({"weights": digest(state, count)} | out).items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    save_file({key: value.contiguous() for key, value in flat.items()}, folder / "expected.safetensors")
