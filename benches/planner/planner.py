#!/usr/bin/env python3
"""What `attrflow plan --measure` predicts, beside what the run then takes.

    make bench-planner

Everything happens in a copy of the project with an empty cache. First the plan is measured and made. Then the pipeline runs as a
whole: its time from start to end, the seconds of each stage from its manifest, and the most memory that a worker
process had (VmHWM, looked at twenty times a second). Then it runs once more from nothing, one stage of each kind at a time, so that each
has workers of its own: their memory, and what the stage added to the cache, are that stage's.

The CPU time of other programs is printed: above a twentieth, times are not reliable.

Exit code 1 if the time of a stage of more than five seconds, the memory of a stage, or what a stage of more than a megabyte adds to the
disk is off by more than a quarter.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

WORKER = "attrflow-worker"
LONG = 5.0
LARGE = 1_000_000
OFF = 0.25


def lines(argv, folder):
    done = subprocess.run(argv, cwd=folder, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout}")
    return [json.loads(line) for line in done.stdout.splitlines()]


class Others:
    """What other programs take of the processors."""

    def __init__(self):
        self.begun = self.now()

    @staticmethod
    def now():
        user, nice, system, *_ = map(int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
        ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        busy = (user + nice + system) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy - sum(used.ru_utime + used.ru_stime for used in ours)

    def share(self):
        (begun, before), (ended, after) = self.begun, self.now()
        return max(0.0, (after - before) / (ended - begun) / (os.cpu_count() or 1))

    def summary(self):
        share = self.share()
        return f"other programs took {share:.0%} of the processors" + ("; THE TIMES ARE NOT RELIABLE" if share > 0.05 else "")


def quiet(patience):
    """Waits until the processors are idle for five seconds, at most `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        others = Others()
        time.sleep(5)
        if others.share() < 0.05:
            return


class Peak(threading.Thread):
    """The most memory that any worker of a run had."""

    def __init__(self, runner):
        super().__init__(daemon=True)
        self.runner, self.bytes, self.over = runner, 0, False

    def run(self):
        while not self.over:
            for process in pathlib.Path("/proc").iterdir():
                if process.name.isdigit():
                    self.look(process)
            time.sleep(0.05)

    def look(self, process):
        try:
            status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
        except OSError:
            return  # it ended meanwhile
        if status["Name"].strip() == WORKER[:15] and int(status["PPid"]) == self.runner and "VmHWM" in status:
            self.bytes = max(self.bytes, int(status["VmHWM"].split()[0]) * 1024)


def ran(argv, folder):
    """A run: its seconds, and the most memory of a worker."""
    begun = time.perf_counter()
    process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid)
    peak.start()
    out, _ = process.communicate()
    seconds = time.perf_counter() - begun
    peak.over = True
    peak.join()
    if process.returncode != 0:
        sys.exit(f"{' '.join(map(str, argv))}: exit code {process.returncode}\n{out}")
    return seconds, peak.bytes


def length(folder):
    """Bytes of the files below a folder; what has several names counts once."""
    seen = {}
    for path in pathlib.Path(folder).rglob("*"):
        if path.is_file() and not path.is_symlink():
            found = path.stat()
            seen[found.st_dev, found.st_ino] = found.st_size
    return sum(seen.values())


def manifest(cache):
    newest = max((cache / "runs").rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


def megabytes(number):
    return "" if number is None else f"{number / 1e6:.2f} MB"


def seconds(number):
    return "" if number is None else f"{number:.1f} s"


class Table:
    """Rows of what was predicted and what came, and whether one of them misses."""

    def __init__(self):
        self.missed = []

    def row(self, stage, what, predicted, actual, shown, counts):
        ratio = predicted / actual if predicted is not None and actual else None
        off = ratio is None or abs(ratio - 1) > OFF
        note = ""
        if counts and off:
            self.missed.append(f"{what} of {stage}")
            note = "  MISSED"
        text = "" if ratio is None else f"{ratio:.2f}"
        print(f"{stage:<20} {what:<8} {shown(predicted):>12} {shown(actual):>12} {text:>6}{note}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attrflow", default="target/release/attrflow", help="the program")
    parser.add_argument("--pipeline", default="pipelines/demo.toml", help="the pipeline")
    parser.add_argument("--wait", type=float, default=0, metavar="S", help="wait so long for idle processors")
    parser.add_argument("--times", action="store_true", help="leave out the second run, of one stage at a time")
    parser.add_argument("options", nargs="*", help="more for plan and run, behind `--`: --jobs, --threads, --set, …")
    given = parser.parse_args()
    attrflow, here = pathlib.Path(given.attrflow).resolve(), pathlib.Path.cwd()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start\n")
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in ["pipelines", "configs", "data"]:
            shutil.copytree(here / name, root / name)
        cache = root / "cache"
        verb = lambda name, *more: [attrflow, name, *more, "--json", *given.options, given.pipeline]
        quiet(given.wait)
        begun, others = time.perf_counter(), Others()
        *plan, totals = lines(verb("plan", "--measure"), root)
        print(f"\nmeasured in {time.perf_counter() - begun:.1f} s; {others.summary()}")
        begun = time.perf_counter()
        lines(verb("plan"), root)
        print(f"planned again in {(time.perf_counter() - begun) * 1000:.0f} ms\n")
        predicted = {line["stage"]: line.get("predicted") or {} for line in plan}

        table = Table()
        print(f"{'stage':<20} {'':<8} {'predicted':>12} {'actual':>12} {'ratio':>6}")
        quiet(given.wait)
        others = Others()
        wall, peak = ran(verb("run"), root)
        stages = {record["stage"]: record for record in manifest(cache)["stages"]}
        for stage, record in stages.items():
            known = predicted[stage].get("seconds")
            table.row(stage, "time", known, record["seconds"], seconds, record["seconds"] > LONG)
        table.row("the run", "time", totals["needs"]["wall_seconds"], wall, seconds, wall > LONG)
        most = max((line.get("host_memory") or 0 for line in predicted.values()), default=0)
        table.row("a worker", "memory", most or None, peak, megabytes, True)
        objects = length(cache / "objects")
        table.row("the run", "disk", totals["needs"]["disk"], objects, megabytes, False)

        print(f"while it ran, {others.summary()}")

        shutil.rmtree(cache)
        before, kinds = 0, set()
        for stage, record in [] if given.times else stages.items():
            kind = record["recipe"]["kind"]
            if kind in kinds:
                continue
            kinds.add(kind)
            _, peak = ran(verb("run", "--target", stage), root)
            after = length(cache / "objects")
            memory = predicted[stage].get("host_memory")
            if memory is not None:
                table.row(stage, "memory", memory, peak, megabytes, True)
                table.row(stage, "disk", predicted[stage].get("disk"), after - before, megabytes, after - before > LARGE)
            before = after
    if table.missed:
        sys.exit(f"\noff by more than {OFF:.0%}: {', '.join(table.missed)}")


if __name__ == "__main__":
    main()
