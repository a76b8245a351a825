"""Small training sets written by the field's own libraries: tests/golden/dataset/.

    python tests/golden/make_dataset.py     (packages: tests/golden/requirements.txt)

- `hub/`: parquet as `datasets` writes it for `push_to_hub`: images as bytes, lists of captions, two shards.
- `imagefolder/`: images with metadata.jsonl, which `datasets` reads back into the same rows.
"""

import io
import json
import shutil
import zipfile
from pathlib import Path

import datasets
from PIL import Image

HERE = Path(__file__).parent
DEMO = HERE.parents[1] / "data/demo"
OUT = HERE / "dataset"
COUNT = 6


def rows():
    captions = json.loads((DEMO / "captions.json").read_text())
    archive = zipfile.ZipFile(DEMO / "images.zip")
    for image in captions["images"][:COUNT]:
        texts = [one["caption"] for one in captions["annotations"] if one["image_id"] == image["id"]]
        yield image["file_name"], archive.read(f"images/{image['file_name']}"), texts


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    folder = OUT / "imagefolder"
    folder.mkdir(parents=True)
    with open(folder / "metadata.jsonl", "w") as table:
        for name, data, texts in rows():
            (folder / name).write_bytes(data)
            table.write(json.dumps({"file_name": name, "text": texts}) + "\n")
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Sequence(datasets.Value("string"))})
    listed = [{"image": {"bytes": data, "path": name}, "text": texts} for name, data, texts in rows()]
    written = datasets.Dataset.from_list(listed, features=features)
    for shard in range(2):
        file = OUT / f"hub/data/train-0000{shard}-of-00002.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        written.shard(2, shard, contiguous=True).to_parquet(file)
    # `datasets` reads the folder as we mean it.
    read = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    for row, (_, data, texts) in zip(read, rows(), strict=True):
        assert list(row["text"]) == texts and row["image"].convert("RGB").tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


if __name__ == "__main__":
    main()
