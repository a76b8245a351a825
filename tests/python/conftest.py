"""A project with the cut results of the demo, as `attrflow run` leaves one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CUT = Path(__file__).parent / "results"
Change = Callable[[dict[str, Any]], Any]


class Project:
    """A folder with `results/demo` and a manifest in `cache/runs/demo`."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "results" / "demo"
        shutil.copytree(CUT / "demo", self.results)
        self.runs = root / "cache" / "runs" / "demo"
        self.runs.mkdir(parents=True)
        self.manifest = self.add("20261130T174706.912286Z")

    def add(self, time: str, change: Change | None = None, *, root: Path | None = None) -> Path:
        """A manifest of this project, changed."""
        manifest = json.loads((CUT / "manifest.json").read_text(encoding="utf-8"))
        manifest["root"] = str(root or self.root)
        if change:
            change(manifest)
        path = self.runs / f"{time}.json"
        path.write_text(json.dumps(manifest), encoding="utf-8")
        return path

    def change(self, change: Change) -> Path:
        """The project's manifest, changed."""
        return self.add(self.manifest.stem, change)

    def edit(self, path: str, change: Change) -> None:
        """A JSON file of the results, changed; the manifest and the record of results then have its new size."""
        file = self.results / path
        value = json.loads(file.read_text(encoding="utf-8"))
        change(value)
        file.write_text(json.dumps(value), encoding="utf-8")
        digest = json.loads((self.results / ".shown.json").read_text())[path][0]

        def resize(manifest: dict[str, Any]) -> None:
            for stage in manifest["stages"]:
                for artifact in stage["outputs"].values():
                    if artifact["digest"] == digest:
                        artifact["size"] = file.stat().st_size

        self.change(resize)


def stage(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """A stage of a manifest."""
    return next(stage for stage in manifest["stages"] if stage["stage"] == name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.delenv("ATTRFLOW_CACHE", raising=False)
    return Project(tmp_path / "a project")
