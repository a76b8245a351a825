"""Ranks training images by the loss that the model has on them: those at the top it knows least.

Usage: least_known.py LOSSES CAPTIONS TABLE
"""

import array
import ast
import csv
import json
import os
import sys


def read_npy(path):
    """A one-dimensional float32 array of numpy's format, version 1."""
    with open(path, "rb") as file:
        magic = file.read(8)
        assert magic[:7] == b"\x93NUMPY\x01", f"{path}: not a .npy file of version 1"
        header = ast.literal_eval(file.read(int.from_bytes(file.read(2), "little")).decode("latin1"))
        assert header["descr"] == "<f4" and len(header["shape"]) == 1, f"{path}: expected float32 [2N], found {header}"
        values = array.array("f")
        values.frombytes(file.read())
    assert len(values) == header["shape"][0], f"{path}: cut short"
    return values


def main(losses, captions, table):
    top = json.loads(os.environ["ATTRFLOW_PARAMS"])["top"]
    losses = read_npy(losses)
    with open(captions) as file:
        dataset = json.load(file)
    images = dataset["images"]
    assert len(losses) == 2 * len(images), f"{len(losses)} losses for {len(images)} images"
    first = {}
    for annotation in dataset["annotations"]:
        first.setdefault(annotation["image_id"], annotation["caption"])
    # Behind the images' losses come those of the images flipped.
    mean = [(plain + flipped) / 2 for plain, flipped in zip(losses, losses[len(images) :])]
    order = sorted(range(len(images)), key=lambda index: (-mean[index], index))
    with open(table, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["rank", "index", "file_name", "loss", "caption"])
        for rank, index in enumerate(order[:top], 1):
            image = images[index]
            rows.writerow([rank, index, image["file_name"], f"{mean[index]:.6f}", first[image["id"]]])


if __name__ == "__main__":
    main(*sys.argv[1:])
