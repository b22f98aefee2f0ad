"""Where things that can be made again are kept: rendered benchmarks, features, hashes of large files."""

from __future__ import annotations

import os
from pathlib import Path

from clipdg.core.errors import StorageError


def folder(*parts: str) -> Path:
    """``$CLIPDG_CACHE``, else ``$XDG_CACHE_HOME/clipdg``, else ``~/.cache/clipdg``; not created here.

    Raises StorageError if a file stands in its place.
    """
    root = os.environ.get("CLIPDG_CACHE")
    place = Path(root or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipdg"))
    blocking = next((p for p in (place, *place.parents) if p.exists()), place)
    if blocking.is_file():
        raise StorageError(f"the cache is to be in {place}, and {blocking} is a file; set CLIPDG_CACHE to a folder")
    return place.joinpath(*parts)
