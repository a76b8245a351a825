#!/usr/bin/env python3
"""What a run on a cluster costs beside the same run on this machine, on the loopback Slurm.

    make bench-cluster

Three tables: the units that one command-line process commits in a second; the time of stages of 0.1, 1 and 10 seconds; the
calls of sbatch and squeue. All stages are shell commands. Each run begins with an empty cache, and each figure is the median
of several runs; the sides take turns, so that a slow minute hits them all. Workers, command-line process, controller and nodes
share this machine's cores, so that a ratio says what the cluster adds, not what it gains.

`default` waits are those of a config that sets none, `short` ones those of the tests.
"""

import argparse
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.append(str(ROOT / "tests/slurm"))
from slurm_lab import CLUSTER, WAITS, Lab, shell_stages  # noqa: E402

SIDES = ["local", "default", "short"]


class Bench:
    """Runs of shell commands, on this machine and on the cluster."""

    def __init__(self, lab, attrflow, work, turns):
        self.lab, self.attrflow, self.work, self.turns = lab, attrflow, work, turns

    def project(self, stages, line, workers):
        root = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        (root / "pipelines").mkdir()
        pool = f'[cluster.pools.shell]\nworkers = {workers}\nkinds = ["command"]\n'
        items, text = shell_stages(stages, line)
        for side, waits in [("local", ""), ("default", CLUSTER + pool), ("short", CLUSTER + WAITS + pool)]:
            (root / f"{side}.toml").write_text(items + waits)
            (root / f"pipelines/{side}.toml").write_text(f'config = "../{side}.toml"\n{text}')
        return root

    def run(self, root, side, workers, env):
        """One run from nothing: its seconds, and where they went."""
        for folder in ("cache", "results"):
            shutil.rmtree(root / folder, ignore_errors=True)
        where = ["--backend", "local", "--jobs", str(workers), "--threads", "1"] if side == "local" else []
        argv = [self.attrflow, "run", f"pipelines/{side}.toml", "--json", "--device", "cpu", *where]
        since, begun, done, over = time.time(), time.perf_counter(), [], None
        with open(root / "errors", "w") as errors:
            process = subprocess.Popen(argv, cwd=root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
        for event in process.stdout:
            if '"event":"stage_finished"' in event:
                done.append(time.perf_counter())
            elif '"event":"run_finished"' in event:
                over = time.perf_counter()
        code = process.wait()
        wall = time.perf_counter() - begun
        if code != 0:
            sys.exit(f"{' '.join(map(str, argv))}: exit code {code}\n{(root / 'errors').read_text()}")
        hellos = [hello.stat().st_mtime - since for hello in root.glob("cache/cluster/*/w/*/hello")]
        return {"wall": wall, "rate": (len(done) - 1) / (done[-1] - done[0]), "start": min(hellos, default=0.0), "end": begun + wall - over}

    def compare(self, stages, line, workers, sides=SIDES, env=None):
        """The medians of each side."""
        root = self.project(stages, line, workers)
        runs = {side: [] for side in sides}
        for _ in range(self.turns):
            for side in sides:
                runs[side].append(self.run(root, side, workers, env or self.lab.env))
        shutil.rmtree(root)
        median = lambda of: {what: statistics.median(run[what] for run in of) for what in of[0]}
        return {side: median(of) for side, of in runs.items()}


def table(title, how, head, rows):
    print(f"\n## {title}\n\n{how}\n\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    sys.stdout.flush()


def rates(bench, stages, workers):
    rows = []
    for count in workers:
        found = bench.compare(stages, "echo {param.N} > out", count)
        local = found["local"]
        for side in SIDES[1:]:
            slurm = found[side]
            ratio = slurm["rate"] / local["rate"]
            rows.append([
                count, side, f"{slurm['rate']:.0f}", f"{local['rate']:.0f}", f"{ratio:.2f}", f"{slurm['wall']:.1f} s", f"{local['wall']:.1f} s"
            ])
    how = (
        f"{stages} stages that write a file each. Units a second: all but the first, by the time between the first and the last event "
        "`stage_finished`; workers that begin later than the first are part of that. Local: as many jobs as workers."
    )
    head = ["workers", "waits", "Slurm", "local", "Slurm / local", "wall, Slurm", "wall, local"]
    table("Units a second of one command-line process", how, head, rows)


def overheads(bench, sizes):
    rows = []
    for seconds, stages in sizes:
        found = bench.compare(stages, f"sleep {seconds}; echo {{param.N}} > out", 2)
        local = found["local"]["wall"]
        for side in SIDES[1:]:
            slurm = found[side]
            rows.append([
                f"{stages} of {seconds} s", side, f"{slurm['wall']:.1f} s", f"{local:.1f} s", f"{slurm['wall'] / local:.2f}",
                f"{(slurm['wall'] - slurm['start']) / local:.2f}", f"{slurm['start']:.1f} s", f"{slurm['end']:.1f} s",
            ])
    how = (
        "Two workers, two jobs; wall time of the whole process, as its parent sees it. Start-up: from its start until the first worker "
        "said hello. End: from the event `run_finished`, when all results are there, until the last task has left the queue and the "
        "process ends; it is part of both ratios."
    )
    head = ["stages", "waits", "Slurm", "local", "Slurm / local", "without start-up", "start-up", "end"]
    table("Time of a run", how, head, rows)


def calls(bench, stages, workers):
    """Counts calls by programs of the same names that come first in the path."""
    count = bench.work / "calls"
    for name in ("sbatch", "squeue"):
        program = bench.work / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho {name} >> "{count}"\nexec "{shutil.which(name)}" "$@"\n')
        program.chmod(0o755)
    env = dict(bench.lab.env, PATH=f"{bench.work / 'bin'}:{os.environ['PATH']}")
    rows = []
    for side in SIDES[1:]:
        count.write_text("")
        wall = bench.compare(stages, "sleep 0.01; echo {param.N} > out", workers, [side], env)[side]["wall"]
        made = count.read_text().split()
        rows.append([side, f"{wall:.1f} s", *(f"{made.count(name) / bench.turns:.1f}" for name in ("sbatch", "squeue")), f"{wall / 30 + 2:.1f}"])
    how = (
        f"{stages} stages of 10 ms, {workers} workers. Calls, by run (mean): lines that programs named sbatch and squeue, in front of "
        "Slurm's own in the path, wrote to a file. The last column is what one call in 30 s and two more would be."
    )
    table("Calls of Slurm's programs", how, ["waits", "wall", "sbatch", "squeue", "wall / 30 s + 2"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attrflow", default="target/release/attrflow", help="the program, with its worker beside it")
    parser.add_argument("--turns", type=int, default=3, help="runs of each side")
    parser.add_argument("--only", choices=["rates", "overheads", "calls"], action="append")
    parser.add_argument("--quick", action="store_true", help="few and short stages, once: whether it works, not how fast")
    args = parser.parse_args()
    chosen = args.only or ["rates", "overheads", "calls"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start, {time.strftime('%Y-%m-%d')}")
    work = pathlib.Path(tempfile.mkdtemp(prefix="attrflow-cluster-"))
    try:
        with Lab(work / "lab") as lab:
            version = lab.ask("sbatch", "--version")
            print(f"{version} on loopback; medians of {1 if args.quick else args.turns}")
            bench = Bench(lab, os.path.abspath(args.attrflow), work, 1 if args.quick else args.turns)
            if "rates" in chosen:
                rates(bench, 60 if args.quick else 600, [1, 3] if args.quick else [1, 3, 6])
            if "overheads" in chosen:
                overheads(bench, [(0.1, 20), (1, 4)] if args.quick else [(0.1, 120), (1, 24), (10, 6)])
            if "calls" in chosen:
                calls(bench, 100 if args.quick else 1000, 6)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
