"""Fetch a backbone or a benchmark once, with a network, so that later runs need none.

What a backbone needs is said by its family's ``downloads``; what a benchmark needs, by its ``sources``.
"""

from __future__ import annotations

from pathlib import Path

from clipdg.core import plugins
from clipdg.core.download_source import Source
from clipdg.data.rows import open_table
from clipdg.storage.hub import HubClient, Say


def fetch_backbone(spec: str, weights: str | None = None, say: Say | None = None) -> list[Path]:
    """The files that ``clipdg.load_backbone(spec, weights)`` reads offline; those that are not here are downloaded.

    Empty if it needs none, as for tiny and every family that declares no downloads. ``say`` is told of every new try.

    Raises ConfigError if there is no such backbone, repository or revision, NetworkError if it cannot be reached,
    StorageError if the disk is full or closed.
    """
    name, _, model = spec.partition(":")
    family = plugins.backbone(name)
    if family.downloads is None:
        return []
    return sorted(family.downloads(HubClient(spec, say), model or None, weights))


def sources(name: str) -> tuple[Source, ...]:
    """What a benchmark consists of; empty if it needs no download."""
    return plugins.benchmark(name).sources


def fetch_source(source: Source, say: Say | None = None) -> None:
    """Download a source's parts on the hub, if it has any, and open them as a run will.

    Raises ConfigError if its terms are not accepted, NetworkError if it cannot be reached.
    """
    for hub in source.hubs:
        if say:
            say(f"{hub}: downloading what is not here")
        table = open_table(None, hub)
        if say:
            say(f"{hub}: {len(table):,} rows")
