"""Runs and their queries, read from a manifest and the files that it records."""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from ._arrays import load
from ._errors import AttrflowError, MissingResult, UnknownQuery, nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

#: The newest form of manifests that this version reads. It reads all older ones.
FORMAT = 7

Json = dict[str, Any]
AnyPath = str | os.PathLike[str]


def open_run(path: AnyPath, *, results: AnyPath | None = None, cache: AnyPath | None = None) -> Run:
    """Opens the results of a run.

    `path` is a folder of results, such as `results/demo`, or a manifest, `cache/runs/demo/TIME.json`. Of a folder, it
    is the newest run that has scores of a query. `cache` is the cache folder, by default `$ATTRFLOW_CACHE` or the
    `cache` beside `results`. `results` is the folder of results of a manifest that is not in its cache.
    """
    place = _absolute(path)
    if place.is_dir():
        beside = place.parent.parent / "cache"
        given = cache or os.environ.get("ATTRFLOW_CACHE")
        store = _absolute(given) if given else beside
        return Run(*_newest(place, store, own=store == beside), [place], store)
    if not place.is_file():
        raise MissingResult(f"{path}: there is no such folder of results, nor manifest")
    manifest = _read_manifest(place)
    # CACHE/runs/PIPELINE/TIME.json
    around = place.parent.parent.parent if place.parent.parent.name == "runs" else None
    projects = [around.parent] if around else []
    projects += [Path(manifest["root"])] if manifest.get("root") else []
    folders = [_absolute(results)] if results else [root / "results" / manifest["pipeline"] for root in projects]
    return Run(place, manifest, folders, _absolute(cache) if cache else around)


def _absolute(path: AnyPath) -> Path:
    return Path(path).expanduser().resolve()


