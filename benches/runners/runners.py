#!/usr/bin/env python3
"""attrflow beside Ninja, Snakemake and DVC: the same graphs, one after the other, and their ratios.

    make bench-runners                     all but what takes minutes
    make bench-runners RUNNERS=--full      DVC's thousand stages too (about an hour)
    make bench-runners RUNNERS=--large     100,000 stages instead (about half an hour, 2 GB of disk)
    make bench-runners RUNNERS=--calls     the system calls of a stage instead, by strace (a minute)

A graph of N stages is N/10 chains of ten. A stage is one shell that reads a line, adds to it and writes it to a file.
`no-op` is a run in which nothing changed, `cold` one in which nothing was there yet. Wall time is that of the whole process as
its parent sees it, processor time that of the process and all that it started; of several runs, the median. The runners take
turns, so that a slow minute hits them all. Each cold run has a folder of its own, and nothing is removed before all are done:
ext4 makes files slowly for some seconds after others were removed.
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
from typing import NamedTuple

JOBS = os.cpu_count() or 1
MEMORY = pathlib.Path("/dev/shm")
STEP = 'read -r x < "{0}"; echo "$x." > "{1}"'


def chains(stages):
    """The stages as (chain, step, what it reads, what it writes); `None` is the source."""
    for chain in range(max(1, stages // 10)):
        for step in range(min(10, stages)):
            yield chain, step, (f"c{chain}s{step - 1}" if step else None), f"c{chain}s{step}"


class Took(NamedTuple):
    """What a process took, with all that it started."""

    wall: float
    processor: float
    # The most that one of the processes had.
    bytes: int


def measured(argv, folder):
    with tempfile.TemporaryFile("w+") as out:
        begun = time.perf_counter()
        process = subprocess.Popen(argv, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        if process.returncode != 0:
            sys.exit(f"{' '.join(map(str, argv))} in {folder}: exit code {process.returncode}\n{out.read()}")
        return Took(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def timed(argv, folder):
    return measured(argv, folder).wall


class Runner:
    """A runner in a folder of its own."""

    # At any number of jobs, and in memory too.
    quick = False

    def __init__(self, program, folder, jobs=JOBS):
        self.program = program
        self.jobs = jobs
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True)
        (self.folder / "source.txt").write_text("0\n")

    def measure(self):
        return measured(self.argv, self.folder)

    def run(self):
        return self.measure().wall

    def outputs(self):
        """What the last stage of the first chain wrote."""
        return next(path for path in self.folder.rglob("c0s9") if path.is_file())


class Attrflow(Runner):
    name = "attrflow"
    quick = True

    def clean(self):
        """Back to where nothing was ever run; what was there is moved aside, not removed."""
        aside = pathlib.Path(tempfile.mkdtemp(prefix="aside-", dir=self.folder))
        for name in ("cache", "results"):
            (self.folder / name).rename(aside / name)

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
        self.argv = [self.program, "run", "pipelines/bench.toml", "--device", "cpu", f"-j{self.jobs}"]

    def plan(self):
        return timed([self.program, "plan", "pipelines/bench.toml", "--device", "cpu"], self.folder)

    def ran(self):
        """Stages that a run computes now, from its own events."""
        events = subprocess.run([*self.argv, "--json"], cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True).stdout
        return sum(json.loads(line).get("event") == "stage_started" for line in events.splitlines())


class Ninja(Runner):
    name = "Ninja"
    quick = True

    def write(self, stages):
        step = STEP.format("$in", "$out").replace("$x", "$$x")
        text = f"rule step\n  command = {step}\n"
        for _, _, read, made in chains(stages):
            text += f"build {made}: step {read or 'source.txt'}\n"
        (self.folder / "build.ninja").write_text(text)
        self.argv = [self.program, f"-j{self.jobs}"]

    def plan(self):
        return timed([*self.argv, "-n"], self.folder)


class Snakemake(Runner):
    name = "Snakemake"

    def write(self, stages):
        text = "rule all:\n    input:\n"
        text += "".join(f'        "{made}",\n' for _, step, _, made in chains(stages) if step == min(10, stages) - 1)
        for _, _, read, made in chains(stages):
            shell = STEP.format("{input}", "{output}")
            text += f'rule {made}_:\n    input: "{read or "source.txt"}"\n    output: "{made}"\n    shell: \'{shell}\'\n'
        (self.folder / "Snakefile").write_text(text)
        self.argv = [self.program, "--cores", str(self.jobs), "--quiet", "all"]

    def plan(self):
        return timed([*self.argv, "-n"], self.folder)


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
        self.argv = [self.program, "repro", "-q"]

    def plan(self):
        return timed([self.program, "status", "-q"], self.folder)


def table(title, rows, head):
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, *rows]
    print(f"\n{title}")
    for line in lines:
        print("  " + "  ".join(str(cell).ljust(w) if i == 0 else str(cell).rjust(w) for i, (cell, w) in enumerate(zip(line, widths))))


def shown(seconds):
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def compare(title, took, bound=None):
    """A row per runner: medians and extremes, and ours over its; `bound`: what our wall time over Ninja's is to be at most."""
    median = {name: [statistics.median(values) for values in zip(*some)] for name, some in took.items()}
    ours = median["attrflow"]
    rows = []
    for name, some in took.items():
        walls = [one.wall for one in some]
        wall, processor, _ = median[name]
        ratios = [f"{ours[0] / wall:.2f}", f"{ours[1] / processor:.2f}" if processor else "-"]
        rows.append([name, *map(shown, (wall, min(walls), max(walls), processor)), *ratios])
    table(title, rows, ["", "wall", "least", "most", "processor", "attrflow / it", "of processor time"])
    if bound:
        print(f"  attrflow / Ninja: {ours[0] / median['Ninja'][0]:.2f} (wanted: at most {bound})")


