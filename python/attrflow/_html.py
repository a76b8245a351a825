"""Runs and queries as HTML for notebooks: a gallery with the pictures inside, captions escaped, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._errors import AttrflowError

if TYPE_CHECKING:
    from ._reader import Query, Run

#: The most bytes of a picture that is put in as it is; a larger one is made smaller if Pillow is installed.
_SMALL = 20_000
_TYPES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


def run_html(run: Run) -> str:
    """Each query with its first six training images."""
    stages = run.manifest["stages"]
    bad = [stage for stage in stages if stage["outcome"] not in ("ran", "cached")]
    head = f"{len(run)} queries, {len(stages)} stages, run at {run.manifest.get('started', '?')[:16]}Z"
    parts = [f"<p><b>{escape(run.name)}</b>: {escape(head)}</p>"]
    if bad:
        texts = [f"{stage['stage']} {stage['outcome']} {stage.get('error') or ''}" for stage in bad[:5]]
        parts.append(_note("not complete: " + "; ".join(texts) + ("; …" if len(bad) > 5 else "")))
    shown = list(run.values())[:20]
    parts += [_gallery(query, 6, 56) for query in shown]
    if len(run) > len(shown):
        parts.append(_note(f"and {len(run) - len(shown)} more: run.queries"))
    return f'<div>{"".join(parts)}</div>'


def query_html(query: Query) -> str:
    """The query with its first twenty training images."""
    return f"<div>{_gallery(query, 20, 88)}</div>"


def _gallery(query: Query, count: int, size: int) -> str:
    cells: list[str] = []
    notes: list[str] = []
    try:
        if picture := query.picture:
            cells.append(_cell(_picture(lambda: picture, size, "query"), ["query"], size))
        rows = query.top()[:count] if query.ranked else query.top(count)
        notes += query.summary.get("warnings", []) if query.ranked else []
        for row in rows:
            image = _picture(partial(query._image, row["file_name"]), size, row["file_name"])
            cells.append(_cell(image, _lines(row), size))
    except (AttrflowError, ImportError, OSError) as error:
        notes.append(str(error))
    name = "" if query.title == query.name else f": {escape(query.title)}"
    flow = "display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start"
    inside = f'<p style="margin:8px 0 2px"><b>{escape(query.name)}</b>{name}</p>' + "".join(map(_note, notes))
    return f'<section>{inside}<div style="{flow}">{"".join(cells)}</div></section>'


def _lines(row: dict[str, Any]) -> list[str]:
    error = f" ± {row['standard_error']:.2g}" if "standard_error" in row else ""
    marks = " (tie)" if row.get("tied") else " (estimate)" if row.get("exact") is False else ""
    caption = next(iter(row.get("captions") or []), "")
    return [f"{row['rank']}. {row['influence']:+.3g}{error}{marks}", row["file_name"], caption]


def _note(text: str) -> str:
    return f'<p style="margin:2px 0;opacity:.8">{escape(text[:500])}</p>'


def _cell(picture: str, lines: list[str], size: int) -> str:
    texts = "".join(f"<div>{escape(line[:80])}</div>" for line in lines if line)
    width = max(size, 104)
    return f'<figure style="margin:0;width:{width}px;font-size:10px;overflow-wrap:anywhere">{picture}{texts}</figure>'


def _picture(find: Callable[[], Path], size: int, name: str) -> str:
    try:
        kind, data = _bytes(find(), size)
    except (AttrflowError, OSError) as error:
        return f'<div style="height:{size}px;opacity:.6" title="{escape(str(error))}">no picture</div>'
    text = base64.b64encode(data).decode("ascii")
    style = f"width:{size}px;height:{size}px;object-fit:contain"
    return f'<img alt="{escape(name[:80])}" style="{style}" src="data:image/{kind};base64,{text}">'


def _bytes(path: Path, size: int) -> tuple[str, bytes]:
    """The type and bytes of a picture, made smaller if it is large."""
    with path.open("rb") as file:
        data = file.read(_SMALL + 1)
    kind = next((kind for magic, kind in _TYPES.items() if data.startswith(magic)), None)
    if kind and len(data) <= _SMALL:
        return kind, data
    try:
        from PIL import Image
    except ImportError:
        raise AttrflowError(f"{path}: large pictures are shown if Pillow is installed: pip install pillow") from None
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * size, 2 * size))
            image.thumbnail((2 * size, 2 * size))
            out = io.BytesIO()
            image.convert("RGB").save(out, "JPEG", quality=80)
    except Exception as error:  # of many kinds
        raise AttrflowError(f"{path}: not shown: {error}") from None
    return "jpeg", out.getvalue()
