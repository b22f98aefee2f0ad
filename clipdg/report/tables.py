"""Records -> studies -> tables.

A study is what may stand in one table: one benchmark with the same images and one family of shifts (one source and its
targets, or each domain left out once). A row of it is one setting; its records differ in seed and shift only. A mean is
over seeds and nothing else:

    cell       a domain's accuracy, mean over the row's seeds
    source     per seed: mean over the sources of a shift, then over the shifts; then the mean over seeds
    shifted    per seed: mean over all targets; then the mean over seeds
    worst      the target domain with the lowest mean
    gap        per seed: source - shifted; then the mean over seeds

A cell is complete if each seed of the row has it. One that is not has no mean, and no average is made from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from clipdg.core.errors import RecordError
from clipdg.records.identity import identity
from clipdg.records.record import Evaluation, Record, ShiftUsed
from clipdg.records.statistics import mean_and_error, student_interval, wilson_interval
from clipdg.report.numbers import Metric, format_mean, metrics_of
from clipdg.storage.publish import digest

if TYPE_CHECKING:
    pass
from clipdg.records.evaluations import natural, reported, role, seed_name
from clipdg.report.row_labels import row_labels

MAX_SHOWN = 100  # rows of a table on a page or in a paper: nobody reads more, and CSV holds them all


# ---------------------------------------------------------------------------------------------------------------------
# Studies: which records may stand in one table


@dataclass(frozen=True)
class Setting:
    """One row: the records of a setting, over seeds and shifts."""

    label: str
    records: tuple[Record, ...]

    @cached_property
    def seeds(self) -> tuple[str, ...]:
        """The row's seeds, by name, wherever they occur."""
        return tuple(sorted({seed_name(r) for r in self.records}, key=natural))

    @cached_property
    def runs(self) -> Mapping[tuple[str, str], Record]:
        """(shift, seed) -> record."""
        return {(r.shift.name, seed_name(r)): r for r in self.records}

    @cached_property
    def reported(self) -> Mapping[tuple[str, str, str], Evaluation]:
        """(shift, seed, domain) -> the evaluation that counts, where there is one."""
        return {
            (name, seed, domain): evaluation
            for (name, seed), r in self.runs.items()
            for domain in (*r.shift.sources, *r.shift.targets)
            if (evaluation := reported(r, domain)) is not None
        }


@dataclass(frozen=True)
class Study:
    """Settings measured on the same shifts of the same benchmark."""

    title: str
    slug: str  # for file names
    shifts: tuple[ShiftUsed, ...]
    rows: tuple[Setting, ...]  # the highest mean on the shifted domains first

    @cached_property
    def records(self) -> tuple[Record, ...]:
        return tuple(r for row in self.rows for r in row.records)

    @cached_property
    def num_images(self) -> Mapping[tuple[str, str], set[int]]:
        """(shift, domain) -> the different numbers of images that it was tested on."""
        found: dict[tuple[str, str], set[int]] = {}
        for row in self.rows:
            for (shift, _, domain), evaluation in row.reported.items():
                found.setdefault((shift, domain), set()).add(evaluation.num_images)
        return found

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that at least one evaluation has."""
        have = {k for r in self.records for e in r.evaluations for k, v in e.metrics.items() if v is not None}
        return tuple(m for m in metrics_of(self.records).values() if m.name in have)


def studies(records: Sequence[Record]) -> list[Study]:
    """Records sorted into what is comparable, by benchmark. Raises RecordError if a setting has the same seed twice."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_study_key(record), []).append(record)
    found = [_study(group) for group in groups.values()]
    found.sort(key=lambda s: (natural(s.title), [sorted(shift.sources) for shift in s.shifts], s.records[0].run_id))
    titles = [s.title for s in found]
    result, slugs = [], set[str]()
    for study in found:
        title = study.title
        if titles.count(title) > 1:
            title += f" ({describe_shifts(study)}; data {study.records[0].data.fingerprint[:8]})"
        slug = re.sub(r"[^a-z0-9]+", "-", study.title.lower()).strip("-") or "benchmark"
        slug = next(s for s in (slug, *(f"{slug}-{i}" for i in range(2, len(found) + 2))) if s not in slugs)
        slugs.add(slug)
        result.append(Study(title, slug, study.shifts, study.rows))
    return result


