#!/usr/bin/env python3
"""attrflow beside Ninja, Snakemake and DVC: the same graphs, one after the other, and their ratios.

    make bench-runners                     all but what takes minutes
    make bench-runners RUNNERS=--full      DVC's thousand stages too (about an hour)

A graph of N stages is N/10 chains of ten. A stage is one shell that reads a line, adds to it and writes it to a file.
`no-op` is a run in which nothing changed, `cold` one in which nothing was there yet. Times are wall seconds of the whole
process as its parent sees it, the median of several; the runners take turns, so that a slow minute hits them all.
"""

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

JOBS = os.cpu_count() or 1
STEP = 'read -r x < "{0}"; echo "$x." > "{1}"'


def chains(stages):
    """The stages as (chain, step, what it reads, what it writes); `None` is the source."""
    for chain in range(max(1, stages // 10)):
        for step in range(min(10, stages)):
            yield chain, step, (f"c{chain}s{step - 1}" if step else None), f"c{chain}s{step}"


def timed(argv, folder, **options):
    begun = time.perf_counter()
    done = subprocess.run(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    seconds = time.perf_counter() - begun
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, argv))} in {folder}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return seconds, done.stdout


class Runner:
    """A runner in a folder of its own."""

    def __init__(self, program, folder):
        self.program = program
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        (self.folder / "source.txt").write_text("0\n")

    def clean(self):
        """Back to where nothing was ever run."""
        for path in self.made:
            path = self.folder / path
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def run(self):
        return timed(self.argv, self.folder)[0]

    def outputs(self):
        """What the last stage of the first chain wrote."""
        return next(path for path in self.folder.rglob("c0s9") if path.is_file())


class Attrflow(Runner):
    name = "attrflow"
    made = ["cache", "results"]

    def write(self, stages):
        text = ""
        for _, _, read, made in chains(stages):
            source = f'"{read}.out"' if read else '"../source.txt"'
            shell = STEP.format("$1", "$2").replace('"', '\\"')
            text += (
                f'[stages.{made}]\nkind = "command"\ninputs = {{ line = {source} }}\n'
                f'[stages.{made}.params]\noutputs = {{ out = "{made}" }}\n'
                f'argv = ["sh", "-c", "{shell}", "sh", "{{input.line}}", "{{output.out}}"]\n\n'
            )
        (self.folder / "pipelines").mkdir()
        (self.folder / "pipelines/bench.toml").write_text(text)
        self.argv = [self.program, "run", "pipelines/bench.toml", "--device", "cpu"]

    def plan(self):
        return timed([self.program, "plan", "pipelines/bench.toml", "--device", "cpu"], self.folder)[0]

    def ran(self):
        """Stages that a run computes now, from its own events."""
        _, events = timed([*self.argv, "--json"], self.folder)
        return sum(json.loads(line).get("event") == "stage_started" for line in events.splitlines())


class Ninja(Runner):
    name = "Ninja"

    def write(self, stages):
        step = STEP.format("$in", "$out").replace("$x", "$$x")
        text = f"rule step\n  command = {step}\n"
        for _, _, read, made in chains(stages):
            text += f"build {made}: step {read or 'source.txt'}\n"
        (self.folder / "build.ninja").write_text(text)
        self.made = [".ninja_log", ".ninja_deps", *(made for *_, made in chains(stages))]
        self.argv = [self.program, f"-j{JOBS}"]

    def plan(self):
        return timed([*self.argv, "-n"], self.folder)[0]


class Snakemake(Runner):
    name = "Snakemake"

    def write(self, stages):
        text = "rule all:\n    input:\n"
        text += "".join(f'        "{made}",\n' for _, step, _, made in chains(stages) if step == min(10, stages) - 1)
        for _, _, read, made in chains(stages):
            shell = STEP.format("{input}", "{output}")
            text += f'rule {made}_:\n    input: "{read or "source.txt"}"\n    output: "{made}"\n    shell: \'{shell}\'\n'
        (self.folder / "Snakefile").write_text(text)
        self.made = [".snakemake", *(made for *_, made in chains(stages))]
        self.argv = [self.program, "--cores", str(JOBS), "--quiet", "all"]

    def plan(self):
        return timed([*self.argv, "-n"], self.folder)[0]


