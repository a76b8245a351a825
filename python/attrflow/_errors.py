"""What can go wrong, in the words that people read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class AttrflowError(Exception):
    """An error of this package."""


class MissingResult(AttrflowError, FileNotFoundError):
    """A result, manifest or picture that is not there; the text says why."""


class UnknownQuery(AttrflowError, KeyError):
    """No query has this name, or several have."""

    def __str__(self) -> str:
        # A KeyError would show its text in quotation marks.
        return str(self.args[0])


class RunFailed(AttrflowError):
    """The program ended with an error; the text is its own."""

    def __init__(self, message: str, code: int, manifest: Path | None = None) -> None:
        super().__init__(message)
        #: The exit code: 1 a stage failed, 2 an error in the pipeline or on the command line, 4 the cache is damaged.
        self.code = code
        #: The manifest of the run, for `attrflow.open`; None if it did not start.
        self.manifest = manifest


def nearest(name: str, names: Iterable[str]) -> str:
    """The names that there are, and the one that was probably meant."""
    known = list(names)
    if not known:
        return "there are none"
    near = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return (f"did you mean {near[0]!r}? " if near else "") + f"There are: {listed}"
