"""DomainBed's tables: for each criterion one per data set, and their averages, by its rules and its rounding.

domainbed/scripts/collect_results.py at b93c22a. A cell is, over the trials, ``100 mean`` and
``100 std(ddof=0) / sqrt(n)``; its "Avg" is the mean of the unrounded means, without an error. The averages table takes
each trial's mean over the test domains first. Where the other tables of this kit show a standard error with ddof 1,
these show DomainBed's, and say so.

DomainBed averages over whatever is there, so that half a sweep looks like a whole one. Here a sweep with missing runs
is refused unless that is asked for; then each cell that lacks something says how many trials it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clipdg.core.errors import RecordError
from clipdg.records.domainbed_import import ENVIRONMENTS
from clipdg.records.evaluations import natural
from clipdg.records.model_selection import CRITERIA, Checkpoint, Choice, Criterion, barred, checkpoints_of, select
from clipdg.records.record import Record
from clipdg.report import formats, html
from clipdg.storage.publish import publish

SPREAD = "Mean over trials ± standard error as DomainBed computes it (standard deviation with ddof 0, / √n)"
FOOTER = (
    "Test accuracy is that on the test domain's larger split (DomainBed: 80 %), not on all of the domain.",
    "The oracle looks at the test domain's own held-out images, at the last checkpoint only. It is an upper bound.",
    "Validation images of the training domains are augmented in DomainBed; clipdg's are not unless a run says so.",
)
# As DomainBed lists them; others follow by name.
ALGORITHMS = (
    "ERM", "Fish", "IRM", "GroupDRO", "Mixup", "MLDG", "CORAL", "MMD", "DANN", "CDANN", "MTL", "SagNet", "ARM", "VREx",
    "RSC", "SD", "ANDMask", "SANDMask", "IGA", "SelfReg",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Accuracies by trial, of the trials that the row has anywhere."""

    values: Mapping[int, float]
    expected: int

    @property
    def mean(self) -> float | None:
        return float(100 * np.mean(list(self.values.values()))) if self.values else None

    @property
    def text(self) -> str:
        """``"20.0 +/- 4.7"``, as DomainBed prints it; "X" if nothing is there."""
        if not self.values:
            return "X"
        values = np.array(list(self.values.values()))
        error = 100 * np.std(values / np.sqrt(len(values)))
        text = f"{self.mean:.1f} +/- {error:.1f}"
        return text if len(values) == self.expected else f"{text} ({len(values)}/{self.expected})"


@dataclass(frozen=True)
class Table:
    """Rows are algorithms; columns are test domains or data sets, and "Avg"."""

    criterion: Criterion
    title: str  # a data set, or "Averages"
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Cell]]

    def average(self, algorithm: str) -> str:
        means = [self.rows[algorithm][c].mean for c in self.columns]
        there = [m for m in means if m is not None]
        return f"{sum(there) / len(there):.1f}" if len(there) == len(means) else "X"

    @property
    def lines(self) -> list[list[str]]:
        """The head and a line for each algorithm, as text."""
        head = ["Algorithm", *self.columns, "Avg"]
        return [head, *([a, *(self.rows[a][c].text for c in self.columns), self.average(a)] for a in self.rows)]


