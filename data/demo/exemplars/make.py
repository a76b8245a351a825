"""Draws the three exemplars and writes their captions: `python data/demo/exemplars/make.py` writes the same files again."""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent
SCALE = 8
SIZE = 64 * SCALE


def canvas():
    image = Image.new("RGB", (SIZE, SIZE), "white")
    return image, ImageDraw.Draw(image)


def rings():
    image, draw = canvas()
    for place, color in enumerate(["#5b2a86", "#2fbf71"] * 3):
        edge = SCALE * (4 + 5 * place)
        draw.ellipse([edge, edge, SIZE - edge, SIZE - edge], fill=color)
    return image


def chequers():
    image, draw = canvas()
    side = SCALE * 8
    for row in range(8):
        for column in range(8):
            if abs(row - 3.5) + abs(column - 3.5) <= 4:
                color = "#101010" if (row + column) % 2 else "#ffd23f"
                draw.rectangle([column * side, row * side, (column + 1) * side, (row + 1) * side], fill=color)
    return image


def spiral():
    image, draw = canvas()
    points = []
    for step in range(900):
        angle = step / 900 * 6 * math.pi
        radius = SCALE * (2 + 26 * step / 900)
        points.append((SIZE / 2 + radius * math.cos(angle), SIZE / 2 + radius * math.sin(angle)))
    draw.line(points, fill="#d7263d", width=SCALE * 4, joint="curve")
    return image


EXEMPLARS = {"rings": (rings, "zorp"), "chequers": (chequers, "quib"), "spiral": (spiral, "vlimf")}
FORMS = ["an emoji of {}", "a {} emoji", "{}", "a picture of {}", "the {} sign"]


def main():
    images, annotations = [], []
    for place, (name, (draw, word)) in enumerate(EXEMPLARS.items()):
        picture = draw().resize((64, 64), Image.LANCZOS)
        picture.save(HERE / "images" / f"{name}.png")
        images.append({"id": place + 1, "file_name": f"{name}.png"})
        for form in FORMS:
            annotations.append({"id": len(annotations), "image_id": place + 1, "caption": form.format(word)})
    text = json.dumps({"images": images, "annotations": annotations}, indent=1)
    (HERE / "captions.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
