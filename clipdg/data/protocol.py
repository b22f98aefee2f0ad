"""The protocol of one shift: which images are fitted on, which settings are chosen on, and which are tested.

It is decided here and nowhere else, as a value that a data module and a run both take, and a record says what it was
(``Protocol.told``), from which reports and model selection read it.

    fit          a source's "train" or "in" split, ``shots`` images of every class in it, or the listed ones
    validation   a source's "val" or "out" split; with shots, min(shots, 4) images of every class in it, as CoOp and the
                 CLIP paper's probe do
    tested       every split of every domain of the shift, and all images of a target without a published test split;
                 a source's held-out split is not tested by a method that was fitted on it in the end

Legend: N images of a domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clipdg.core.benchmark import Benchmark, Shift
from clipdg.core.errors import ConfigError
from clipdg.core.seeding import seed_hash
from clipdg.core.splits import ALL, FITTED, HELD_OUT, TEST, reported_split
from clipdg.data.few_shot_list import Picks
from clipdg.data.splits import pick, splits
from clipdg.data.test_set import TestSet

VALIDATION_SHOTS = 4  # of a class at most (KaiyangZhou/CoOp; Radford et al. 2021, appendix A.3)
Rows = Mapping[str, np.ndarray]  # row indices by domain or by split


@dataclass(frozen=True)
class Stream:
    """Images that are tested one after the other: rows (n,) of a domain, each in the split of its number."""

    test_set: TestSet
    rows: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True)
class Protocol:
    """What is fitted on, chosen on and tested, by domain; see the top of this file.

    ``splits``: the rows of every split of each domain of the shift, in the benchmark's order. ``refits``: whether the
    method is fitted on the validation images too in the end. ``adapts``: whether it adapts at test time, so that each
    tested domain is a stream in a seeded order.
    """

    benchmark: Benchmark
    shift: Shift
    seed: int
    splits: Mapping[str, Rows]
    fit: Rows
    validation: Rows
    refits: bool = False
    adapts: bool = False

    @cached_property
    def fitted(self) -> Rows:
        """The rows that the classifier has been fitted on in the end, by source."""
        if not self.refits:
            return self.fit
        return {name: np.concatenate([rows, self.validation[name]]) for name, rows in self.fit.items()}

    def is_source(self, domain: str) -> bool:
        return domain in self.shift.sources

    def is_whole(self, domain: str) -> bool:
        """Whether all images of the domain are tested together too: a target without a published test split."""
        return domain in self.shift.targets and TEST not in self.splits[domain]

    def tested(self, domain: str) -> Rows:
        """The splits of a domain that are tested."""
        fitted = HELD_OUT if self.refits and self.is_source(domain) else ()
        return {split: rows for split, rows in self.splits[domain].items() if split not in fitted}

    def reported(self, domain: str) -> str | None:
        """The split of a domain that tables show; None of a source of which nothing is left to test."""
        there = [split for split, rows in self.tested(domain).items() if len(rows)]
        return reported_split(self.is_source(domain), [*there, ALL] if self.is_whole(domain) else there)

    def streams(self, *, reported_only: bool = False) -> list[Stream]:
        """What is tested, in the benchmark's order: each domain's images once, or those of its reported split alone.

        A method that adapts gets the images of each stream in an order that follows the seed; where a domain's splits
        are reported apart, each split is a stream of its own.
        """
        return [stream for domain in self.splits for stream in self._streams(domain, reported_only)]

    def _streams(self, domain: str, reported_only: bool) -> Iterator[Stream]:
        tested, whole = self.tested(domain), self.is_whole(domain)
        if reported_only:
            split = self.reported(domain)
            if split is None:
                return
            rows = np.sort(np.concatenate(list(tested.values()))) if split == ALL else tested[split]
            if len(rows):
                yield self._stream(domain, {split: rows}, whole=False, last=True)
        elif self.adapts and not whole:
            parts = [split for split, rows in tested.items() if len(rows)]
            for split in parts:
                yield self._stream(domain, {split: tested[split]}, whole=False, last=split in (TEST, parts[-1]))
        else:
            yield self._stream(domain, tested, whole=whole, last=True)

    def _stream(self, name: str, tested: Rows, *, whole: bool, last: bool) -> Stream:
        """``last``: whether the domain's class subsets are evaluated on this stream."""
        domain = self.benchmark.domains[name]
        rows = np.concatenate([*tested.values(), np.empty(0, dtype=np.int64)]).astype(np.int64)
        numbers = np.repeat(np.arange(len(tested)), [len(r) for r in tested.values()])
        if self.adapts:
            place = np.argsort(rows, kind="stable")
            kind = ALL if whole else next(iter(tested))
            place = place[np.random.RandomState(stream_seed(self.seed, name, kind)).permutation(len(rows))]
            rows, numbers = rows[place], numbers[place]
        subsets = domain.class_subsets if last else {}
        return Stream(TestSet(name, tuple(tested), domain.subset, whole, subsets), rows, numbers)

    def num_images(self, domain: str, split: str) -> int:
        """How many images an evaluation of a domain is over: of a split, of all of them, or of a class subset."""
        parts = self.splits[domain]
        if split in parts:
            return len(parts[split])
        whole = np.concatenate(list(parts.values()))
        if split == ALL:
            return len(whole)
        found = self.benchmark.domains[domain]
        labels = found.rows.labels[parts.get(TEST, whole)]
        return int(np.isin(labels, found.class_subsets[split].ids).sum())

    def told(self) -> dict[str, Any]:
        """What a record says of it: the split that each source was fitted and validated on, and what is reported."""
        return {
            "fit": {name: _present(self.splits[name], FITTED) for name in self.fit},
            "validation": {name: _present(self.splits[name], HELD_OUT) for name in self.validation},
            "reported": {name: split for name in self.splits if (split := self.reported(name)) is not None},
            "refitted": self.refits,
        }


