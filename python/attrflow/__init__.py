"""Reads results of attrflow, which ranks training images of text-to-image diffusion models by unlearning.

>>> import attrflow
>>> run = attrflow.open("results/demo")
>>> run.queries
['apple', 'joy', 'hearts', 'pizza']
>>> run["apple"].top(1)[0]["file_name"]
'000338.png'

It computes nothing and writes nothing. Numpy, pandas and Pillow are imported only by what needs them, torch never.
"""

from ._errors import AttrflowError, MissingResult, RunFailed, UnknownQuery
from ._program import find_program, run
from ._reader import FORMAT, Query, Run
from ._reader import open_run as open

__all__ = [
    "FORMAT",
    "AttrflowError",
    "MissingResult",
    "Query",
    "Run",
    "RunFailed",
    "UnknownQuery",
    "find_program",
    "open",
    "run",
]