class Dvc(Runner):
    name = "DVC"

    def write(self, stages):
        text = "stages:\n"
        for _, _, read, made in chains(stages):
            source = read or "source.txt"
            text += f"  {made}:\n    cmd: '{STEP.format(source, made)}'\n    deps: [{source}]\n    outs: [{made}]\n"
        (self.folder / "dvc.yaml").write_text(text)
        timed([self.program, "init", "--no-scm", "-q"], self.folder)
        timed([self.program, "config", "core.analytics", "false"], self.folder)
        self.made = ["dvc.lock", ".dvc/cache", ".dvc/tmp", *(made for *_, made in chains(stages))]
        self.argv = [self.program, "repro", "-q"]

    def plan(self):
        return timed([self.program, "status", "-q"], self.folder)[0]


def table(title, rows, head):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, *rows]
    print(f"\n{title}")
    for line in lines:
        print("  " + "  ".join(str(cell).ljust(w) if i == 0 else str(cell).rjust(w) for i, (cell, w) in enumerate(zip(line, widths))))


def shown(seconds):
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def compare(title, times, against):
    """A row per runner: its median, its extremes, and our time over its."""
    ours = statistics.median(times["attrflow"])
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        rows.append([name, shown(median), shown(min(seconds)), shown(max(seconds)), f"{ours / median:.3f}"])
    table(title, rows, ["", "median", "least", "most", "attrflow / it"])
    if against:
        name, bound = against
        ratio = ours / statistics.median(times[name])
        print(f"  attrflow / {name}: {ratio:.2f} (wanted: at most {bound})")


def graphs(programs, work, full):
    for stages, repeat_cold, repeat_noop in [(10, 5, 11), (100, 3, 11), (1000, 3, 11)]:
        runners = []
        for kind in (Attrflow, Ninja, Snakemake, Dvc):
            if programs.get(kind.name) is None or (kind is Dvc and stages == 1000 and not full):
                continue
            runner = kind(programs[kind.name], work / f"{kind.name}-{stages}")
            runner.write(stages)
            runners.append(runner)
        cold = {runner.name: [] for runner in runners}
        slow = {"Snakemake", "DVC"}
        for turn in range(repeat_cold):
            for runner in runners:
                if turn and runner.name in slow and stages > 10:
                    continue
                runner.clean()
                cold[runner.name].append(runner.run())
        results = {runner.name: runner.outputs().read_text() for runner in runners}
        if len(set(results.values())) != 1:
            sys.exit(f"the runners wrote different bytes: {results}")
        compare(f"cold, {stages} stages", cold, ("Ninja", 1.3) if stages == 1000 else None)
        noop = {runner.name: [] for runner in runners}
        for turn in range(repeat_noop):
            for runner in runners:
                if runner.name in slow and turn >= 3:
                    continue
                noop[runner.name].append(runner.run())
        compare(f"no-op, {stages} stages", noop, ("Ninja", 2) if stages == 1000 else None)
        if stages == 1000:
            print(f"  attrflow's median: {shown(statistics.median(noop['attrflow']))} (wanted: at most 20 ms)")
        for runner in runners:
            shutil.rmtree(runner.folder)


def plans(programs, work):
    runners = []
    for kind in (Attrflow, Ninja):
        runner = kind(programs[kind.name], work / f"{kind.name}-plan")
        runner.write(10_000)
        runners.append(runner)
    def measure(title):
        times = {runner.name: [] for runner in runners}
        for _ in range(7):
            for runner in runners:
                times[runner.name].append(runner.plan())
        compare(title, times, None)
        print(f"  attrflow's median: {shown(statistics.median(times['attrflow']))} (wanted: under 200 ms)")

    measure("plan of 10,000 stages, none ever run")
    compare("cold, 10,000 stages", {runner.name: [runner.run()] for runner in runners}, None)
    measure("plan of 10,000 stages, right after their first run")
    # What was written a moment ago is not remembered: the clock's tick could hide a later change.
    time.sleep(1)
    for which in ("first", "second", "third"):
        compare(f"no-op, 10,000 stages, the {which}", {runner.name: [runner.run()] for runner in runners}, None)
        time.sleep(1)
    measure("plan of 10,000 stages, after runs that found them done")
    for runner in runners:
        shutil.rmtree(runner.folder)