def made(programs, folder, kinds, stages, jobs):
    """New runners, each with the graph in a new folder."""
    runners = [kind(programs[kind.name], folder / kind.name, jobs) for kind in kinds]
    for runner in runners:
        runner.write(stages)
    return runners


def graphs(programs, works, full):
    here = [kind for kind in (Attrflow, Ninja, Snakemake, Dvc) if programs.get(kind.name)]
    for place, work in works.items():
        for stages, cold_turns, noop_turns in [(10, 5, 11), (100, 3, 11), (1000, 5, 11)]:
            for jobs in sorted({1, 2, JOBS}):
                kinds = [kind for kind in here if kind.quick or (place == "disk" and jobs == JOBS)]
                if stages == 1000 and not full:
                    kinds = [kind for kind in kinds if kind is not Dvc]
                graph(programs, work / f"{stages}-{jobs}", kinds, (stages, jobs, place), (cold_turns, noop_turns))


def graph(programs, work, kinds, what, turns):
    stages, jobs, place = what
    cold_turns, noop_turns = turns
    title = f"{stages} stages, -j{jobs}, {place}"
    cold = {kind.name: [] for kind in kinds}
    for turn in range(cold_turns):
        some = [kind for kind in kinds if kind.quick or turn == 0 or stages == 10]
        runners = made(programs, work / str(turn), some, stages, jobs)
        for runner in runners:
            cold[runner.name].append(runner.measure())
        if turn == 0:
            first = runners
    results = {runner.name: runner.outputs().read_text() for runner in first}
    if len(set(results.values())) != 1:
        sys.exit(f"the runners wrote different bytes: {results}")
    compare(f"cold, {title}", cold, {1: 1.5, 2: 1.3}.get(jobs) if stages == 1000 else None)
    # What was written a moment ago is not remembered: the clock's tick could hide a later change.
    time.sleep(1)
    for runner in first:
        runner.run()
    time.sleep(1)
    noop = {runner.name: [] for runner in first}
    for turn in range(noop_turns):
        for runner in first:
            if runner.quick or turn < 3:
                noop[runner.name].append(runner.measure())
    compare(f"no-op, {title}", noop, 1.5 if stages == 1000 else None)
    if stages == 1000:
        print(f"  attrflow's median: {shown(statistics.median(one.wall for one in noop['attrflow']))} (wanted: at most 20 ms)")


