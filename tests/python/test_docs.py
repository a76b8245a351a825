"""The examples of docs/files.md, run in order in a project; and that manifests of today's form are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from attrflow._reader import FORMAT
from conftest import Project

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "files.md"


def test_the_examples_run(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.root)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    out = capsys.readouterr().out
    for words in ("000338.png 0.10077357", "0     1  000338.png   0.100774        0.010444  True", "000338.png 0.png"):
        assert words in out


def test_the_form_is_that_of_the_program() -> None:
    source = (ROOT / "crates/engine/src/provenance/manifest.rs").read_text(encoding="utf-8")
    found = re.search(r"const FORMAT: u32 = (\d+);", source)
    assert found and int(found[1]) == FORMAT
