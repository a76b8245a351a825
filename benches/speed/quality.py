"""What shorter products do to a ranking: the demo's influences in each precision beside those in float32.

Runs pipelines/demo.toml on a GPU once for each precision (what comes before the losses is computed once), and compares
each query's influences: rank correlation (Spearman), how many of the top 10 are the same, the largest deviation by the
spread of the influences.

    python benches/speed/quality.py --attrflow PATH [--device cuda] [--out FILE.json]
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def ranks(x):
    order = np.empty(len(x))
    order[np.argsort(-x, kind="stable")] = np.arange(len(x))
    return order


def run(options, precision):
    command = [options.attrflow, "run", "pipelines/demo.toml", "--device", options.device]
    begun = time.perf_counter()
    done = subprocess.run(command + ["--set", f"loss.precision={precision}"], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    for line in done.stderr.splitlines():
        if "warn" in line.lower() or "error" in line.lower():
            print(line)
    assert done.returncode == 0, done.stderr
    folder = ROOT / "results/demo/influence"
    found = {query.name: np.load(query / "influence.npy") for query in sorted(folder.iterdir())}
    return seconds, found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--attrflow", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out")
    options = parser.parse_args()
    options.attrflow = str(Path(options.attrflow).resolve())
    seconds, exact = run(options, "fp32")
    print(f"the demo in fp32 from its cache or from nothing: {seconds:.0f} s")
    table = dict(fp32=dict(seconds=seconds))
    for precision in ("tf32", "bf16"):
        seconds, found = run(options, precision)
        table[precision] = dict(seconds=seconds)
        for query, influence in found.items():
            true = exact[query]
            row = dict(
                spearman=float(np.corrcoef(ranks(influence), ranks(true))[0, 1]),
                top10=len(set(np.argsort(-influence)[:10]) & set(np.argsort(-true)[:10])),
                deviation=float(np.abs(influence - true).max() / true.std()),
            )
            table[precision][query] = row
            print(f"{precision} {query:8} Spearman {row['spearman']:.5f}  top 10 shared {row['top10']:2}  "
                  f"largest deviation {row['deviation']:.4f} of the spread", flush=True)
    if options.out:
        Path(options.out).write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
