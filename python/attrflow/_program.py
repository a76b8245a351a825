"""The program `attrflow`: where it is, and a run of it from Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ._errors import MissingResult, RunFailed
from ._reader import AnyPath, Json, Run, open_run


def find_program() -> Path:
    """The program that was installed with this package, else the one on the `PATH`."""
    beside = Path(__file__).absolute().parent.parent / "bin"  # pip install --target
    user = sysconfig.get_preferred_scheme("user")
    folders = [str(beside), sysconfig.get_path("scripts"), sysconfig.get_path("scripts", scheme=user)]
    on_path = shutil.which("attrflow")
    places = [Path(folder) / "attrflow" for folder in folders] + ([Path(on_path)] if on_path else [])
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    raise MissingResult(f"no program `attrflow` in {', '.join(folders)}, nor on the PATH; `pip install attrflow`")


def run(
    pipeline: AnyPath,
    *,
    set: Mapping[str, Any] | None = None,
    args: Sequence[str] = (),
    cwd: AnyPath | None = None,
    on_event: Callable[[Json], object] | None = None,
) -> Run:
    """Runs a pipeline with the program, waits for its end, and opens its results.

    `set` overrides values of the config: `{"unlearn.lr": 0.01}`. `args` are further arguments, such as
    `["--device", "cuda"]`. `on_event` gets each event of the run, a dict: docs/cli.md, `attrflow run --json`.
    Ctrl-C finishes and keeps the units that are running; a second one stops now.

    Raises `RunFailed` with the program's own message.
    """
    sets = [word for key, value in (set or {}).items() for word in ("--set", f"{key}={_toml(value)}")]
    command = [str(find_program()), "run", "--json", *sets, *args, "--", os.fspath(pipeline)]
    finished: Json = {}
    failures, said = [], bytearray()
    # A session of its own: Ctrl-C in a terminal reaches this process alone, which passes it on once.
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(
        command, cwd=cwd, stdin=null, stdout=pipe, stderr=pipe, start_new_session=True
    ) as process:
        assert process.stdout and process.stderr
        errors = process.stderr
        listener = threading.Thread(target=lambda: said.extend(errors.read()), daemon=True)
        listener.start()
        try:
            for line in process.stdout:
                event: Json = json.loads(line)
                if event.get("event") == "run_finished":
                    finished = event
                elif event.get("event") == "stage_failed":
                    failures.append(f"{event['stage']}: {event['error']}")
                if on_event:
                    on_event(event)
        except BaseException as error:
            _stop(process, signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            raise
        finally:
            listener.join()
    manifest = Path(cwd or ".") / finished["manifest"] if finished.get("manifest") else None
    code = process.returncode
    if code != 0:
        text = re.sub(r"\x1b\[[0-9;]*m", "", said.decode(errors="replace")).strip()
        message = "\n".join(failures) or text.removeprefix("error: ") or f"attrflow ended with exit code {code}"
        raise RunFailed(message, code, manifest)
    if manifest is None:
        why = "the run is complete, but its cache is read-only" if finished else "nothing was run"
        raise RunFailed(f"{why}: there is no manifest to open", code)
    return open_run(manifest)


def _stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal and waits; nobody reads the events any more, which the program does not mind."""
    if process.stdout:
        process.stdout.close()
    while process.poll() is None:
        process.send_signal(number)
        try:
            process.wait()
        except KeyboardInterrupt:
            continue


def _toml(value: Any) -> str:
    """A value as TOML, as `--set` reads it."""
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, os.PathLike)):
        # A text of JSON is one of TOML, apart from a character.
        return json.dumps(os.fspath(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise TypeError(f"{value!r}: expected a number, text, list or dict; TOML has no other values")
