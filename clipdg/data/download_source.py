"""Where a benchmark's images come from: what ``clipdg fetch benchmark`` downloads, and what a person has to do.

A benchmark's module has ``SOURCES``, a tuple of these; without it, the benchmark needs no download.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipdg.data.rows import Hub


@dataclass(frozen=True)
class Source:
    """One set of images.

    ``hubs``: its parts on the hub; none where nothing there can be relied on. ``terms``: what one agrees to, shown
    before a download. ``steps``: sentences that say where it is otherwise and what the folder must look like.
    ``gated``: the hub gives it only to those who accepted its terms there.
    """

    name: str
    hubs: tuple[Hub, ...] = ()
    terms: str = ""
    steps: str = ""
    gated: bool = False
