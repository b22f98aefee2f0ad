"""A list of images that are left out: the only way in which an image is not used, and it ends up in the record.

One image a line, "domain/id" as messages and records call it; empty lines, lines that begin with "#" and what follows
" # " are for people. No image ever takes another's place. With fewer images, DomainBed's seeded holdout is another one;
the list is applied before it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from clipdg.core import plugins
from clipdg.core.benchmark import Benchmark, Domain, Rows
from clipdg.core.errors import ConfigError
from clipdg.data.rows import TableRows, select
from clipdg.data.rows.folder import FolderTable, looks


def read(file: Path) -> tuple[str, ...]:
    """The images on a list. Raises ConfigError if it cannot be read or names an image twice."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"benchmark.skip: cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    names = [line.split(" # ")[0].strip() for line in lines if not line.lstrip().startswith("#")]
    names = [name for name in names if name]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"benchmark.skip: {file} names {twice} twice")
    return tuple(names)


def without(benchmark: Benchmark, names: tuple[str, ...], where: str = "the list") -> Benchmark:
    """The benchmark less those images; its ``skipped`` and its notes say so.

    Raises ConfigError naming the first image that it does not have, DataError a file that is no image.
    """
    left = set(names)
    domains = {}
    for domain in benchmark.domains.values():
        gone = np.array([f"{domain.name}/{i}" in left for i in domain.rows.ids], dtype=bool)
        left -= {f"{domain.name}/{domain.rows.ids[row]}" for row in np.flatnonzero(gone).tolist()}
        kept = _kept(domain, ~gone) if gone.any() else domain
        of_pool = {name for name in left if name.startswith(f"{domain.name}/")}
        if domain.pool is not None and of_pool:
            pool = domain.pool()
            drawn = np.array([f"{domain.name}/{i}" in of_pool for i in pool.ids], dtype=bool)
            left -= {f"{domain.name}/{pool.ids[row]}" for row in np.flatnonzero(drawn).tolist()}
            kept = replace(kept, pool=partial(select, pool, np.flatnonzero(~drawn)))
        domains[domain.name] = kept
    if left:
        name = sorted(left)[0]
        domain_name, _, inside = name.partition("/")
        known = benchmark.domains.get(domain_name)
        hint = plugins.nearest(inside, list(known.rows.ids)) if known else ""
        there = "" if known else f" Its domains are {', '.join(benchmark.domains)}."
        more = f" (and {len(left) - 1} more on the list)" if len(left) > 1 else ""
        raise ConfigError(
            f"benchmark.skip: {where} names {name}, which {benchmark.name} does not have{more}.{hint}{there}"
        )
    for domain in domains.values():
        _look(domain.rows)
    noun = "image was" if len(names) == 1 else "images were"
    return replace(
        benchmark,
        domains=domains,
        notes=(*benchmark.notes, f"{len(names):,} {noun} left out by a list, which is in the record."),
        skipped=names,
    )


def _look(rows: Rows) -> None:
    """What opening a folder does at once where there is no list: see that its files are images."""
    if looks() and isinstance(rows, TableRows) and isinstance(rows.table, FolderTable):
        rows.table.check_heads(rows.indices)


def _kept(domain: Domain, kept: np.ndarray) -> Domain:
    splits = None
    if domain.splits is not None:
        place = np.cumsum(kept) - 1
        splits = {name: place[rows[kept[rows]]] for name, rows in domain.splits.items()}
    return replace(domain, rows=select(domain.rows, np.flatnonzero(kept)), splits=splits)