@dataclass(frozen=True)
class Protocol:
    """All tables of a sweep, and what it lacks: one sentence each."""

    tables: tuple[Table, ...]
    missing: tuple[str, ...]
    num_runs: int

    @cached_property
    def text(self) -> str:
        """The tables for a terminal."""
        parts = []
        for table in self.tables:
            widths = [max(map(len, column)) for column in zip(*table.lines, strict=True)]
            body = ["  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in table.lines]
            parts.append("\n".join([f"-------- {table.title}, {CRITERIA[table.criterion]}", *body]))
        return "\n\n".join(parts)


def protocol(records: Sequence[Record], incomplete: bool = False) -> Protocol:
    """Every criterion on the records.

    Raises RecordError if runs are missing and ``incomplete`` is False, or if one draw is there twice.
    """
    groups: dict[tuple[str, str, int], list[Checkpoint]] = {}
    orders: dict[str, tuple[str, ...]] = {}
    for record in records:
        for checkpoint in checkpoints_of(record):
            groups.setdefault((checkpoint.benchmark, checkpoint.algorithm, checkpoint.trial), []).append(checkpoint)
        orders.setdefault(str(record.data.benchmark), tuple(record.data.num_images))
    missing = _missing(groups)
    if missing and not incomplete:
        raise RecordError(
            f"the sweep is not complete: {missing[0]}{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; "
            "run it to its end, or give --incomplete for means over what is there"
        )
    benchmarks = sorted({b for b, _, _ in groups}, key=_place(tuple(ENVIRONMENTS)))
    algorithms = sorted({a for _, a, _ in groups}, key=_place(ALGORITHMS))
    tables: list[Table] = []
    for criterion in CRITERIA:
        choices: dict[tuple[str, str, int, str], Choice] = {}
        for (benchmark, algorithm, trial), checkpoints in groups.items():
            for target in dict.fromkeys(t for c in checkpoints for t in c.targets):
                if barred(checkpoints, target, criterion):
                    continue  # its cell stays empty: its licence forbids to choose anything on it
                if (choice := select(checkpoints, target, criterion)) is not None:
                    choices[benchmark, algorithm, trial, target] = choice
        if choices:
            tables += _tables(criterion, choices, benchmarks, algorithms, orders)
    if not tables:
        raise RecordError("no run has what any of the criteria needs: a held-out split of its training domains")
    return Protocol(tuple(tables), tuple(missing), len(records))


def _tables(
    criterion: Criterion,
    choices: Mapping[tuple[str, str, int, str], Choice],
    benchmarks: Sequence[str],
    algorithms: Sequence[str],
    orders: Mapping[str, tuple[str, ...]],
) -> list[Table]:
    found = []
    averages: dict[str, dict[str, Cell]] = {a: {} for a in algorithms}
    for benchmark in benchmarks:
        targets = {t for b, _, _, t in choices if b == benchmark}
        columns = tuple(d for d in orders[benchmark] if d in targets)
        rows = {}
        for algorithm in algorithms:
            own = {(trial, t): c.test for (b, a, trial, t), c in choices.items() if (b, a) == (benchmark, algorithm)}
            trials = sorted({trial for trial, _ in own})
            rows[algorithm] = {t: Cell({n: own[n, t] for n in trials if (n, t) in own}, len(trials)) for t in columns}
            by_trial = {n: float(np.mean([x for (m, _), x in own.items() if m == n])) for n in trials}
            averages[algorithm][benchmark] = Cell(by_trial, len(trials))
        found.append(Table(criterion, benchmark, columns, rows))
    return [*found, Table(criterion, "Averages", tuple(benchmarks), averages)]


def _missing(groups: Mapping[tuple[str, str, int], Sequence[Checkpoint]]) -> list[str]:
    """What a row's trials, draws and held-out domains lack of one another, and of the other algorithms' trials."""
    found = []
    for benchmark in dict.fromkeys(b for b, _, _ in groups):
        trials = sorted({n for b, _, n in groups if b == benchmark})
        for algorithm in sorted({a for b, a, _ in groups if b == benchmark}):
            own = {n: groups.get((benchmark, algorithm, n), ()) for n in trials}
            planned = {(c.draw, c.targets) for checkpoints in own.values() for c in checkpoints}
            for trial, checkpoints in own.items():
                lacking = planned - {(c.draw, c.targets) for c in checkpoints}
                if lacking:
                    draw, targets = min(lacking)
                    found.append(
                        f"{algorithm} on {benchmark}, trial {trial}: {len(lacking)} of {len(planned)} runs are missing "
                        f"(the first: draw {draw} without {', '.join(targets)})"
                    )
    return found


def _place(order: Sequence[str]):  # type: ignore[no-untyped-def]  # a sort key of mixed parts
    return lambda name: (order.index(name) if name in order else len(order), natural(name))


def write_protocol(records: Sequence[Record], out: Path, incomplete: bool = False) -> Protocol:
    """Write report.html, report.md and tables/ below ``out``."""
    found = protocol(records, incomplete)
    for table in found.tables:
        name = f"domainbed-{table.criterion}-{''.join(c if c.isalnum() else '-' for c in table.title.lower())}"
        publish(out / "tables" / f"{name}.csv", formats.csv_text(_numbers(table)).encode())
        publish(out / "tables" / f"{name}.tex", _latex(table, name).encode())
    notes = (f"{SPREAD}; Avg: mean of the unrounded means.", *FOOTER)
    context = {
        "title": "DomainBed's tables",
        "tables": found.tables,
        "criteria": CRITERIA,
        "missing": found.missing,
        "num_runs": found.num_runs,
        "notes": notes,
    }
    publish(out / "report.md", _markdown(found, notes).encode())
    publish(out / "report.html", html.render("protocol.html.jinja", context).encode())
    return found


def _numbers(table: Table) -> list[list[object]]:
    """Fractions of every trial."""
    head: list[object] = ["algorithm", "column", "trial", "top1"]
    return [
        head,
        *([a, c, n, x] for a in table.rows for c in table.columns for n, x in table.rows[a][c].values.items()),
    ]


def _latex(table: Table, label: str) -> str:
    escape = formats.escape_latex
    head, *body = table.lines
    lines = [" & ".join(escape(x).replace("+/-", "$\\pm$") for x in line) + " \\\\" for line in body]
    caption = f"{table.title}, {CRITERIA[table.criterion]}. {SPREAD}."
    return formats.latex_table(f"l{'c' * (len(head) - 1)}", head, lines, caption, label)


def _markdown(found: Protocol, notes: Sequence[str]) -> str:
    escape = formats.escape_markdown
    lines = ["# DomainBed's tables", "", f"{found.num_runs} runs.", ""]
    if found.missing:
        lines += ["**Runs are missing:**", "", *(f"- {escape(m)}" for m in found.missing), ""]
    for table in found.tables:
        head, *body = table.lines
        lines += [f"## {escape(table.title)}: {CRITERIA[table.criterion]}", "", f"| {' | '.join(map(escape, head))} |"]
        lines.append("| :--- |" + " ---: |" * (len(head) - 1))
        lines += [f"| {' | '.join(map(escape, line))} |" for line in body] + [""]
    return "\n".join([*lines, *(f"- {escape(n)}" for n in notes), ""])
