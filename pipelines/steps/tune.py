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


def read_ranks(path):
    """A one-dimensional int64 array of numpy's format, version 1."""
    with open(path, "rb") as file:
        magic = file.read(8)
        assert magic[:7] == b"\x93NUMPY\x01", f"{path}: not a .npy file of version 1"
        header = ast.literal_eval(file.read(int.from_bytes(file.read(2), "little")).decode("latin1"))
        assert header["descr"] == "<i8" and len(header["shape"]) == 1, f"{path}: expected int64 [N], found {header}"
        values = array.array("q")
        values.frombytes(file.read())
    return list(values)


def main(folder):
    found = {}
    for item in (Path(folder) / "influence").iterdir():
        rise, query = item.name.split(",")
        summary = json.loads((item / "summary.json").read_text())
        found.setdefault(float(rise), {})[query] = (read_ranks(item / "rank.npy"), summary)
    rises = sorted(found)
    assert rises, f"{folder}: no influences, expected those of pipelines/tune.toml"
    print("rise  found / predicted  first  mean 1/rank  of the next step's ten  warned")
    for rise, larger in zip(rises, rises[1:] + [None]):
        queries = found[rise]
        places = [ranks.index(PLACES[query]) + 1 for query, (ranks, _) in queries.items()]
        ratios = [summary["query_rise"] / summary["query_rise_predicted"] for _, summary in queries.values()]
        first = sum(place == 1 for place in places)
        mean = sum(1 / place for place in places) / len(places)
        same = ""
        if larger is not None:
            both = [set(queries[query][0][:TOP]) & set(found[larger][query][0][:TOP]) for query in queries]
            same = f"{sum(map(len, both)) / len(both):.1f}"
        warned = sum(bool(summary["warnings"]) for _, summary in queries.values())
        ratio = sum(ratios) / len(ratios)
        print(f"{rise:<5g} {ratio:<18.2f} {first}/{len(places)}    {mean:<12.3f} {same:<23} {warned}")


if __name__ == "__main__":
    main(*sys.argv[1:])
