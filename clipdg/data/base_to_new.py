"""Base and new: a benchmark of half of its classes, for what is learnt on some and tested on others.

CoCoOp's protocol (Zhou et al., CVPR 2022; KaiyangZhou/CoOp, datasets/oxford_pets.py): of n classes in their order the
first ceil(n / 2) are base, the others new; either half is a benchmark of its own, whose accuracy is among its own
classes alone. A context is learnt with ``benchmark.half=base`` and tested on the new ones by method ``context`` with
``benchmark.half=new``; their harmonic mean is the papers' H.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from clipdg.core.benchmark import Benchmark, Domain, Rows, Subset
from clipdg.core.errors import ConfigError
from clipdg.data.rows.table import select

Half = Literal["all", "base", "new"]


def of(benchmark: Benchmark, half: Half) -> Benchmark:
    """``benchmark`` with the classes of one half, numbered from 0, and their images.

    Raises ConfigError if the half has fewer than two classes, or a domain has no image of it.
    """
    if half == "all":
        return benchmark
    num_base = -(-len(benchmark.classes) // 2)
    ids = range(num_base) if half == "base" else range(num_base, len(benchmark.classes))
    if len(ids) < 2:
        raise ConfigError(f"benchmark.half={half}: {benchmark.name} has {len(ids)} such class; it needs two")
    domains = {name: _domain(domain, ids) for name, domain in benchmark.domains.items()}
    for name, domain in domains.items():
        if not len(domain.rows):
            raise ConfigError(f"benchmark.half={half}: no image of {name} is of a {half} class")
    note = f"The {half} half of the classes alone, {len(ids)} of {len(benchmark.classes)}."
    return replace(
        benchmark,
        classes=tuple(benchmark.classes[i] for i in ids),
        wnids=tuple(benchmark.wnids[i] for i in ids) if benchmark.wnids else (),
        domains=domains,
        notes=(*benchmark.notes, note),
    )


def _domain(domain: Domain, ids: range) -> Domain:
    kept = _are_in(domain.rows.labels, ids)
    splits = None
    if domain.splits is not None:
        place = np.cumsum(kept) - 1
        splits = {name: place[rows[kept[rows]]] for name, rows in domain.splits.items()}
    subset = None if domain.subset is None else _subset(domain.subset, ids)
    class_subsets = {name: _subset(own, ids) for name, own in domain.class_subsets.items()}
    pool = None if domain.pool is None else _pool(domain.pool, ids)
    rows = _rows(domain.rows, ids)
    return replace(domain, rows=rows, splits=splits, subset=subset, class_subsets=class_subsets, pool=pool)


def _pool(pool: Callable[[], Rows], ids: range) -> Callable[[], Rows]:
    return lambda: _rows(pool(), ids)


def _rows(rows: Rows, ids: range) -> Rows:
    kept = np.flatnonzero(_are_in(rows.labels, ids))
    return select(rows, kept, rows.labels[kept] - ids.start)


def _are_in(labels: np.ndarray, ids: range) -> np.ndarray:
    return (labels >= ids.start) & (labels < ids.stop)


def _subset(subset: Subset, ids: range) -> Subset:
    """A group that both halves have a part of is that part in each."""
    parts = (tuple(i - ids.start for i in group if i in ids) for group in subset.groups)
    return Subset(tuple(i - ids.start for i in subset.ids if i in ids), tuple(p for p in parts if len(p) > 1))
