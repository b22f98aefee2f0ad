"""Splits of a domain's images into parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clipdg.core.benchmark import Benchmark, Domain, Shift
from clipdg.core.errors import ConfigError, DataError
from clipdg.core.seeding import seed_hash
from clipdg.data.few_shot_list import Picks
from clipdg.data.rows import select
from clipdg.data.rows.joined import JoinedRows

# Splits and shots


def splits(domain: Domain, index: int, seed: int, holdout: float = 0.2) -> dict[str, np.ndarray]:
    """Disjoint row indices by split: {in, out}, {train, val, test}, or what the domain's authors published.

    Without published splits, DomainBed's holdout exactly (lib/misc.py, split_dataset), for sources and targets alike;
    ``index`` is the domain's place among the sorted domain names. A published ``train`` without a ``val`` gives
    ``holdout`` of itself to ``val``. RandomState, whose streams numpy has frozen, so that a split stays what it is.
    """
    if domain.splits is None:
        keys = list(range(len(domain.rows)))
        np.random.RandomState(seed_hash(seed, index)).shuffle(keys)
        order = np.array(keys, dtype=np.int64)
        num_out = int(len(order) * holdout)
        return {"in": order[num_out:], "out": order[:num_out]}
    published = {name: np.asarray(rows, dtype=np.int64) for name, rows in domain.splits.items()}
    if "train" not in published or "val" in published:
        return published
    train = published.pop("train")
    order = np.random.RandomState(seed_hash("val", seed, index)).permutation(len(train))
    num_val = int(len(train) * holdout)
    return {"train": train[np.sort(order[num_val:])], "val": train[np.sort(order[:num_val])], **published}


def few_shot(
    labels: np.ndarray, order: np.ndarray, shots: int | None, classes: Sequence[str] | None = None, where: str = ""
) -> np.ndarray:
    """The first ``shots`` indices of each class in ``order``, in that order; all of them if ``shots`` is None.

    More shots of the same order contain the fewer. ``classes`` and ``where`` are for the message.

    Raises:
        DataError: a class that ``labels`` has is in ``order`` fewer times than ``shots``.
    """
    if shots is None:
        return order
    ordered = labels[order]
    present, counts = np.unique(ordered, return_counts=True)
    available = dict(zip(present.tolist(), counts.tolist(), strict=True))
    for label in np.unique(labels).tolist():
        count = available.get(label, 0)
        if count < shots:
            name = f"'{classes[label]}'" if classes is not None else label
            raise DataError(
                f"class {name}{where} has {count} training image{'' if count == 1 else 's'}, fewer than {shots} shots"
            )
    return order[rank_in_class(ordered) < shots]


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """Which of its class each one is: 0 for the first with its label, 1 for the second, …"""
    by_class = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.empty(len(labels), dtype=np.int64)
    rank[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return rank


def pick(
    domain: Domain,
    classes: Sequence[str],
    order: np.ndarray,
    shots: int | None,
    seed: int,
    *,
    enough: bool = True,
) -> np.ndarray:
    """``shots`` rows of every class from ``order``, drawn by ``seed``; ``order`` as it is if ``shots`` is None.

    A class with fewer is a DataError, or gives what it has if not ``enough``.
    """
    if shots is None:
        return order
    drawn = shot_order(domain.name, order, seed)
    if not enough:
        labels = domain.rows.labels[drawn]
        places = [np.flatnonzero(labels == label)[:shots] for label in np.unique(labels)]
        chosen: np.ndarray = drawn[np.sort(np.concatenate([*places, np.empty(0, dtype=np.int64)]))]
        return chosen
    return few_shot(domain.rows.labels, drawn, shots, classes, f" of domain '{domain.name}'")


def shot_order(name: str, order: np.ndarray, seed: int) -> np.ndarray:
    """Rows in the order in which shots are taken from them."""
    return np.random.RandomState(seed_hash("shots", seed, name)).permutation(np.sort(order))


def with_pool(
    domain: Domain,
    index: int,
    classes: Sequence[str],
    shots: int | None,
    seed: int,
    holdout: float = 0.2,
    picks: Picks | None = None,
) -> Domain:
    """The domain with the images of its pool that a run needs: split "train" to fit on, "val", and its rows, "test".

    ``shots`` images of each class are drawn to train on, or are the ``picks``, and of the others min(shots, 4) are
    drawn to validate on, fewer where no more are left (CoOp's numbers). Without either, ``holdout`` of the pool
    validates and the rest trains.

    Raises:
        DataError: a class of the pool has fewer images than ``shots``.
    """
    assert domain.pool is not None
    pool = domain.pool()
    whole = Domain(domain.name, pool, {"train": np.arange(len(pool))})
    rows = np.arange(len(pool))
    if shots is None and picks is None:
        parts = splits(whole, index, seed, holdout)
        train, val = parts["train"], parts["val"]
    else:
        train = picks.rows(whole, classes, rows, shots) if picks else pick(whole, classes, rows, shots, seed)
        others = shot_order(domain.name, rows, seed)
        others = others[~np.isin(others, train)]
        num_val = min(shots or int(np.bincount(pool.labels[train]).max()), 4)
        val = others[rank_in_class(pool.labels[others]) < num_val]
    chosen = [domain.rows, select(pool, np.sort(val)), select(pool, np.sort(train))]
    ends = np.cumsum([len(rows) for rows in chosen])
    names = ("test", "val", "train")
    numbers = {name: np.arange(end - len(rows), end) for name, rows, end in zip(names, chosen, ends, strict=True)}
    return replace(domain, rows=JoinedRows(chosen), splits=numbers, pool=None)


def check_shift(benchmark: Benchmark, shift: Shift) -> None:
    """Raises ConfigError for a domain that the benchmark does not have, and for a source whose licence forbids it."""
    for name in (*shift.sources, *shift.targets):
        if name not in benchmark.domains:
            raise ConfigError(f"{benchmark.name} has no domain '{name}'; it has {', '.join(benchmark.domains)}")
    for name in shift.sources:
        if benchmark.domains[name].eval_only:
            raise ConfigError(
                f"{name} is for evaluation only: its licence forbids to fit or to choose anything on it; "
                "it can be a target and no source"
            )


def with_pools(
    benchmark: Benchmark,
    shift: Shift,
    shots: int | None,
    seed: int,
    holdout: float = 0.2,
    picks: Picks | None = None,
) -> tuple[Benchmark, tuple[str, ...]]:
    """The benchmark in which the shift's sources have the images of their pools that a run needs, and which these are.

    Raises DataError; see ``with_pool``.
    """
    domains, drawn = dict(benchmark.domains), []
    for index, (name, domain) in enumerate(benchmark.domains.items()):
        if domain.pool is not None and name in shift.sources:
            domains[name] = with_pool(domain, index, benchmark.classes, shots, seed, holdout, picks)
            drawn.append(name)
    return replace(benchmark, domains=domains), tuple(drawn)