def describe_shifts(study: Study) -> str:
    """``photo → cartoon, sketch``; ``each of art, photo, sketch left out once``."""
    if len(study.shifts) == 1:
        shift = study.shifts[0]
        return f"{', '.join(shift.sources) or 'no source'} → {', '.join(shift.targets) or 'no target'}"
    if all(len(s.targets) == 1 for s in study.shifts):
        return f"each of {', '.join(s.targets[0] for s in study.shifts)} left out once"
    return "; ".join(f"{', '.join(s.sources)} → {', '.join(s.targets)}" for s in study.shifts)


def _study_key(record: Record) -> str:
    seeded, shift = record.seeded, record.shift
    own = identity({"benchmark": record.config["benchmark"]})
    settings = {k: v for k, v in own.items() if k not in seeded and k != "benchmark"}
    data = None if "benchmark.seed" in seeded else record.data.fingerprint
    family = [sorted({*shift.sources, *shift.targets}), len(shift.targets)]
    return digest([record.data.benchmark, settings, data, family])


def row_key(record: Record) -> str:
    """What the records of one row share: they differ in the seed and the shift, and in nothing else."""
    return record.row


def _study(records: list[Record]) -> Study:
    grouped: dict[str, dict[tuple[str, Any], Record]] = {}
    for record in sorted(records, key=lambda r: r.run_id):
        runs = grouped.setdefault(row_key(record), {})
        key = (record.shift.name, seed_name(record))
        if key in runs:
            raise RecordError(_twice(runs[key], record))
        runs[key] = record
    # The benchmark's own order of domains if the records agree on it, else the alphabet's.
    orders = {tuple(r.data.num_images) for r in records}
    order = list(orders.pop()) if len(orders) == 1 else sorted(set().union(*orders))
    place = {domain: i for i, domain in enumerate(order)}
    shifts = {r.shift.name: r.shift for r in records}
    for record in records:
        assert shifts[record.shift.name] == record.shift, "one name for two shifts"
    ordered = tuple(
        shifts[name]
        for name in sorted(shifts, key=lambda n: ([place.get(d, len(order)) for d in shifts[n].targets], n))
    )
    keys = sorted(grouped)
    rows = [list(grouped[k].values()) for k in keys]
    settings = [
        Setting(label, tuple(sorted(row, key=lambda r: (natural(seed_name(r)), r.shift.name))))
        for label, row in zip(row_labels(rows, keys), rows, strict=True)
    ]
    study = Study(records[0].data.benchmark, "", ordered, tuple(settings))
    shifted = {row.label: row.cells["shifted"].mean for row in table(study).rows}
    settings.sort(key=lambda s: (-(-1.0 if (mean := shifted[s.label]) is None else mean), natural(s.label)))
    return Study(study.title, "", ordered, tuple(settings))


