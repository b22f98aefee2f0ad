"""Where things that can be made again are kept: rendered benchmarks, features, hashes of large files."""

from __future__ import annotations

import os
from pathlib import Path


def folder(*parts: str) -> Path:
    """``$CLIPDG_CACHE``, else ``$XDG_CACHE_HOME/clipdg``, else ``~/.cache/clipdg``; not created here."""
    root = os.environ.get("CLIPDG_CACHE")
    if root:
        return Path(root, *parts)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipdg", *parts)
