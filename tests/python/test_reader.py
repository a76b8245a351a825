"""Runs and queries, whole and damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CUT, Project, stage

import attrflow


def test_a_run_reads_as_its_files_say(project: Project) -> None:
    run = attrflow.open(project.results)
    assert run.queries == ["apple", "joy"] == list(run) and len(run) == 2 and "apple" in run
    assert run.name == "demo" and run.path == project.manifest and run.manifest["format"] == attrflow.FORMAT
    query = run["apple"]
    assert query.title == "an emoji of red apple" and query.stages == ["ranking[apple]", "influence[apple]"]
    assert isinstance(query.influence, np.memmap) and query.influence.dtype == np.float32
    assert isinstance(query.rank, np.memmap) and query.rank.dtype == np.int64
    assert not query.influence.flags.writeable
    assert list(query.influence[query.rank]) == sorted(query.influence, reverse=True)
    rows = query.top(3)
    assert [row["index"] for row in rows] == list(query.rank[:3])
    assert list(rows[0])[:4] == ["rank", "index", "file_name", "influence"]
    assert rows[0]["rank"] == 1 and rows[0]["file_name"] == "000338.png" and "red apple" in rows[0]["captions"]
    assert rows[0]["influence"] == pytest.approx(query.influence[query.rank[0]])
    assert query.image(rows[0]["index"]).name == "000338.png"
    assert query.image(np.int64(0)).read_bytes().startswith(b"\x89PNG")
    assert query.picture and query.picture.name == "0.png"
    assert query.summary["images"] == len(query.influence) and repr(query) and repr(run)
    assert run["influence[apple]"] is query is run["ranking[apple]"]


def test_errors_are_those_of_the_table(project: Project) -> None:
    query = attrflow.open(project.results)["joy"]
    assert query.why_no_error is None and query.error is not None
    assert query.error.shape == query.influence.shape
    for row in query.top():
        assert query.error[row["index"]] == pytest.approx(row["standard_error"])
        assert (project.results / row["path"]).is_file() and 0 <= row["percentile"] <= 100
    assert isinstance(query.error, np.memmap) and np.isfinite(query.error).all()


def test_a_ranking_of_an_earlier_version_has_the_errors_of_its_table(project: Project) -> None:
    project.edit("ranking/joy/top.json", lambda top: top.update(rows=top["rows"][:2]))
    manifest = json.loads(project.manifest.read_text(encoding="utf-8"))
    del stage(manifest, "ranking[joy]")["outputs"]["errors"]
    project.manifest.write_text(json.dumps(manifest), encoding="utf-8")
    query = attrflow.open(project.results)["joy"]
    assert query.error is not None
    listed = {row["index"]: row["standard_error"] for row in query.top()}
    for index, error in enumerate(query.error):
        assert error == pytest.approx(listed[index]) if index in listed else np.isnan(error)


def test_a_ranking_without_errors_says_why(project: Project) -> None:
    def change(top: dict[str, Any]) -> None:
        top["rows"] = [{key: row[key] for key in ("rank", "index", "file_name", "influence")} for row in top["rows"]]
        top["rows"][0]["exact"] = False
        top["summary"]["no_error_bars"] = "no error bars with `top_k`"

    project.edit("ranking/apple/top.json", change)
    query = attrflow.open(project.results)["apple"]
    assert query.error is None and query.why_no_error == "no error bars with `top_k`"
    assert "(estimate)" in query._repr_html_()


def test_a_frame_has_the_columns_of_the_table(project: Project) -> None:
    frame = attrflow.open(project.results)["apple"].frame(2)
    assert list(frame.columns[:4]) == ["rank", "index", "file_name", "influence"] and len(frame) == 2


def test_files_are_found_by_stage_and_port(project: Project) -> None:
    run = attrflow.open(project.results)
    files = run.files()
    assert files["influence[joy].losses"] == project.results / "influence/joy/unlearned_loss.npy"
    assert "unlearn[joy].weights" not in files  # cut away
    assert all(path.exists() for path in files.values())
    assert set(run["joy"].files()) == {name for name in files if "[joy]" in name and name[0] in "ir"}
    assert run.file("data.files/captions.json").is_file()
    for name, words in [
        ("influence[aple].rank", "did you mean 'influence[apple]'?"),
        ("influence[apple].ranks", "did you mean 'rank'?"),
        ("unlearn[joy].weights", "`attrflow run pipelines/demo.toml` restores it"),
    ]:
        with pytest.raises(attrflow.MissingResult, match=re.escape(words)):
            run.file(name)
    with pytest.raises(ValueError, match="expected STAGE.PORT"):
        run.file("influence")
    with pytest.raises(attrflow.AttrflowError, match="is not below"):
        run.file("data.files/../../secret")


def test_wrong_names_and_numbers_are_named(project: Project) -> None:
    run = attrflow.open(project.results)
    with pytest.raises(KeyError, match="did you mean 'apple'") as error:
        run["aple"]
    assert str(error.value).endswith("There are: apple, joy")
    assert run.get("pear") is None
    with pytest.raises(IndexError, match="0 to 5"):
        run["apple"].image(6)
    with pytest.raises(IndexError):
        run["apple"].image(-1)
    with pytest.raises(ValueError, match="0 or more"):
        run["apple"].top(-1)


def test_more_rows_than_the_table_has_are_refused(project: Project) -> None:
    project.edit("ranking/apple/top.json", lambda top: top.update(rows=top["rows"][:2]))
    query = attrflow.open(project.results)["apple"]
    assert len(query.top()) == 2
    with pytest.raises(ValueError, match="has 2 images, 3 were asked for"):
        query.top(3)


def test_results_need_nothing_and_write_nothing(project: Project) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in project.root.rglob("*")}

    before = state()
    code = """
