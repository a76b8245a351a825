"""Compares the steps of pipelines/tune.toml: `python3 pipelines/steps/tune.py results/tune`.

One row for each rise: the rise that was found, how many queries (training images) rank themselves first, the mean of 1/rank, how many of
the first ten are those of the next larger step, and how many queries were warned of.
"""

import array
import ast
import json
import sys
from pathlib import Path

TOP = 10
# The rows of the queries in the data set, as in configs/demo.toml.
PLACES = {"alien": 115, "ewe": 205, "flamingo": 250, "peach": 340, "taco": 385}


def read(path, dtype, code):
    """A one-dimensional array of numpy's format, version 1."""
    with open(path, "rb") as file:
        magic = file.read(8)
        assert magic[:7] == b"\x93NUMPY\x01", f"{path}: not a .npy file of version 1"
        header = ast.literal_eval(file.read(int.from_bytes(file.read(2), "little")).decode("latin1"))
        assert header["descr"] == dtype and len(header["shape"]) == 1, f"{path}: expected {dtype} [N], found {header}"
        values = array.array(code)
        values.frombytes(file.read())
    return list(values)


def read_rises(path):
    """The found and the predicted rise, from the metadata of a safetensors file."""
    with open(path, "rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    return float(metadata["query_rise"]), float(metadata["query_rise_predicted"])


def main(folder):
    found = {}
    for item in (Path(folder) / "influence").iterdir():
        rise, query = item.name.split(",")
        rises = read_rises(Path(folder) / "unlearn" / item.name / "unlearned.safetensors")
        scores = sorted(read(item / "influence.npy", "<f4", "f"))
        # The warnings of `influence`: the step is too large for the gradient to tell, or the whole model became worse.
        warned = not 0.1 <= rises[0] / rises[1] <= 10 or scores[len(scores) // 2] > rises[0] / 2
        found.setdefault(float(rise), {})[query] = (read(item / "rank.npy", "<i8", "q"), rises, warned)
    rises = sorted(found)
    assert rises, f"{folder}: no influences, expected those of pipelines/tune.toml"
    print("rise  found / predicted  first  mean 1/rank  of the next step's ten  warned")
    for rise, larger in zip(rises, rises[1:] + [None]):
        queries = found[rise]
        places = [ranks.index(PLACES[query]) + 1 for query, (ranks, *_) in queries.items()]
        ratios = [rises[0] / rises[1] for _, rises, _ in queries.values()]
        first = sum(place == 1 for place in places)
        mean = sum(1 / place for place in places) / len(places)
        same = ""
        if larger is not None:
            first_ten = lambda rise, query: set(found[rise][query][0][:TOP])
            both = [first_ten(rise, query) & first_ten(larger, query) for query in queries if query in found[larger]]
            same = f"{sum(map(len, both)) / len(both):.1f}"
        warned = sum(warned for *_, warned in queries.values())
        ratio = sum(ratios) / len(ratios)
        print(f"{rise:<5g} {ratio:<18.2f} {first}/{len(places)}    {mean:<12.3f} {same:<23} {warned}")


if __name__ == "__main__":
    main(*sys.argv[1:])
