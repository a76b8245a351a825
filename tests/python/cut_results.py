"""Cuts a few images and queries from the results of the demo, for the tests: `results/` beside this file.

    python cut_results.py PROJECT      # a folder in which `attrflow run pipelines/demo.toml` ended

Scores, losses and captions are the demo's own. Digests are SHA-256 of what was cut, in place of BLAKE3; `attrflow
audit` would refuse them. Intervals of ranks are those among all images.
"""

import csv
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np

QUERIES = ["apple", "joy"]
OF_EACH = 3  # the first so many images of each query
OUT = Path(__file__).parent / "results"
# Recorded in the manifest, but too large for a fixture.
LEFT_OUT = {"picture", "latents", "moments", "text_embeddings", "weights"}


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def digest(path: Path) -> str:
    parts = [str(file.relative_to(path)).encode() + b"\0" + file.read_bytes() for file in files(path)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in files(path))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def percentile(rank: int, images: int) -> float:
    return 100 * (images - rank) / (images - 1)


def main(project: Path) -> None:
    source = project / "results" / "demo"
    shutil.rmtree(OUT, ignore_errors=True)
    demo = OUT / "demo"
    ranks = {query: np.load(source / f"influence/{query}/rank.npy") for query in QUERIES}
    kept = sorted({int(index) for order in ranks.values() for index in order[:OF_EACH]})
    new = {index: place for place, index in enumerate(kept)}
    images = len(next(iter(ranks.values())))
    both = [*kept, *(images + index for index in kept)]  # images, then mirror images

    (demo / "data/files/images").mkdir(parents=True)
    captions = json.loads((source / "data/files/captions.json").read_text(encoding="utf-8"))
    chosen = [captions["images"][index] for index in kept]
    ids = {image["id"] for image in chosen}
    annotations = [one for one in captions["annotations"] if one["image_id"] in ids]
    write_json(demo / "data/files/captions.json", {"images": chosen, "annotations": annotations})
    for image in chosen:
        shutil.copy(source / "data/files/images" / image["file_name"], demo / "data/files/images")

    def cut(name: str, rows: list[int]) -> None:
        (demo / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(demo / name, np.load(source / name)[rows])

    cut("pretrain_loss/pretrain_loss.npy", both)
    cut("pretrain_loss/pretrain_loss_per_timestep.npy", both)
    for query in QUERIES:
        (demo / f"generate/{query}/images").mkdir(parents=True)
        shutil.copy(source / f"generate/{query}/images/0.png", demo / f"generate/{query}/images")
        cut(f"influence/{query}/influence.npy", kept)
        cut(f"influence/{query}/unlearned_loss.npy", both)
        cut(f"influence/{query}/influence_per_timestep.npy", both)
        order = [new[int(index)] for index in ranks[query] if int(index) in new]
        np.save(demo / f"influence/{query}/rank.npy", np.array(order, dtype=np.int64))

        (demo / f"ranking/{query}").mkdir(parents=True)
        top = json.loads((source / f"ranking/{query}/top.json").read_text(encoding="utf-8"))
        rows = [row for row in top["rows"] if row["index"] in new]
        rows = [
            {**row, "index": new[row["index"]], "rank": place, "percentile": percentile(place, len(kept))}
            for place, row in enumerate(rows, 1)
        ]
        summary = {**top["summary"], "images": len(kept)}
        write_json(demo / f"ranking/{query}/top.json", {**top, "rows": rows, "summary": summary})
        cut(f"ranking/{query}/standard_error.npy", kept)
        with (source / f"ranking/{query}/top.csv").open(encoding="utf-8", newline="") as file:
            lines = [line for line in csv.DictReader(file) if int(line["index"]) in new]
        with (demo / f"ranking/{query}/top.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            for place, line in enumerate(lines, 1):
                index, percent = new[int(line["index"])], percentile(place, len(kept))
                writer.writerow({**line, "rank": place, "index": index, "percentile": percent})

    runs = sorted((project / "cache/runs/demo").glob("*.json"))
    manifests = [json.loads(run.read_text(encoding="utf-8")) for run in runs]
    manifest = [one for one in manifests if "stages" in one][-1]  # one that found all cached may be short
    shown_before = json.loads((source / ".shown.json").read_text(encoding="utf-8"))
    path_of = {(str(Path(path).parent), mark[0]): path for path, mark in shown_before.items()}
    stages, shown = [], {}
    for stage in manifest["stages"]:
        base, _, item = stage["stage"].partition("[")
        if base == "fisher" or (item and item[:-1] not in QUERIES):
            continue
        for port, artifact in stage["outputs"].items():
            path = path_of[f"{base}/{item[:-1]}".rstrip("/"), artifact["digest"]]
            if port not in LEFT_OUT:
                artifact.update(digest=digest(demo / path), size=size(demo / path))
                shown[path] = [artifact["digest"], "0" * 64]
        stages.append(stage)
    # Paths of the machine that ran it say nothing here.
    text = json.dumps({**manifest, "stages": stages}).replace(manifest["root"], "/project")
    write_json(OUT / "manifest.json", json.loads(text))
    write_json(demo / ".shown.json", shown)
    print(f"{size(OUT)} bytes in {OUT}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
