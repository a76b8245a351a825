#!/usr/bin/env python3
"""Random faults in runs on the loopback Slurm: do they end with the bytes of an undisturbed run?

    make faults-slurm

The project is the demo in miniature and 24 shell commands. It is run once on this machine and then again and again on the
cluster, each time in a new folder and with one to three faults of one kind:

    worker      kill -9 of the process that a job started
    child       kill -9 of the process that computes for it
    node        kill -9 of a slurmd, which is started again later; the worker goes on, as behind a broken network
    front       kill -9 of the command-line process
    controller  slurmctld ends and is started again later
    scancel     scancel of a task
    requeue     scontrol requeue of a task
    mixed       each fault one of these

A command-line process that ended with another exit code than 0 is started again: after its kill, and after a fault that
failed a unit. A run passes if it ends with exit code 0 and the bytes of the reference, no index entry was ever replaced, no
task is left in the queue and no worker process lives on.

Each shell command notes when it began and when it was done. What was computed again is counted by what was there when it
began again:

    taken       the run had the result in its index: never right
    finished    the worker had reported it, and the run had not taken it
    window      it was done, and the worker had not reported it: the fault came between the two
    unfinished  it was not done
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

from slurm_lab import CLUSTER, ROOT, WAITS, Lab, shell_stages

DEMO = ROOT / "data/demo"
KINDS = ["worker", "child", "node", "front", "controller", "scancel", "requeue", "mixed"]
LONGEST = 300
COMMANDS = 24

CONFIG = """
queries = [
  { name = "grin", caption = "an emoji of grinning face", seed = 0 },
  { name = "pizza", caption = "a food emoji, pizza with fruit", seed = 1 },
]
latents = { pixels = 32, captions = 2 }
loss = { time_samples = 2, captions = 2, noise = "per_image" }
fisher = { epochs = 1, batch_size = 4, select = "cross-attn-kv" }
generate = { steps = 4, guidance_scale = 3.0 }
unlearn = { grad_accum_steps = 2, batch_size = 4, lr = 0.001 }
ranking = { rows = 5, images_shown = 3, error_bars = false }
run = { device = "cpu", jobs = 2, threads = 1 }
"""
POOLS = """
[cluster.pools.cpu]
workers = 2
[cluster.pools.shell]
workers = 2
kinds = ["command"]
"""
# The project's folder is the one above the cache in which a command runs: the same text serves all projects.
MARK = "echo {} {{param.N}} $(date +%s.%N) >> $(pwd | sed s,/cache/.*,,)/marks"
LINE = f"{MARK.format('began')}; sleep 0.4; echo result {{param.N}} > out; {MARK.format('done')}"


def write_project(root, images=6):
    for folder in ("data/demo", "configs", "pipelines"):
        (root / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "pipelines/parts", root / "pipelines/parts")
    items, stages = shell_stages(COMMANDS, LINE)
    (root / "configs/demo.toml").write_text(items + CONFIG + CLUSTER + WAITS + POOLS)
    (root / "pipelines/faults.toml").write_text((ROOT / "pipelines/demo.toml").read_text() + "\n" + stages)
    captions = json.loads((DEMO / "captions.json").read_text())
    captions["images"] = captions["images"][:images]
    kept = {image["id"] for image in captions["images"]}
    captions["annotations"] = [note for note in captions["annotations"] if note["image_id"] in kept]
    (root / "data/demo/captions.json").write_text(json.dumps(captions))
    with zipfile.ZipFile(DEMO / "images.zip") as whole, zipfile.ZipFile(root / "data/demo/images.zip", "w") as some:
        for name in [f"images/{image['file_name']}" for image in captions["images"]]:
            some.writestr(name, whole.read(name))
    (root / "data/demo/model").symlink_to(DEMO / "model")


def results(root):
    """The bytes of every result, but for the record of what is shown: it holds file times."""
    paths = (path for path in (root / "results").rglob("*") if path.is_file() and not path.name.endswith(".shown.json"))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def processes():
    """The command lines of all processes, and their parents, by number."""
    found = {}
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found[int(process.name)] = line, int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                pass  # it ended meanwhile
    return found


def workers(root):
    """The workers of a project, and the processes that compute for them."""
    found = processes()
    ours = [pid for pid, (line, _) in found.items() if "--cluster-worker" in line and any(str(root) in word for word in line)]
    children = [pid for pid, (_, parent) in found.items() if parent in ours]
    return ours, children


class Watch(threading.Thread):
    """What is in the index of a run, and what its workers reported, from when on."""

    def __init__(self, root):
        super().__init__(daemon=True)
        self.root, self.over = root, False
        self.entries, self.replaced = {}, []
        self.taken, self.reported = {}, {}

    def run(self):
        while not self.over:
            self.look()
            time.sleep(0.05)

    def look(self):
        now = time.time()
        try:
            self.look_at_reports(now)
            self.look_at_index(now)
        except (OSError, ValueError):
            pass  # a file went away, or is not whole: there is a next time

    def look_at_index(self, now):
        for path in (self.root / "cache/recipes-v2").rglob("*.json"):
            found = path.stat()
            version = found.st_ino, found.st_mtime_ns
            known = self.entries.get(path)
            if known and known[0] == version:
                continue
            text = path.read_bytes()
            if known and known[1] != text:
                self.replaced.append(path.name)
            self.entries[path] = version, text
            number = command(json.loads(text)["recipe"])
            if number is not None:
                self.taken.setdefault(number, now)

    def look_at_reports(self, now):
        for attempt in (self.root / "cache").glob("cluster/*/w/*"):
            orders = {}
            for inbox in attempt.glob("in.*.jsonl"):
                for order in lines(inbox):
                    if "work" in order:
                        orders[order["work"]["number"]] = order["work"]["notes"]
            for report in lines(attempt / "out.jsonl") if orders else []:
                if "finished" in report:
                    done = report["finished"]
                    number = command(orders.get(done["number"], {})[done["task"]]["recipe"]) if done["number"] in orders else None
                    if number is not None:
                        self.reported.setdefault(number, {}).setdefault(f"{attempt.name} {done['number']}", now)

    def again(self):
        """The commands that began more than once, by what was there of them."""
        counts, told = dict.fromkeys(["taken", "finished", "window", "unfinished"], 0), []
        began, done = {}, {}
        marks = self.root / "marks"
        for line in marks.read_text().splitlines() if marks.exists() else []:
            what, number, at = line.split()
            (began if what == "began" else done).setdefault(number, []).append(float(at))
        for number, times in began.items():
            for at in sorted(times)[1:]:
                reported = [time for time in self.reported.get(number, {}).values() if time < at]
                if self.taken.get(number, at) < at:
                    what = "taken"
                elif reported:
                    what = "finished"
                elif any(time < at for time in done.get(number, [])):
                    what = "window"
                else:
                    what = "unfinished"
                counts[what] += 1
                if what in ("taken", "finished"):
                    when = f"done {done.get(number)}, reported {self.reported.get(number)}, taken {self.taken.get(number)}"
                    told.append(f"command {number} again at {at:.2f}: {what}; {when}")
        return counts, told


def lines(path):
    try:
        text = path.read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1] if line]


def command(recipe):
    """The number of a shell command; none for another kind."""
    return str(recipe["params"]["values"]["N"]) if recipe["kind"] == "command" else None


class Trial:
    """A run with faults."""

    def __init__(self, lab, attrflow, root, kind, draw, todo=0, span=0.0):
        self.lab, self.attrflow, self.root, self.kind, self.draw = lab, attrflow, root, kind, draw
        self.todo, self.span = todo, span
        self.faults, self.later, self.begun, self.codes, self.wrong, self.seen = [], [], 0, [], [], ""
        self.process, self.since = None, time.monotonic()
        self.watch = Watch(root)

    def start(self):
        self.begun += 1
        said = open(self.root / f"said.{self.begun}", "w")
        argv = [self.attrflow, "run", "pipelines/faults.toml"]
        self.process = subprocess.Popen(argv, cwd=self.root, env=self.lab.env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)

    def said(self):
        return "".join(f"-- process {n} of the run:\n{(self.root / f'said.{n}').read_text()}" for n in range(1, self.begun + 1))

    def run(self):
        self.watch.start()
        begun = self.since = time.monotonic()
        self.start()
        due = begun + self.draw.uniform(0.05, 0.9) * self.span
        while True:
            now = time.monotonic()
            for later in [later for later in self.later if later[0] <= now]:
                later[2]()
                self.later.remove(later)
            code = self.process.poll()
            if code == 0:
                break
            if code is not None:
                self.codes.append(code)
                # Each fault may cost a process, and what was killed may leave a task that fails another.
                if self.begun > 2 * len(self.faults) + 1:
                    self.wrong.append(f"exit code {code} once more, after {len(self.faults)} faults")
                    break
                time.sleep(self.draw.uniform(0, 3))
                self.start()
            if self.todo > 0 and now >= due and self.fault():
                self.todo -= 1
                self.since, due = now, now + self.draw.uniform(0.02, 0.5) * self.span
            if now - self.since > LONGEST:
                self.wrong.append(f"it hangs: {LONGEST} s since the last fault")
                self.seen = self.state()
                self.process.kill()
                self.process.wait()
                break
            time.sleep(0.05)
        self.seconds = time.monotonic() - begun
        return self

    def fault(self):
        """Tries to do one; whether there was something to do it to."""
        kind = self.draw.choice(KINDS[:-1]) if self.kind == "mixed" else self.kind
        what = getattr(self, kind)()
        if what:
            self.faults.append(f"{kind} {what}")
        return bool(what)

    def kill(self, pids):
        for pid in self.draw.sample(sorted(pids), min(1, len(pids))):
            try:
                os.kill(pid, signal.SIGKILL)
                return str(pid)
            except ProcessLookupError:
                pass
        return None

    def worker(self):
        return self.kill(workers(self.root)[0])

    def child(self):
        return self.kill(workers(self.root)[1])

    def node(self):
        """A node at work, so that something is lost."""
        if self.is_controller_away():
            return None
        busy = self.lab.ask("squeue", "-h", "-t", "R", "-o", "%N")
        busy = set((busy or "").split()) - {node for _, node, _ in self.later}
        if not busy:
            return None
        node, away = self.draw.choice(sorted(busy)), self.draw.uniform(0, 25)
        self.lab.does("kill-node", node)
        self.later.append((time.monotonic() + away, node, lambda: self.lab.does("start-node", node)))
        return f"{node} for {away:.1f} s"

    def front(self):
        if self.process.poll() is not None:
            return None
        self.process.kill()
        return str(self.process.pid)

    def is_controller_away(self):
        return any(what == "controller" for _, what, _ in self.later)

    def controller(self):
        if self.is_controller_away():
            return None
        away = self.draw.uniform(0, 15)
        self.lab.does("stop-controller")
        self.later.append((time.monotonic() + away, "controller", lambda: self.lab.does("start-controller")))
        return f"for {away:.1f} s"

    def task(self, *argv):
        if self.is_controller_away():
            return None
        tasks = self.lab.tasks("R", "PD") if argv[0] == "scancel" else self.lab.tasks("R")
        task = self.draw.choice(sorted(tasks)) if tasks else None
        return task if task and self.lab.ask(*argv, task) is not None else None

    def scancel(self):
        return self.task("scancel")

    def requeue(self):
        return self.task("scontrol", "requeue")

    def check(self, reference):
        """What is wrong once all is in order again."""
        for _, _, repair in self.later:
            repair()
        end = time.monotonic() + 60
        while (left := [self.lab.tasks(), workers(self.root)[0]]) != [[], []] and time.monotonic() < end:
            time.sleep(0.2)
        self.left = sum(len(of) for of in left if of)
        if left != [[], []]:
            self.wrong.append(f"left: tasks {left[0]}, worker processes {left[1]}")
        self.watch.over = True
        self.watch.join()
        self.watch.look()
        found = results(self.root)
        differ = sorted(name for name in found if found[name] != reference.get(name))
        self.wrong_bytes = len(differ)
        if differ:
            self.wrong.append(f"wrong bytes: {', '.join(differ)}")
        if missing := reference.keys() - found.keys():
            self.wrong.append(f"{len(missing)} results are missing")
        if self.watch.replaced:
            self.wrong.append(f"index entries written twice: {', '.join(self.watch.replaced)}")
        self.again, self.told = self.watch.again()
        if self.again["taken"]:
            self.wrong.append(f"{self.again['taken']} commands computed again that were in the index")

    def complaints(self):
        """The errors of processes that failed."""
        return [line for line in self.said().splitlines() if line.startswith("error: ")]

    def state(self):
        """What there is to see of a run that went wrong."""
        text = self.said()
        run = lambda *argv: subprocess.run(argv, cwd=self.root, env=self.lab.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
        for argv in (["squeue", "-a", "-r", "-t", "all", "-o", "%i %T %r %N %j"], [self.attrflow, "logs"]):
            text += f"-- {' '.join(map(str, argv))}:\n{run(*argv)[-6000:]}"
        for events in (self.root / "cache").glob("cluster/*/events.jsonl"):
            text += f"-- the last of {events}:\n" + "\n".join(events.read_text().splitlines()[-25:]) + "\n"
        return text

    def end(self):
        """Ends the workers that are left."""
        for pid in sum(workers(self.root), []):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


def table(rows):
    again = ["taken", "finished", "window", "unfinished"]
    head = ["fault", "runs", "faults", "processes begun again", "wrong bytes", *(f"again: {what}" for what in again), "left", "seconds a run"]
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for kind, trials in rows.items():
        total = lambda of: sum(map(of, trials))
        cells = [
            kind, len(trials), total(lambda trial: len(trial.faults)), total(lambda trial: trial.begun - 1),
            total(lambda trial: trial.wrong_bytes),
            *(total(lambda trial: trial.again[what]) for what in again), total(lambda trial: trial.left),
            f"{total(lambda trial: trial.seconds) / len(trials):.1f}",
        ]
        print("| " + " | ".join(map(str, cells)) + " |")


def undisturbed(lab, attrflow, root):
    """The results of a run on this machine."""
    begun = time.monotonic()
    argv = [attrflow, "run", "pipelines/faults.toml", "--backend", "local"]
    done = subprocess.run(argv, cwd=root, env=lab.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        sys.exit(f"the undisturbed run: exit code {done.returncode}\n{done.stdout}")
    reference = results(root)
    print(f"undisturbed, on this machine: {time.monotonic() - begun:.1f} s, {len(reference)} results", flush=True)
    return reference


def inject(lab, attrflow, work, args, seed):
    """Runs with so many faults, by kind."""
    write_project(work / "template")
    project = lambda name: pathlib.Path(shutil.copytree(work / "template", work / name, symlinks=True))
    reference = undisturbed(lab, attrflow, project("local"))
    kinds, rows, faults, number, span = args.only or KINDS, {}, 0, 0, 0.0
    while faults < args.faults:
        # The first run gets none: faults come while the shortest run lasts.
        kind, draw = kinds[(number - 1) % len(kinds)] if number > 0 else "none", random.Random(f"{seed} {number}")
        todo = min(draw.randint(1, 3), args.faults - faults) if number > 0 else 0
        trial = Trial(lab, attrflow, project(f"run{number}"), kind, draw, todo, span).run()
        number, span = number + 1, min(span or trial.seconds, trial.seconds)
        trial.check(reference)
        faults += len(trial.faults)
        rows.setdefault(kind, []).append(trial)
        codes = f", exit codes {trial.codes}" if trial.codes else ""
        verdict = "FAILED" if trial.wrong else "passed"
        print(f"run {number - 1} {verdict}, {trial.seconds:.1f} s: {'; '.join(trial.faults) or 'no fault'}{codes}")
        print("".join(f"  {line}\n" for line in [*trial.complaints(), *trial.told, *trial.wrong]), end="", flush=True)
        if trial.wrong:
            print(trial.seen or trial.state(), flush=True)
            trial.end()
            # The next run gets a cluster without what this one left.
            lab.does("down")
            lab.does("up")
        if not args.work:
            shutil.rmtree(trial.root)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attrflow", default="target/release/attrflow", help="the program, with its worker beside it")
    parser.add_argument("--faults", type=int, default=200, help="faults in all")
    parser.add_argument("--seed", type=int, help="draws the same faults again; what they hit depends on the machine's pace")
    parser.add_argument("--only", choices=KINDS, action="append", metavar="KIND", help="faults of this kind (repeatable)")
    parser.add_argument("--work", help="where the runs are made, and left [default: a temporary folder]")
    args = parser.parse_args()
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="attrflow-faults-", dir=args.work))
    try:
        with Lab(work / "lab") as lab:
            rows = inject(lab, os.path.abspath(args.attrflow), work, args, seed)
    finally:
        if not args.work:
            shutil.rmtree(work, ignore_errors=True)
    table(rows)
    trials = sum(rows.values(), [])
    failed = sum(bool(trial.wrong) for trial in trials)
    print(f"\n{sum(len(trial.faults) for trial in trials)} faults, seed {seed}: {len(trials) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