def decide(
    benchmark: Benchmark,
    shift: Shift,
    *,
    shots: int | None = None,
    picks: Picks | None = None,
    seed: int = 0,
    holdout: float = 0.2,
    learns: bool = True,
    validates: bool = True,
    refits: bool = False,
    adapts: bool = False,
) -> Protocol:
    """The protocol of one shift. No image is read, and of targets nothing but how many images they have.

    ``learns``: whether anything is fitted. ``validates``: whether settings are chosen on validation images. A pool of
    training images must have been drawn from before (``data.splits.with_pools``).

    Raises:
        ConfigError: a source has no training images.
        DataError: a class has fewer images than ``shots``, or the list of images does not fit the data.
    """
    parts = {
        name: splits(domain, index, seed, holdout)
        for index, (name, domain) in enumerate(benchmark.domains.items())
        if name in shift.sources or name in shift.targets
    }
    fit: dict[str, np.ndarray] = {}
    validation: dict[str, np.ndarray] = {}
    for source in shift.sources if learns else ():
        domain, own = benchmark.domains[source], parts[source]
        split = _present(own, FITTED)
        if split is None or not len(own[split]):
            raise ConfigError(
                f"{benchmark.name} has no training images in '{source}' (only {', '.join(own)}); "
                "it can be a target and no source"
            )
        if picks is not None:
            fit[source] = picks.rows(domain, benchmark.classes, own[split], shots)
        else:
            fit[source] = pick(domain, benchmark.classes, own[split], shots, seed)
        if validates:
            held_out = _present(own, HELD_OUT)
            order = own[held_out] if held_out is not None else np.empty(0, dtype=np.int64)
            few = None if shots is None else min(shots, VALIDATION_SHOTS)
            validation[source] = pick(domain, benchmark.classes, order, few, seed, enough=False)
    return Protocol(benchmark, shift, seed, parts, fit, validation, refits, adapts)


def stream_seed(seed: int, domain: str, split: str) -> int:
    """The seed of the order in which a method that adapts sees the images of a domain (numpy's RandomState)."""
    return seed_hash("stream", seed, domain, split)


def _present(parts: Rows, wanted: tuple[str, ...]) -> str | None:
    return next((split for split in wanted if split in parts), None)