import sys, attrflow
loaded = {"numpy", "pandas", "PIL", "torch"}
run = attrflow.open("results/demo")
query = run["apple"]
run.files(), query.top(3), query.image(3), query.summary, query.why_no_error, run._repr_html_(), repr(run)
assert not loaded & set(sys.modules), loaded & set(sys.modules)
for name in loaded: sys.modules[name] = None
for use, extra in [(lambda: query.influence, "attrflow[read]"), (query.frame, "attrflow[pandas]")]:
    try: use()
    except ImportError as error: assert extra in str(error), error
    else: raise AssertionError(extra)
"""
    package = Path(attrflow.__file__).parent.parent
    subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package)!r}){code}"],
                   cwd=project.root, check=True)  # fmt: skip
    assert state() == before


def test_several_rankings_of_a_query_go_by_their_stages(project: Project) -> None:
    def change(manifest: dict[str, Any]) -> None:
        other = {**stage(manifest, "ranking[apple]"), "stage": "by_mean[apple]"}
        manifest["stages"].append(other)

    project.change(change)
    run = attrflow.open(project.results)
    assert run.queries == ["ranking[apple]", "joy", "by_mean[apple]"]
    for name in ("apple", "influence[apple]"):
        with pytest.raises(KeyError, match="has several rankings: ranking.apple., by_mean.apple."):
            run[name]
    assert run["ranking[apple]"].top(1) and run["joy"].top(1)
    with pytest.raises(attrflow.MissingResult):  # its file is not in the folder of its stage
        run["by_mean[apple]"].top(1)


def test_a_stage_that_does_not_repeat_is_a_query(project: Project) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["stages"] = [one for one in manifest["stages"] if "joy" not in one["stage"]]
        ranking, influence = stage(manifest, "ranking[apple]"), stage(manifest, "influence[apple]")
        ranking["stage"], influence["stage"] = "most_influential", "influence"
        for port in ("influence", "rank", "per_timestep"):
            ranking["reads"][port]["stage"] = "influence"

    project.change(change)
    shown = project.results / ".shown.json"
    names = {"ranking/apple": "most_influential", "influence/apple": "influence"}
    text = shown.read_text()
    for old, new in names.items():
        text = text.replace(old, new)
        shutil.copytree(project.results / old, project.results / new, dirs_exist_ok=True)
    shown.write_text(text)
    run = attrflow.open(project.results)
    assert run.queries == ["most_influential"] and run["influence"] is run["most_influential"]
    assert run["influence"].rank[0] == run["influence"].top(1)[0]["index"]


def test_scores_without_a_ranking_have_a_top(project: Project) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["stages"] = [one for one in manifest["stages"] if not one["stage"].startswith("ranking")]

    ranked = attrflow.open(project.results)["apple"].top(3)
    project.change(change)
    query = attrflow.open(project.results)["apple"]
    assert not query.ranked and query.error is None and "no stage of the kind `ranking`" in str(query.why_no_error)
    for row, other in zip(query.top(3), ranked, strict=True):
        assert row == {key: other[key] for key in row} | {"influence": pytest.approx(other["influence"])}
    assert query.picture is None and query.image(0).is_file() and "data:image" in query._repr_html_()


def test_a_failed_run_says_what_failed(project: Project) -> None:
    def change(manifest: dict[str, Any]) -> None:
        ended = {"influence[joy]": "failed", "ranking[joy]": "blocked", "ranking[apple]": "interrupted"}
        for name, outcome in ended.items():
            stage(manifest, name).update(outcome=outcome, outputs={}, recipe=None, error=None)
        stage(manifest, "influence[joy]")["error"] = "out of memory <b>"

    project.change(change)
    run = attrflow.open(project.results)
    assert run.queries == ["apple", "joy"]
    with pytest.raises(attrflow.MissingResult, match=r"influence\[joy\]: it failed in this run: out of memory"):
        _ = run["joy"].influence
    with pytest.raises(attrflow.MissingResult, match="it did not start"):
        run["joy"].top(1)
    with pytest.raises(attrflow.MissingResult, match="was stopped before it finished"):
        run["apple"].top(1)
    assert run["apple"].rank[0] == 4 and run["apple"].error is None and "was stopped" in str(run["apple"].why_no_error)
    html = run._repr_html_()
    assert "out of memory &lt;b&gt;" in html and "<b>" not in html.split("not complete", 1)[1].split("</p>", 1)[0]


def test_the_newest_run_with_scores_is_opened(project: Project) -> None:
    def only_data(manifest: dict[str, Any]) -> None:
        manifest["left_out"] = [one["stage"] for one in manifest["stages"][1:]]
        del manifest["stages"][1:]

    newest = project.add("20261201T000000.000000Z", only_data)
    project.add("20261202T000000.000000Z", root=Path("/elsewhere"))
    run = attrflow.open(project.results)
    assert run.path == project.manifest
    run = attrflow.open(newest)
    with pytest.raises(KeyError, match="not part of this run: latents, pretrain_loss"):
        run["apple"]
    with pytest.raises(attrflow.MissingResult, match="was not part of this run"):
        run.file("influence[apple].rank")


def test_a_short_manifest_is_completed(project: Project) -> None:
    whole = json.loads(project.manifest.read_text())
    short = {key: whole[key] for key in ("format", "attrflow", "pipeline", "file", "sets", "seconds", "conditions")}
    short |= {"started": "2026-12-01T00:00:00Z", "repeats": {"name": project.manifest.name, "digest": "0" * 64}}
    path = project.runs / "20261201T000000.000000Z.json"
    path.write_text(json.dumps(short))
    run = attrflow.open(project.results)
    assert run.path == path and run.manifest["started"] == "2026-12-01T00:00:00Z" and run["apple"].top(1)
    assert {one["outcome"] for one in run.manifest["stages"]} == {"cached"} and "repeats" not in run.manifest
    path.write_text(json.dumps(short | {"repeats": {"name": "../x.json"}}))
    with pytest.raises(attrflow.AttrflowError, match="the name of a file beside it"):
        attrflow.open(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 8, "unheard": "of"}', "form 8, written by a newer attrflow; this one reads forms up to 7"),
        ('{"format": "8"}', "not a manifest of attrflow"),
        ('{"format": 7}', "not a manifest of attrflow"),
        ('{"format": 7, "pipeline": "p", "stages": [{"stage": 3, "outcome": "ran"}]}', "not a manifest"),
        ("[]", "not a manifest of attrflow"),
        ("PK", "not JSON"),
    ],
)
def test_what_is_no_manifest_is_refused(project: Project, text: str, words: str) -> None:
    project.manifest.write_text(text)
    for place in (project.manifest, project.results):
        with pytest.raises(attrflow.AttrflowError, match=words):
            attrflow.open(place)


@pytest.mark.parametrize("form", range(1, attrflow.FORMAT + 1))
def test_older_forms_are_read(project: Project, form: int) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["format"] = form
        for one in manifest["stages"] if form < 5 else ():
            one["outcome"] = "reused"
            one["units_reused"] = one.pop("units_cached")
        if form < 3:  # before there was the kind `ranking`
            manifest["stages"] = [one for one in manifest["stages"] if not one["stage"].startswith("ranking")]
            for one in manifest["stages"]:
                del one["params"]
                one.pop("reads", None)

    project.change(change)
    run = attrflow.open(project.manifest)
    assert run.queries == ["apple", "joy"] and run["apple"].rank[0] == 4 == run["apple"].top(1)[0]["index"]
    assert "reused" not in {one["outcome"] for one in run.manifest["stages"]}


def test_results_of_another_run_are_not_taken_for_this_ones(project: Project) -> None:
    def change(manifest: dict[str, Any]) -> None:
        stage(manifest, "influence[apple]")["outputs"]["influence"]["digest"] = "ab" * 32

    project.change(change)
    run = attrflow.open(project.results)
    with pytest.raises(attrflow.MissingResult, match="removed, changed, or of another run"):
        _ = run["apple"].influence
    # The cache keeps them apart.
    kept = project.root / "cache" / "objects" / "ab" / ("ab" * 32)
    kept.parent.mkdir(parents=True)
    shutil.copy(project.results / "influence/joy/influence.npy", kept)
    assert list(run["apple"].influence) == list(run["joy"].influence)


def test_a_file_that_was_changed_or_removed_is_not_read(project: Project) -> None:
    with (project.results / "influence/joy/influence.npy").open("ab") as file:
        file.write(b"more")
    shutil.rmtree(project.results / "ranking/joy")
    query = attrflow.open(project.results)["joy"]
    for use in (lambda: query.influence, query.top):
        with pytest.raises(attrflow.MissingResult, match="is not in .*removed, changed, or of another run"):
            use()


def test_projects_can_be_moved_and_manifests_copied(project: Project, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(project.root, moved)
    assert attrflow.open(moved / "results" / "demo").path.is_relative_to(moved)
    alone = shutil.copy(project.manifest, tmp_path / "alone.json")
    assert attrflow.open(alone)["apple"].top(1)  # its project is where it says
    shutil.rmtree(project.root)
    with pytest.raises(attrflow.MissingResult, match="removed"):
        attrflow.open(alone)["apple"].top(1)
    assert attrflow.open(alone, results=moved / "results" / "demo")["apple"].top(1)
    assert attrflow.open(CUT / "manifest.json", results=CUT / "demo")["joy"].top(1)


def test_another_cache_is_given(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "shared"
    (project.root / "cache").rename(shared)
    with pytest.raises(attrflow.MissingResult, match="name the cache with `cache=`, or open a manifest"):
        attrflow.open(project.results)
    assert attrflow.open(project.results, cache=shared)["apple"].top(1)
    monkeypatch.setenv("ATTRFLOW_CACHE", str(shared))
    assert attrflow.open(project.results)["apple"].top(1)
    (shared / "runs/demo" / project.manifest.name).rename(shared / "kept.json")
    (shared / "runs/demo/20261202T000000.000000Z.json").write_text((CUT / "manifest.json").read_text())
    with pytest.raises(attrflow.MissingResult, match="no run of this pipeline in"):  # only one of another project
        attrflow.open(project.results)
    with pytest.raises(attrflow.MissingResult, match="open one of results/demo"):
        attrflow.open(project.root)
    with pytest.raises(FileNotFoundError, match="no such folder of results, nor manifest"):
        attrflow.open(project.root / "nothing")


def test_captions_and_names_of_others_do_no_harm(project: Project) -> None:
    bad = '<script>alert(1)</script><img src=x onerror="alert(1)">'

    def change(top: dict[str, Any]) -> None:
        top["rows"][0]["captions"], top["rows"][0]["file_name"] = [bad], '../../"onload="x.png'
        top["summary"]["warnings"] = [bad]

    project.edit("ranking/apple/top.json", change)
    run = attrflow.open(project.results)
    for html in (run._repr_html_(), run["apple"]._repr_html_()):
        assert "<script" not in html and "<img src=x" not in html and '"onload' not in html
        assert html.count("<img") == html.count("src=\"data:image/png;base64,") >= 2


def test_a_captions_file_cannot_lead_elsewhere(project: Project) -> None:
    captions = project.results / "data/files/captions.json"
    value = json.loads(captions.read_text())
    value["images"][0]["file_name"] = "/etc/passwd"
    value["images"][1]["file_name"] = "gone.png"
    captions.write_text(json.dumps(value))
    query = attrflow.open(project.results)["apple"]
    with pytest.raises(attrflow.AttrflowError, match="is not below"):
        query.image(0)
    with pytest.raises(attrflow.MissingResult, match="no such training image"):
        query.image(1)
    captions.write_text('{"images": [{}]}')
    with pytest.raises(attrflow.AttrflowError, match="not a captions file in COCO's layout"):
        attrflow.open(project.results)["apple"].image(0)


def test_galleries_are_small(project: Project) -> None:
    run = attrflow.open(project.results)
    html = run["apple"]._repr_html_()
    assert html.count("<img") == 4 and "000338.png" in html and "±" in html and "http" not in html
    assert len(run._repr_html_()) < 100_000
    pillow = pytest.importorskip("PIL.Image")
    large = project.results / "data/files/images/000338.png"
    pillow.effect_noise((500, 500), 100).save(large)
    assert large.stat().st_size > 100_000
    html = run["apple"]._repr_html_()
    assert "data:image/jpeg" in html and len(html) < 100_000
    large.write_bytes(b"\x89PNG" + b"x" * 100_000)
    assert "no picture" in run["apple"]._repr_html_()