def _twice(first: Record, second: Record) -> str:
    versions = [r.versions for r in (first, second)]
    differing = sorted(k for k in {*versions[0], *versions[1]} if versions[0].get(k) != versions[1].get(k))
    why = f" (versions differ: {', '.join(differing)})" if differing else ""
    return (
        f"runs {first.run_id} and {second.run_id} are the same setting, shift and seed {seed_name(first)}{why}; "
        "report them from different folders or delete one"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@dataclass(frozen=True)
class Cell:
    """One number of a row: ``values`` by seed, of the ``expected`` seeds that the row has."""

    values: Mapping[str, float]
    expected: int
    note: str = ""  # the worst domain's name

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def summary(self) -> tuple[float | None, float | None]:
        """Mean and standard error."""
        return self.mean, self.error

    @cached_property
    def mean(self) -> float | None:
        """Over the seeds; None if one is missing."""
        return fmean(self.values.values()) if self.n == self.expected else None

    @cached_property
    def error(self) -> float | None:
        """The mean's standard error over the seeds; None if one is missing or there is one only."""
        return mean_and_error(list(self.values.values()))[1] if self.n == self.expected else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval of the mean over seeds; None where there is no error."""
        return None if self.error is None else student_interval(list(self.values.values()))


@dataclass(frozen=True)
class Column:
    key: str
    head: str
    role: Literal["source", "target", "average"]
    num_images: tuple[int, ...] = ()  # the different numbers of images that its runs were tested on, ascending


@dataclass(frozen=True)
class Row:
    label: str
    seeds: tuple[str, ...]
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Method x domain, with the averages as last columns: source, shifted, worst, gap."""

    metric: Metric
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    compared: tuple[str, ...]  # labels of the rows among which best and second best are marked
    marks: Mapping[tuple[str, str], Literal["best", "second"]] = field(default_factory=dict)  # (label, column key)
    differs: frozenset[tuple[str, str]] = frozenset()  # (label, column key) of cells marked † (comparisons.py)

    def only(self, keys: Iterable[str]) -> Table:
        """The same table with fewer columns."""
        wanted = set(keys)
        return replace(self, columns=tuple(c for c in self.columns if c.key in wanted))

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows that pages and papers show; CSV holds them all."""
        return self.rows[:MAX_SHOWN]

    def first(self, number: int) -> Table:
        """The same table with its first rows only."""
        return replace(self, rows=self.rows[:number])

    @property
    def domains(self) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.role != "average")

    @property
    def incomplete(self) -> list[tuple[str, str, Cell]]:
        """(row, domain, cell) wherever a seed of the row is missing."""
        return [
            (r.label, c.head, r.cells[c.key]) for r in self.rows for c in self.domains if r.cells[c.key].mean is None
        ]

    def text(self, row: Row, column: Column) -> str:
        """``"66.6 ± 2.5"``; ``"2/3"``, seeds done of seeds expected, where the mean is missing."""
        cell = row.cells[column.key]
        if cell.mean is None:
            return f"{cell.n}/{cell.expected}" if column.role != "average" else ""
        return format_mean(cell.mean, cell.error, self.metric)


def robustness(records: Sequence[Record], metric: str = "top1") -> Table:
    """Method x domain for records of one study. Raises RecordError if they belong to several."""
    found = studies(records)
    if len(found) != 1:
        names = "; ".join(f"{s.title}: {describe_shifts(s)}" for s in found)
        raise RecordError(f"{len(records)} records of {len(found)} studies do not make one table ({names})")
    return table(found[0], metric)


def table(study: Study, metric: str = "top1") -> Table:
    """The study's table of one metric."""
    # Within one shift each domain has a column; over several, a source's number would mix classifiers that were
    # trained on different domains, so only targets have one.
    places = [(s.name, d, "target") for s in study.shifts for d in s.targets]
    if len(study.shifts) == 1:
        places = [(study.shifts[0].name, d, "source") for d in study.shifts[0].sources] + places
    heads = [d for _, d, _ in places]
    columns = []
    for name, domain, kind in places:
        shift = next(s for s in study.shifts if s.name == name)
        head = domain if heads.count(domain) == 1 else f"{', '.join(shift.sources)} → {domain}"
        kind_: Literal["source", "target"] = "source" if kind == "source" else "target"
        columns.append(Column(f"{name}/{domain}", head, kind_, _num_images(study, [(name, domain)])))
    sources = _num_images(study, [(s.name, d) for s in study.shifts for d in s.sources])
    columns.append(Column("source", "source", "average", sources))
    columns += [
        Column(key, head, "average")
        for key, head in (("shifted", "shifted"), ("worst", "worst domain"), ("gap", "gap"))
    ]
    spec = metrics_of(study.records)[metric]
    rows = tuple(_row(study, setting, columns, spec) for setting in study.rows)
    compared = _comparable(study)
    return Table(spec, tuple(columns), rows, compared, _marks(rows, columns, compared, spec))


def _num_images(study: Study, places: Sequence[tuple[str, str]]) -> tuple[int, ...]:
    """The different numbers of images that (shift, domain) was tested on, ascending."""
    return tuple(sorted({n for place in places for n in study.num_images.get(place, ())}))


def _row(study: Study, setting: Setting, columns: Sequence[Column], metric: Metric) -> Row:
    def value(shift: str, seed: str, domain: str) -> float | None:
        evaluation = setting.reported.get((shift, seed, domain))
        number = evaluation.metrics.get(metric.name) if evaluation else None
        return None if number is None else float(number)

    def mean(numbers: list[float | None]) -> float | None:
        there = [x for x in numbers if x is not None]
        return sum(there) / len(there) if there and len(there) == len(numbers) else None

    def cell(by_seed: Mapping[str, float | None], note: str = "") -> Cell:
        return Cell({s: x for s, x in by_seed.items() if x is not None}, len(setting.seeds), note)

    cells = {}
    for shift in study.shifts:
        for domain in (*shift.sources, *shift.targets):
            key = f"{shift.name}/{domain}"
            cells[key] = cell({seed: value(shift.name, seed, domain) for seed in setting.seeds})
    source = {
        seed: mean([mean([value(s.name, seed, d) for d in s.sources]) for s in study.shifts]) for seed in setting.seeds
    }
    shifted = {seed: mean([value(s.name, seed, d) for s in study.shifts for d in s.targets]) for seed in setting.seeds}
    cells["source"], cells["shifted"] = cell(source), cell(shifted)
    gap = {s: a - b if (a := source[s]) is not None and (b := shifted[s]) is not None else None for s in setting.seeds}
    cells["gap"] = cell(gap)

    targets = [c for c in columns if c.role == "target"]
    means = [m for c in targets if (m := cells[c.key].mean) is not None]
    if means and len(means) == len(targets):
        worst = targets[means.index(min(means) if metric.better == "higher" else max(means))]
        cells["worst"] = Cell(cells[worst.key].values, len(setting.seeds), worst.head)
    else:
        cells["worst"] = Cell({}, len(setting.seeds))
    shown = {c.key for c in columns}
    return Row(setting.label, setting.seeds, {k: c for k, c in cells.items() if k in shown})


def _comparable(study: Study) -> tuple[str, ...]:
    """Rows tested on the same images: all, or, where the images follow the seed, the most that share their seeds."""
    classes: dict[tuple[str, ...], list[str]] = {}
    for row in study.rows:
        follows = "benchmark.seed" in row.records[0].seeded
        classes.setdefault(row.seeds if follows else (), []).append(row.label)
    return tuple(max(classes.items(), key=lambda item: (len(item[1]), len(item[0]), item[0]))[1])


def _marks(
    rows: Sequence[Row], columns: Sequence[Column], compared: Sequence[str], metric: Metric
) -> dict[tuple[str, str], Literal["best", "second"]]:
    """Best and second best by the number as printed, so that equal numbers are marked equally.

    A gap has no best, since a poor source makes it small; nor has a column whose highest number most rows share.
    """
    marks: dict[tuple[str, str], Literal["best", "second"]] = {}
    sign = 1 if metric.better == "higher" else -1
    for column in columns:
        values = {
            r.label: sign * round(mean * metric.scale, metric.decimals)
            for r in rows
            if r.label in compared and (mean := r.cells[column.key].mean) is not None
        }
        if column.key == "gap":
            continue
        ranks = sorted(set(values.values()), reverse=True)
        if len(ranks) < 2 or 2 * list(values.values()).count(ranks[0]) > len(values):
            continue
        for label, number in values.items():
            if number == ranks[0]:
                marks[label, column.key] = "best"
            elif number == ranks[1]:
                marks[label, column.key] = "second"
    return marks


# ---------------------------------------------------------------------------------------------------------------------
# Single runs


@dataclass(frozen=True)
class Single:
    """One accuracy of one run, with its 95 % Wilson interval over images: no statement about other seeds."""

    label: str
    seed: str
    run_id: str
    shift: str
    domain: str
    role: str
    split: str
    step: int | None
    num_images: int
    top1: float
    low: float
    high: float


def singles(study: Study) -> list[Single]:
    """Every reported top-1 accuracy of every run."""
    found = []
    for row in study.rows:
        for r in row.records:
            shift = r.shift
            for domain in (*shift.sources, *shift.targets):
                e = reported(r, domain)
                if e is None or (top1 := e.metrics.get("top1")) is None:
                    continue
                low, high = wilson_interval(top1, e.num_images)
                found.append(
                    Single(row.label, seed_name(r), r.run_id, shift.name, domain, role(r, domain), e.split,
                           e.step, e.num_images, top1, low, high)
                )  # fmt: skip
    return found
