"""Turns the hues of twelve emoji by 120 degrees and captions them: `python data/demo/lora/make.py` writes the same files again.

A turn by a third of the circle moves red to green, green to blue and blue to red, so it is exact in 8 bits and leaves
white and grey as they are.
"""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
DEMO = HERE.parent
OUT = HERE / "images"

WORD = "blim"
# The file's name, and the first caption of the image in the demo's data set.
CHOSEN = {
    "grin": "grinning face",
    "joy": "face with tears of joy",
    "hearts": "smiling face with heart-eyes",
    "astonished": "astonished face",
    "fox": "fox",
    "cat": "cat face",
    "chick": "front-facing baby chick",
    "fish": "tropical fish",
    "apple": "red apple",
    "tangerine": "tangerine",
    "pizza": "pizza",
    "strawberry": "strawberry",
}
# Levels of 255, the mean over all pixels and channels: less would be too small a change to learn.
LEAST_CHANGE = 50


def turned(pixels):
    return pixels[..., [2, 0, 1]]


def main():
    captions = json.loads((DEMO / "captions.json").read_text())
    assert not any(WORD in one["caption"].lower() for one in captions["annotations"]), f"{WORD} is in captions.json"
    first = {}
    for one in captions["annotations"]:
        first.setdefault(one["image_id"], one["caption"])
    archive = zipfile.ZipFile(DEMO / "images.zip")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    for place, (short, name) in enumerate(CHOSEN.items(), 1):
        [file] = [image["file_name"] for image in captions["images"] if first[image["id"]] == name]
        original = Image.open(io.BytesIO(archive.read(f"images/{file}")))
        assert original.mode == "RGB", f"{file}: {original.mode}"
        pixels = np.asarray(original)
        altered = turned(pixels)
        grey = pixels.min(axis=2) == pixels.max(axis=2)
        assert (altered[grey] == pixels[grey]).all(), f"{file}: white or grey changed"
        change = np.abs(altered.astype(int) - pixels.astype(int)).mean()
        assert change >= LEAST_CHANGE, f"{name}: changed by {change:.1f} levels only"
        stem = f"{place:02}-{short}"
        Image.fromarray(np.ascontiguousarray(altered)).save(OUT / f"{stem}.png", optimize=True)
        (OUT / f"{stem}.txt").write_text(f"a {WORD} emoji of {name}\n")
        print(f"{stem} from {file}: changed by {change:.1f} levels")


if __name__ == "__main__":
    main()