def _newest(results: Path, cache: Path, own: bool) -> tuple[Path, Json]:
    """The newest manifest of a pipeline that has scores; without one, the newest."""
    runs, root = cache / "runs" / results.name, str(results.parent.parent)
    found: dict[tuple[bool, bool], tuple[Path, Json]] = {}
    for path in sorted(runs.glob("*.json"), key=lambda path: path.stem, reverse=True):
        manifest = _read_manifest(path)
        here = manifest.get("root") == root
        scored = any(_kind(stage) in ("ranking", "influence") for stage in manifest["stages"])
        # A project that was moved with its cache keeps its history; a cache that is shared has runs of others.
        if here or own:
            found.setdefault((here, scored), (path, manifest))
        if here and scored:
            break
    for key in ((True, True), (False, True), (True, False), (False, False)):
        if key in found:
            return found[key]
    inside = [f"results/{path.name}" for path in sorted(results.glob("results/*")) if path.is_dir()]
    hint = f"open one of {', '.join(inside)}" if inside else "name the cache with `cache=`, or open a manifest"
    raise MissingResult(f"{results}: no run of this pipeline in {runs}; {hint}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise AttrflowError(f"{path}: not JSON: {error}") from None
    except FileNotFoundError:
        raise MissingResult(f"{path}: there is no such file") from None


def _read_manifest(path: Path, repeated: bool = False) -> Json:
    manifest: Json = _read_json(path)
    form = manifest.get("format") if isinstance(manifest, dict) else None
    if type(form) is not int:
        raise AttrflowError(f"{path}: not a manifest of attrflow")
    if form > FORMAT:
        raise AttrflowError(
            f"{path}: a manifest of form {form}, written by a newer attrflow; this one reads forms up to {FORMAT}. "
            "`pip install --upgrade attrflow` gets one that reads it"
        )
    try:
        if "repeats" in manifest and not repeated:
            # A run that found everything as an earlier one had left it: the stages are in that one's manifest.
            name = manifest.pop("repeats")["name"]
            if Path(name).name != name:
                raise AttrflowError(f"{path}: it repeats {name!r}, expected the name of a file beside it")
            base = _read_manifest(path.with_name(name), repeated=True)
            return {**base, **manifest, "stages": [{**stage, "outcome": "cached"} for stage in base["stages"]]}
        for stage in manifest["stages"]:
            if stage["outcome"] == "reused":  # its name before form 5
                stage["outcome"] = "cached"
            _ = stage["stage"].partition, stage["outputs"].items
        _ = manifest["pipeline"].partition
    except (AttributeError, KeyError, TypeError) as error:
        raise AttrflowError(f"{path}: not a manifest of attrflow: {error!r}") from None
    return manifest


def _kind(stage: Json) -> str | None:
    """The kind of a stage. One that did not start has no recipe; its inputs then tell."""
    if stage.get("recipe"):
        return str(stage["recipe"]["kind"])
    ports = {*(stage.get("reads") or ()), *(stage.get("sources") or ())}
    if {"influence", "rank"} <= ports:
        return "ranking"
    return "influence" if {"weights", "pretrain_loss"} <= ports else None


def _split(stage: str) -> tuple[str, str]:
    """`ranking` and `apple` of `ranking[apple]`; no item if the stage does not repeat."""
    base, _, item = stage.partition("[")
    return base, item[:-1]


class Run(Mapping[str, "Query"]):
    """A run and its queries: `run["apple"]`, `for name in run`, `run.values()`."""

    def __init__(self, path: Path, manifest: Json, results: list[Path], cache: Path | None) -> None:
        #: The manifest's file.
        self.path = path
        #: The manifest: what ran, with which parameters, on what. docs/files.md describes it.
        self.manifest = manifest
        #: The pipeline's name.
        self.name = str(manifest["pipeline"])
        self._results, self._cache = results, cache
        self._stages: dict[str, Json] = {stage["stage"]: stage for stage in manifest["stages"]}
        self._captions: dict[Path, list[tuple[str, list[str]]]] = {}

    @cached_property
    def _queries(self) -> dict[str, Query]:
        rankings, influences = (
            [stage for stage in self._stages.values() if _kind(stage) == kind] for kind in ("ranking", "influence")
        )
        pairs: list[list[Json | None]] = [[ranking, self._read_by(ranking, "influence")] for ranking in rankings]
        ranked = [influence["stage"] for _, influence in pairs if influence]
        pairs += [[None, influence] for influence in influences if influence["stage"] not in ranked]
        found = [Query(self, ranking, influence) for ranking, influence in pairs]
        items = [query.name for query in found]
        for query in found:
            if items.count(query.name) > 1:  # several rankings of one query go by their stages
                query.name = query.stages[0]
        return {query.name: query for query in found}

    @property
    def queries(self) -> list[str]:
        """The names of the queries, in the pipeline's order."""
        return list(self._queries)

    def __getitem__(self, name: str) -> Query:
        """A query by its name, or by a stage that scored it: `influence[apple]`."""
        if name in self._queries:
            return self._queries[name]
        found = [query for query in self.values() if name in query.stages or name == _split(query.stages[0])[1]]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnknownQuery(f"{name!r} has several rankings: {', '.join(query.name for query in found)}")
        if not self._queries:
            left = ", ".join((self.manifest.get("left_out") or [])[:10])
            why = f"; not part of this run: {left}" if left else ""
            raise UnknownQuery(f"{self.path}: no stage of the kinds `ranking` and `influence`{why}")
        raise UnknownQuery(f"no query {name!r} in the run of `{self.name}`: {nearest(name, self._queries)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._queries)

    def __len__(self) -> int:
        return len(self._queries)

    def file(self, output: str) -> Path:
        """The path of an output as pipelines write it: `influence[apple].rank`, `data.files/captions.json`."""
        parts = re.fullmatch(r"([^\[.]+(?:\[[^\]]*\])?)\.([^/]+)(?:/(.*))?", output)
        if not parts:
            raise ValueError(f"{output!r}: expected STAGE.PORT, such as `influence[apple].rank`")
        return _below(self._output(parts[1], parts[2]), parts[3] or "")

    def files(self) -> dict[str, Path]:
        """The paths of all outputs that are there, by `STAGE.PORT`."""
        found = {}
        for name, stage in self._stages.items():
            for port in stage["outputs"]:
                try:
                    found[f"{name}.{port}"] = self._output(name, port)
                except MissingResult:
                    continue
        return found

    @cached_property
    def _shown(self) -> dict[tuple[str, str], list[Path]]:
        """The paths in the folders of results, by their folder there and the digest that is shown."""
        shown: dict[tuple[str, str], list[Path]] = {}
        for folder in self._results:
            record = folder / ".shown.json"
            for path, mark in (_read_json(record) if record.is_file() else {}).items():
                digest = mark if isinstance(mark, str) else mark[0]
                for above in Path(path).parents:  # the program of a `command` may write into folders of its own
                    shown.setdefault((str(above), digest), []).append(folder / path)
        return shown

    def _output(self, stage: str, port: str) -> Path:
        record = self._stages.get(stage)
        if record is None and stage in (self.manifest.get("left_out") or ()):
            raise MissingResult(f"{stage} was not part of this run; open the manifest of an earlier one")
        if record is None:
            raise MissingResult(f"no stage {stage!r} in the run of `{self.name}`: {nearest(stage, self._stages)}")
        artifact = record["outputs"].get(port)
        if artifact is None:
            why = {
                "failed": f"it failed in this run: {record.get('error')}",
                "blocked": "it did not start in this run, since a stage that it reads failed or was stopped",
                "interrupted": "the run was stopped before it finished; the same command resumes it",
            }
            known = f"it has no output {port!r}: {nearest(port, record['outputs'])}"
            raise MissingResult(f"{stage}: {why.get(record['outcome'], known)}")
        folder, digest = "/".join(filter(None, _split(stage))), str(artifact["digest"])
        # The file in the results if it is of this run and not of another one, else the cache's own.
        paths = list(self._shown.get((folder, digest), ()))
        paths += [self._cache / "objects" / digest[:2] / digest] if self._cache else []
        for path in paths:
            if path.is_dir() if artifact["folder"] else path.is_file() and path.stat().st_size == artifact["size"]:
                return path
        looked = " and ".join(str(results / folder) for results in self._results) or "no folder of results"
        raise MissingResult(
            f"{stage}.{port}: what this run wrote is not in {looked} (removed, changed, or of another run), nor in the "
            f"cache {self._cache or '(not known)'}; `attrflow run {self.manifest.get('file', '')}` restores it"
        )

    def _read_by(self, record: Json, port: str) -> Json | None:
        """The stage that an input reads."""
        reads = (record.get("reads") or {}).get(port)
        return self._stages.get(reads["stage"]) if reads else None

    def _input(self, record: Json | None, port: str) -> Path | None:
        """What a stage read; None if nothing was connected."""
        reads = ((record or {}).get("reads") or {}).get(port)
        if reads:
            return _below(self._output(reads["stage"], reads["port"]), reads.get("below") or "")
        source = ((record or {}).get("sources") or {}).get(port)
        return Path(source) if source else None

    def _training_set(self, path: Path) -> list[tuple[str, list[str]]]:
        """File name and captions of each image of a captions file, in its order."""
        if path not in self._captions:
            content = _read_json(path)
            try:
                captions: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
                for annotation in content["annotations"]:
                    captions[annotation["image_id"]].append(annotation["caption"])
                items = [(str(image["file_name"]), captions[image["id"]]) for image in content["images"]]
            except (KeyError, TypeError) as error:
                raise AttrflowError(f"{path}: not a captions file in COCO's layout: {error!r}") from None
            self._captions[path] = items
        return self._captions[path]

    def __repr__(self) -> str:
        names = ", ".join(self.queries[:8]) + (", …" if len(self) > 8 else "")
        return f"<attrflow run of {self.name}, {self.manifest.get('started')}, {len(self)} queries: {names}>"

    def _repr_html_(self) -> str:
        from ._html import run_html

        return run_html(self)


def _below(path: Path, name: str) -> Path:
    """A path below a result. Names come from others: none may lead out of it."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise AttrflowError(f"{name!r} is not below {path}")
    return path / name


_COLUMNS = ("rank", "index", "file_name", "influence")


class Query:
    """The scores of all training images for one query. Index i is the i-th image of the captions file."""

    def __init__(self, run: Run, ranking: Json | None, influence: Json | None) -> None:
        #: The stages that scored it.
        self.stages = [str(stage["stage"]) for stage in (ranking, influence) if stage]
        base, item = _split(self.stages[0])
        #: Its name: `apple` of `ranking[apple]`.
        self.name = item or base
        #: The title of its ranking, such as the caption that was drawn.
        self.title = str(((ranking or {}).get("params") or {}).get("title") or self.name)
        #: Whether a stage of the kind `ranking` made a table of it.
        self.ranked = ranking is not None
        self._run, self._ranking, self._influence = run, ranking, influence

    def _array(self, port: str) -> Any:
        path = self._run._input(self._ranking, port)
        if path is None and self._influence:
            path = self._run._output(self._influence["stage"], port)
        if path is None:
            raise MissingResult(f"{self.stages[0]}: the manifest does not say what its input `{port}` was")
        return load(path)

    @cached_property
    def influence(self) -> NDArray[np.float32]:
        """The score of each training image, float32 [N], mapped from its file: how much unlearning raised its loss."""
        return self._array("influence")  # type: ignore[no-any-return]

    @cached_property
    def rank(self) -> NDArray[np.int64]:
        """The indices of the training images by falling score, int64 [N]: `rank[0]` is the most influential one.

        With `top_k`, images with an exact score come first, by falling score, then those with an estimate.
        """
        return self._array("rank")  # type: ignore[no-any-return]

    @cached_property
    def error(self) -> NDArray[np.float32] | None:
        """The standard error of each score, float32 [N], mapped from its file.

        None if there are none; `why_no_error` says why. A ranking of an earlier version has those of its table alone: NaN
        for all other images.
        """
        if self.why_no_error or self._ranking is None:
            return None
        if "errors" in self._ranking["outputs"]:
            return load(self._run._output(self._ranking["stage"], "errors"))  # type: ignore[no-any-return]
        scores = self.influence
        import numpy as np

        errors = np.full(len(scores), np.nan, dtype=np.float32)
        for row in self._top["rows"]:
            errors[row["index"]] = row["standard_error"]
        return errors

    @property
    def why_no_error(self) -> str | None:
        """Why there are no standard errors; None if there are."""
        try:
            rows = self._top["rows"]
        except MissingResult as error:
            return str(error)
        if rows and "standard_error" in rows[0]:
            return None
        return str(self.summary.get("no_error_bars") or "top.json has no standard errors, and does not say why")

    @cached_property
    def _top(self) -> Json:
        if self._ranking is None:
            raise MissingResult(f"no stage of the kind `ranking`, which writes top.json, reads {self.stages[0]}")
        path = self._run._output(self._ranking["stage"], "json")
        found: Json = _read_json(path)
        if not isinstance(found, dict) or "rows" not in found:
            raise AttrflowError(f"{path}: expected the top.json of a ranking")
        return found

    @property
    def summary(self) -> Json:
        """What top.json says of all scores: median, the query's own rise, warnings, how errors were computed."""
        return dict(self._top.get("summary") or {})

    def top(self, n: int | None = None) -> list[Json]:
        """The first `n` training images, by default all of top.json.

        Each has rank, index, file_name, influence, captions and percentile, and path below the folder of results; with
        `top_k` also exact; with error bars also standard_error, low, high, p_top, rank_low, rank_high and tied. Without a
        ranking, the first five come from the arrays, for all images.
        """
        if n is not None and n < 0:
            raise ValueError(f"n is {n}, expected 0 or more")
        if self._ranking is None:
            captions, scores = self._training_file("captions"), self.influence
            items = self._run._training_set(captions) if captions else [(str(i), []) for i in range(len(scores))]
            values = ((i, *items[i], float(scores[i])) for i in self.rank[:n].tolist())
            return [
                {"rank": rank, "index": i, "file_name": name, "influence": score, "captions": texts}
                for rank, (i, name, texts, score) in enumerate(values, 1)
            ]
        rows: list[Json] = self._top["rows"]
        if n is not None and len(rows) < min(n, self.summary.get("images", n)):
            raise ValueError(
                f"top.json of {self.stages[0]} has {len(rows)} images, {n} were asked for: raise the parameter `rows` "
                "of the ranking, which computes no score again, or use `rank` and `influence`"
            )
        return [{key: row[key] for key in (*_COLUMNS, *row) if key in row} for row in rows[:n]]

    def frame(self, n: int | None = None) -> pd.DataFrame:
        """`top(n)` as a table of pandas, a row for each training image."""
        try:
            import pandas as pd
        except ImportError:
            raise ImportError("a frame needs pandas: pip install 'attrflow[pandas]'; `top()` does without") from None
        frame: pd.DataFrame = pd.DataFrame(self.top(n))
        return frame

    def _training_file(self, port: str) -> Path | None:
        """The training set's `captions` or `images`: those of the ranking, else of the stage that encoded it."""
        found = self._run._input(self._ranking, port)
        latents = self._run._read_by(self._influence or {}, "latents")
        return found or (self._run._input(latents, port) if latents and _kind(latents) == "latents" else None)

    def image(self, index: SupportsIndex) -> Path:
        """The path of a training image by its index, as in `influence`, `rank` and `top()`."""
        place, captions = operator.index(index), self._training_file("captions")
        if captions is None:
            raise MissingResult(f"{self.stages[0]}: its inputs have no captions file, which names the images")
        items = self._run._training_set(captions)
        if not 0 <= place < len(items):
            raise IndexError(f"image {place}: the training set has {len(items)} images, 0 to {len(items) - 1}")
        return self._image(items[place][0])

    def _image(self, name: str) -> Path:
        images = self._training_file("images")
        if images is None:
            raise MissingResult(f"{self.stages[0]}: its inputs have no folder of images")
        path = _below(images, name)
        if not path.is_file():
            raise MissingResult(f"{path}: there is no such training image (any more)")
        return path

    @property
    def picture(self) -> Path | None:
        """The picture that is attributed; None if its ranking was not given it."""
        return self._run._input(self._ranking, "query")

    def files(self) -> dict[str, Path]:
        """The paths of the outputs of its stages that are there, by `STAGE.PORT`."""
        return {name: path for name, path in self._run.files().items() if name.rpartition(".")[0] in self.stages}

    def __repr__(self) -> str:
        return f"<attrflow query {self.name!r} of {self._run.name}: {self.title!r}>"

    def _repr_html_(self) -> str:
        from ._html import query_html

        return query_html(self)