def source(programs, work, gib):
    """A large source: hashed at b3sum's speed, and not again until it is touched."""
    ours = Attrflow(programs["attrflow"], work / "source")
    ours.write(1)
    big = ours.folder / "source.txt"
    block = os.urandom(1 << 24)
    with open(big, "wb") as file:
        file.write(b"0\n")
        for _ in range(gib * 64):
            file.write(block)
    # A file that changed a moment ago is hashed again next time, as it may change within one tick of the clock.
    time.sleep(3)
    rows = []
    first, peer = [], []
    for _ in range(3):
        ours.clean()
        first.append(ours.run())
        if programs.get("b3sum"):
            peer.append(timed([programs["b3sum"], str(big)], ours.folder)[0])
    rows.append(["first run", shown(statistics.median(first)), ""])
    if peer:
        b3sum = statistics.median(peer)
        rows.append(["b3sum", shown(b3sum), f"{statistics.median(first) / b3sum:.2f}"])
    noop = statistics.median([ours.run() for _ in range(7)])
    rows.append(["no-op (wanted: under 20 ms)", shown(noop), ""])
    os.utime(big)
    time.sleep(3)
    stages = ours.ran()
    os.utime(big)
    time.sleep(3)
    touched = ours.run()
    rows.append([f"touched, stages that ran: {stages}", shown(touched), f"{touched / b3sum:.2f}" if peer else ""])
    rows.append(["no-op after it", shown(ours.run()), ""])
    table(f"a source of {gib} GiB", rows, ["", "time", "/ b3sum"])
    shutil.rmtree(ours.folder)


def publish(programs, work, gib):
    """A large output: its bytes are on the disk once, in the cache and in results/ alike."""
    ours = Attrflow(programs["attrflow"], work / "publish")
    ours.write(1)
    text = (ours.folder / "pipelines/bench.toml").read_text()
    shell = f"head -c {gib << 30} /dev/zero | tr '\\\\\\\\0' x > \\\"$2\\\""
    (ours.folder / "pipelines/bench.toml").write_text(text.replace(STEP.format("$1", "$2").replace('"', '\\"'), shell))
    before = shutil.disk_usage(work).used
    seconds = ours.run()
    grown = shutil.disk_usage(work).used - before
    bare = timed(["sh", "-c", f"head -c {gib << 30} /dev/zero | tr '\\\\0' x > bare"], work)[0]
    (work / "bare").unlink()
    table(
        f"an output of {gib} GiB",
        [["attrflow", shown(seconds), f"{grown / (gib << 30):.2f}"], ["the bare command", shown(bare), "1"]],
        ["", "time", "disk / bytes"],
    )
    shutil.rmtree(ours.folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attrflow", required=True, help="the program, release build")
    parser.add_argument("--ninja", default=shutil.which("ninja"))
    parser.add_argument("--snakemake", default=shutil.which("snakemake"))
    parser.add_argument("--dvc", default=shutil.which("dvc"))
    parser.add_argument("--b3sum", default=shutil.which("b3sum"))
    parser.add_argument("--only", choices=["graphs", "plan", "source", "publish"], action="append")
    parser.add_argument("--without", choices=["Snakemake", "DVC", "b3sum"], action="append", default=[])
    parser.add_argument("--gib", type=int, default=4, help="size of the large source")
    parser.add_argument("--full", action="store_true", help="DVC at 1,000 stages too")
    parser.add_argument("--work", help="where the graphs are made [default: a temporary folder]")
    args = parser.parse_args()
    programs = {"attrflow": os.path.abspath(args.attrflow), "Ninja": args.ninja, "Snakemake": args.snakemake, "DVC": args.dvc, "b3sum": args.b3sum}
    programs = {name: None if name in args.without else program for name, program in programs.items()}
    if not args.ninja:
        sys.exit("ninja is missing: expected it in the PATH or as --ninja PROGRAM")
    for name, program in programs.items():
        if program is None:
            print(f"{name} is not here and is left out")
    print(f"{JOBS} cores, {platform.machine()}, {platform.system()} {platform.release()}, {time.strftime('%Y-%m-%d')}")
    work = pathlib.Path(tempfile.mkdtemp(prefix="attrflow-runners-", dir=args.work))
    try:
        chosen = args.only or ["graphs", "plan", "source", "publish"]
        if "graphs" in chosen:
            graphs(programs, work, args.full)
        if "plan" in chosen:
            plans(programs, work)
        if "source" in chosen:
            source(programs, work, args.gib)
        if "publish" in chosen:
            publish(programs, work, 1)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
