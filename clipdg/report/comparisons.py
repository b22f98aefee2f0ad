"""Is a row's difference from the best row one of images, or could it be chance? Image by image, per domain.

The reference is the row with the highest mean on the shifted domains, or the one that is named. A row is compared with
it on the images that both were tested on, seed by seed (statistics.compare): where all seeds are tested on the same
images, an image is drawn with all its seeds; where the images follow the seed, each seed has its own. What fits nothing
(zero-shot) says the same for each seed and stands beside every seed of the other. Holm's correction is over all tests
of a study. To choose the best row by the same images favours it: a mark says that a row differs from it, not that it
would be the best on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from clipdg.core.errors import RecordError
from clipdg.records.evaluations import seed_name
from clipdg.records.record import Record
from clipdg.records.statistics import Paired, compare, holm, paired_difference, student_interval
from clipdg.report.samples import Samples
from clipdg.report.tables import Setting, Study, Table

LEVEL = 0.05
MAX_ROWS = 40  # of a study, the highest first: beyond it files take longer to read than a table is looked at


@dataclass(frozen=True)
class Comparison:
    """``label - reference`` on one column of the study's table."""

    label: str
    reference: str
    key: str
    domain: str
    seeds: tuple[str, ...]
    paired: Paired
    adjusted: float  # Holm, over all comparisons of the study
    over_seeds: tuple[float, float] | None  # Student's 95 % interval of the difference over seeds

    @property
    def differs(self) -> bool:
        return self.adjusted < LEVEL


def reference_row(study: Study, t: Table, baseline: str | None = None) -> Setting | None:
    """The row called ``baseline``, else the first comparable one with a mean; RecordError if no row is so called."""
    if baseline is not None:
        named = [row for row in study.rows if row.label == baseline]
        if not named:
            there = "; ".join(row.label for row in study.rows[:20])
            raise RecordError(f"no row '{baseline}' of {study.title} to compare with; there are: {there}")
        return named[0]
    means = {row.label: row.cells["shifted"].mean for row in t.rows if row.label in t.compared}
    return next((row for row in study.rows if means.get(row.label) is not None), None)


def comparisons(study: Study, t: Table, samples: Samples, baseline: str | None = None) -> list[Comparison]:
    """Each row with the reference on each domain of the table; nothing where predictions are not there."""
    reference = reference_row(study, t, baseline)
    if reference is None:
        return []
    found: list[Comparison] = []
    for row in study.rows[:MAX_ROWS]:
        for column in t.domains:
            if row is reference:
                continue
            shift, _, domain = column.key.partition("/")
            pairs = _pairs(row, reference, shift, domain, samples)
            if pairs:
                paired, seeds = _paired(pairs)
                mine, other = (next(r for r in t.rows if r.label == x.label).cells for x in (row, reference))
                spread = paired_difference(mine[column.key].values, other[column.key].values)
                over = None
                if spread is not None and len(spread[2]) > 1:
                    values = [mine[column.key].values[s] - other[column.key].values[s] for s in spread[2]]
                    over = student_interval(values)
                found.append(
                    Comparison(row.label, reference.label, column.key, column.head, seeds, paired, paired.p, over)
                )
    adjusted = holm([c.paired.p for c in found])
    return [replace(c, adjusted=p) for c, p in zip(found, adjusted, strict=True)]


def mark(t: Table, found: Sequence[Comparison]) -> Table:
    """The table with † at each cell that differs from the reference's."""
    return replace(t, differs=frozenset((c.label, c.key) for c in found if c.differs))


def explain(found: Sequence[Comparison]) -> str:
    """What † means, for a caption; nothing where nothing was compared."""
    if not found:
        return ""
    return (
        f"†: differs from “{found[0].reference}” on the same images (paired, exact, Holm-adjusted over "
        f"{len(found)} tests, p < {LEVEL})."
    )


def _pairs(
    row: Setting, reference: Setting, shift: str, domain: str, samples: Samples
) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """(seed, data, right, right of the reference) for each seed that both have, on the images that both have."""
    found = []
    for mine, other in _partners(row, reference, shift):
        data = mine.data.fingerprint
        if data != other.data.fingerprint:
            continue
        a, b = samples.of(mine, domain), samples.of(other, domain)
        if a is None or b is None:
            continue
        left, right = a.right, b.right
        if not np.array_equal(a.ids, b.ids):
            _, at, of = np.intersect1d(a.ids.astype(str), b.ids.astype(str), return_indices=True)
            left, right = left[at], right[of]
        if len(left):
            seed = seed_name(mine) if not _same_for_every_seed(mine) else seed_name(other)
            found.append((seed, data, left, right))
    return found


def _partners(row: Setting, reference: Setting, shift: str) -> list[tuple[Record, Record]]:
    mine, other = ({seed: r for (s, seed), r in x.runs.items() if s == shift} for x in (row, reference))
    if len(mine) == 1 and _same_for_every_seed(one := next(iter(mine.values()))):
        return [(one, r) for r in other.values()]
    if len(other) == 1 and _same_for_every_seed(one := next(iter(other.values()))):
        return [(r, one) for r in mine.values()]
    return [(mine[seed], other[seed]) for seed in mine if seed in other]


def _same_for_every_seed(record: Record) -> bool:
    return record.data.num_fit == 0 and list(record.seeded) == ["seed"]


def _paired(pairs: Sequence[tuple[str, str, np.ndarray, np.ndarray]]) -> tuple[Paired, tuple[str, ...]]:
    seeds = tuple(seed for seed, *_ in pairs)
    same = len({data for _, data, *_ in pairs}) == 1 and len({len(a) for *_, a, _ in pairs}) == 1
    join = np.stack if same else np.concatenate
    return compare(join([a for *_, a, _ in pairs]), join([b for *_, b in pairs])), seeds
