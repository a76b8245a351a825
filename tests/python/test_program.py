"""The program, found and run; a script stands in for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from conftest import Project

import attrflow

SCRIPT = """#!{python}
import json, os, signal, sys, time
own = os.getsid(0) == os.getpid()
print(json.dumps({{"event": "run_started", "args": sys.argv[1:], "own_session": own}}), flush=True)
{does}
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of scripts in which `attrflow` may be written."""
    scripts = tmp_path / "bin"
    scripts.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda *_, **__: str(scripts))
    return scripts / "attrflow"


def write(program: Path, does: str) -> None:
    program.write_text(SCRIPT.format(python=sys.executable, does=does))
    program.chmod(0o755)


def test_a_run_is_opened_when_it_ends(project: Project, program: Path) -> None:
    write(program, f"print(json.dumps({{'event': 'run_finished', 'manifest': {str(project.manifest)!r}}}))")
    events: list[dict[str, object]] = []
    run = attrflow.run(
        "pipelines/demo.toml",
        set={"unlearn.lr": 0.01, "on": True, "text": 'a "b"\n', "list": [1, {"k": "ü"}]},
        args=["--jobs", "2"],
        cwd=project.root,
        on_event=events.append,
    )
    assert run["apple"].top(1)
    assert [event["event"] for event in events] == ["run_started", "run_finished"]
    assert events[0]["own_session"]  # else Ctrl-C in a terminal would reach it twice, which means "stop now"
    sets = ["unlearn.lr=0.01", "on=true", 'text="a \\"b\\"\\n"', 'list=[1, {"k" = "ü"}]']
    given = [word for text in sets for word in ("--set", text)]
    assert events[0]["args"] == ["run", "--json", *given, "--jobs", "2", "--", "pipelines/demo.toml"]


def test_a_failure_has_the_programs_own_words(project: Project, program: Path) -> None:
    write(program, "sys.stderr.write('error: \\x1b[1mno such thing\\x1b[0m\\n'); sys.exit(2)")
    with pytest.raises(attrflow.RunFailed, match="^no such thing$") as error:
        attrflow.run("p.toml")
    assert error.value.code == 2 and error.value.manifest is None
    failed = {"event": "stage_failed", "stage": "influence[joy]", "error": "out of memory"}
    finished = {"event": "run_finished", "manifest": "cache/runs/demo/" + project.manifest.name}
    write(program, f"print(json.dumps({failed!r})); print(json.dumps({finished!r})); sys.exit(1)")
    with pytest.raises(attrflow.RunFailed, match=r"^influence\[joy\]: out of memory$") as error:
        attrflow.run("p.toml", cwd=project.root)
    assert error.value.manifest == project.manifest
    write(program, "")
    with pytest.raises(attrflow.RunFailed, match="nothing was run"):
        attrflow.run("p.toml")
    with pytest.raises(TypeError, match="None: expected a number"):
        attrflow.run("p.toml", set={"a": None})


def test_an_interrupt_is_passed_on_once(program: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    write(
        program,
        f"signal.signal(signal.SIGINT, lambda *_: open({str(said)!r}, 'a').write('INT '))\n"
        "print('{}', flush=True); time.sleep(0.6); time.sleep(0.6); sys.exit(130)",
    )

    def interrupt(event: dict[str, object]) -> None:
        if not event:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        attrflow.run("p.toml", on_event=interrupt)
    assert said.read_text() == "INT "


def test_an_error_of_the_caller_ends_the_run(program: Path) -> None:
    write(program, "time.sleep(60)")
    with pytest.raises(ZeroDivisionError):
        attrflow.run("p.toml", on_event=lambda _: 1 // 0)


def test_the_module_is_the_program(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(attrflow.__file__).parent.parent
    write(program, "sys.exit(7)")
    environment = {"PATH": str(program.parent), "PYTHONPATH": str(package)}
    command = [sys.executable, "-m", "attrflow", "plan", "x.toml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=package.parent)
    assert done.returncode == 7 and '["plan", "x.toml"]' in done.stdout
    program.unlink()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=package.parent)
    assert done.returncode == 1 and done.stderr.startswith("error: no program `attrflow` in ")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(attrflow.MissingResult, match="nor on the PATH"):
        attrflow.find_program()


def test_the_real_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ATTRFLOW_TEST_PROGRAM=target/release/attrflow."""
    real = os.environ.get("ATTRFLOW_TEST_PROGRAM")
    if not real:
        pytest.skip("ATTRFLOW_TEST_PROGRAM does not name the program")
    monkeypatch.setattr("attrflow._program.find_program", lambda: Path(real).absolute())
    monkeypatch.delenv("ATTRFLOW_CACHE", raising=False)
    (tmp_path / "c.toml").write_text("text = 'nothing'\n")
    (tmp_path / "p.toml").write_text(
        "config = 'c.toml'\n[stages.a]\nkind = 'command'\n[stages.a.params]\noutputs = { said = 'said.json' }\n"
        "values = { text = '${text}' }\n"
        "argv = ['sh', '-c', 'printenv ATTRFLOW_PARAMS > said.json; ! grep -q STOP said.json']\n"
    )
    text = 'a "b" \\ ü😀\n\x7f'
    run = attrflow.run("p.toml", set={"text": text}, cwd=tmp_path)
    assert json.loads(run.file("a.said").read_text()) == {"text": text}
    assert attrflow.run("p.toml", set={"text": text}, cwd=tmp_path).manifest["stages"][0]["outcome"] == "cached"
    with pytest.raises(attrflow.RunFailed, match="a: `sh` ended with exit status: 1") as error:
        attrflow.run("p.toml", set={"text": "STOP"}, cwd=tmp_path)
    assert error.value.code == 1 and error.value.manifest
    with pytest.raises(attrflow.MissingResult, match="it failed in this run"):
        attrflow.open(error.value.manifest).file("a.said")
    with pytest.raises(attrflow.RunFailed, match="`nope`"):
        attrflow.run("p.toml", set={"nope.x": 1}, cwd=tmp_path)
