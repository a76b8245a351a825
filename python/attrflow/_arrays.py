"""Arrays of results, mapped from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(path: Path) -> Any:
    """A numpy array; numpy is imported only here and by what computes with arrays."""
    try:
        import numpy as np
    except ImportError:
        raise ImportError("arrays need numpy: pip install 'attrflow[read]'; `top()` does without") from None
    return np.load(path, mmap_mode="r", allow_pickle=False)