def large(programs, work):
    """100,000 stages."""
    ours, ninja = runners = made(programs, work / "large", (Attrflow, Ninja), 100_000, JOBS)
    print(f"\n100,000 stages, -j{JOBS}, on disk")
    print(f"  plan, never run: {shown(ours.plan())} (wanted: at most 1 s), Ninja {shown(ninja.plan())}")
    took, its = (runner.measure() for runner in runners)
    ratio = f"attrflow / Ninja: {took.wall / its.wall:.2f} (wanted: at most 1.3), of processor time {took.processor / its.processor:.2f}"
    print(f"  cold: {shown(took.wall)}, Ninja {shown(its.wall)}; {ratio}")
    print(f"  most memory of a process: {took.bytes / 1e6:.0f} MB (wanted: at most 500)")
    time.sleep(1)
    print(f"  plan, after it: {shown(ours.plan())}, Ninja {shown(ninja.plan())}")
    for which in ("first", "second"):
        took, its = (runner.measure() for runner in runners)
        aim = " (wanted: at most 3 s)" if which == "first" else ""
        print(f"  no-op, the {which}: {shown(took.wall)}{aim}, {took.bytes / 1e6:.0f} MB, Ninja {shown(its.wall)}")
        time.sleep(1)


def calls(programs, work):
    """The system calls of a stage: those of 300 stages less those of 100, so that what a run does once is not among them."""
    if not shutil.which("strace"):
        sys.exit("strace is missing: expected it in the PATH")
    count = {}
    for stages in (100, 300):
        for runner in made(programs, work / f"calls-{stages}", (Attrflow, Ninja), stages, 1):
            file = runner.folder / "calls.txt"
            subprocess.run(["strace", "-f", "-c", "-o", file, *runner.argv], cwd=runner.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            rows = (line.split() for line in file.read_text().splitlines()[2:])
            count[runner.name, stages] = {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[3].isdigit() and row[-1] != "total"}
    rate = {name: lambda call, name=name: (count[name, 300].get(call, 0) - count[name, 100].get(call, 0)) / 200 for name in ("attrflow", "Ninja")}
    names = sorted(count["attrflow", 300] | count["Ninja", 300], key=lambda call: -rate["attrflow"](call))
    rows = [[call, *(f"{of(call):.1f}" for of in rate.values())] for call in names if any(of(call) >= 0.05 for of in rate.values())]
    rows.append(["all", *(f"{sum(of(call) for call in names):.0f}" for of in rate.values())])
    table("system calls of a stage, with those of its shell", rows, ["", *rate])


def plans(programs, work):
    runners = made(programs, work / "plan", (Attrflow, Ninja), 10_000, JOBS)

    def measure(title):
        times = {runner.name: [] for runner in runners}
        for _ in range(7):
            for runner in runners:
                times[runner.name].append(runner.plan())
        ours, its = (statistics.median(some) for some in times.values())
        print(f"\n{title}: {shown(ours)} (wanted: at most 200 ms), Ninja {shown(its)}: {ours / its:.1f}")

    measure("plan of 10,000 stages, none ever run")
    compare(f"cold, 10,000 stages, -j{JOBS}, disk", {runner.name: [runner.measure()] for runner in runners})
    measure("plan of 10,000 stages, right after their first run")
    # What was written a moment ago is not remembered: the clock's tick could hide a later change.
    time.sleep(1)
    for which in ("first", "second", "third"):
        compare(f"no-op, 10,000 stages, the {which}", {runner.name: [runner.measure()] for runner in runners})
        time.sleep(1)
    measure("plan of 10,000 stages, after runs that found them done")


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
    for turn in range(3):
        if turn:
            ours.clean()
        first.append(ours.run())
        if programs.get("b3sum"):
            peer.append(timed([programs["b3sum"], str(big)], ours.folder))
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
    bare = timed(["sh", "-c", f"head -c {gib << 30} /dev/zero | tr '\\\\0' x > bare"], work)
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
    parser.add_argument("--large", action="store_true", help="100,000 stages, and nothing else")
    parser.add_argument("--calls", action="store_true", help="the system calls of a stage, and nothing else")
    parser.add_argument("--work", help="where the graphs are made, on a disk [default: a temporary folder]")
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
    works = {"disk": work}
    try:
        chosen = args.only or ["graphs", "plan", "source", "publish"]
        if args.large or args.calls:
            chosen = []
        if args.large:
            large(programs, work)
        if args.calls:
            calls(programs, work)
        if "graphs" in chosen:
            if MEMORY.is_dir():
                works["memory"] = pathlib.Path(tempfile.mkdtemp(prefix="attrflow-runners-", dir=MEMORY))
            graphs(programs, works, args.full)
        if "plan" in chosen:
            plans(programs, work)
        if "source" in chosen:
            source(programs, work, args.gib)
        if "publish" in chosen:
            publish(programs, work, 1)
    finally:
        for folder in works.values():
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
