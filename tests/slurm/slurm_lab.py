"""The loopback Slurm of lab.sh, and projects whose workers are its jobs, for scripts."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]

CLUSTER = """
[cluster]
backend = "slurm"
"""
# Those of lab.rs: a tenth of the defaults or less.
WAITS = """
waits = { poll = 0.1, heartbeat = 0.5, silent = 4, gone = 30, lease = 4, orphaned = 10, visible = 12, squeue = 1, work = 2, leave = 10 }
"""


class Lab:
    """The cluster of lab.sh; ends with the block."""

    def __init__(self, folder):
        self.env = dict(os.environ)
        if "SLURM_LAB" not in self.env:
            # Slurm's own authentication refuses a socket that not everybody can reach.
            pathlib.Path(folder).parent.chmod(0o755)
        self.env.setdefault("SLURM_LAB", str(folder))
        self.env.setdefault("BASE_PORT", "27817")
        self.env["SLURM_CONF"] = f"{os.path.realpath(self.env['SLURM_LAB'])}/etc/slurm.conf"
        # Nothing of who calls must change what is run.
        for name in ("ATTRFLOW_CACHE", "ATTRFLOW_LOG"):
            self.env.pop(name, None)

    def does(self, *what):
        # Daemons keep what they inherit: a pipe to them would never end.
        with tempfile.TemporaryFile("w+") as said:
            code = subprocess.call([ROOT / "tests/slurm/lab.sh", *what], env=self.env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            if code != 0:
                said.seek(0)
                sys.exit(f"lab.sh {' '.join(what)}: exit code {code}\n{said.read()}")

    def ask(self, *argv):
        """What one of Slurm's programs prints; none if it fails."""
        done = subprocess.run(argv, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    def tasks(self, *states):
        """Numbers of the tasks that are not over; none if the controller does not answer."""
        text = self.ask("squeue", "-h", "-a", "-r", "-o", "%i", *(["-t", ",".join(states)] if states else []))
        return None if text is None else text.split()

    def __enter__(self):
        self.does("down")
        self.does("up")
        return self

    def __exit__(self, *_):
        self.does("down")


def shell_stages(count, line):
    """A stage of the kind `command` for each number below `count`, and the numbers in the config."""
    items = ", ".join(f'{{ name = "n{n}", n = "{n}" }}' for n in range(count))
    argv = json.dumps(["sh", "-c", line])
    stages = f'[stages.say]\nkind = "command"\neach = {{ item = "${{items}}" }}\n'
    stages += f'params = {{ argv = {argv}, outputs = {{ out = "out" }}, values = {{ N = "${{item.n}}" }} }}\n'
    return f"items = [{items}]\n", stages
