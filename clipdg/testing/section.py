"""The contract of a report section: ``check_section("my_package.my_section")``.

It is held on a study of four small runs, on the same study without predictions, and on one run alone.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

from clipdg.core import plugins
from clipdg.records.record import Record
from clipdg.report import comparisons
from clipdg.report.samples import Samples
from clipdg.report.section import Panel, Sheet, Studied, Written, write
from clipdg.report.tables import studies, table
from clipdg.runs import config
from clipdg.runs.run import run
from clipdg.runs.session import Session
from clipdg.testing.fitted import BENCHMARK, TARGET
from clipdg.testing.problem import Check, NotPossible, Problem, look, place, problems_in


@dataclass
class Subject:
    """A section, and where the records of the study lie."""

    name: str
    definition: plugins.Section
    folder: Path

    @cached_property
    def records(self) -> list[Record]:
        """Two methods with two seeds each."""
        session = Session()
        found = []
        for method in ("zero_shot", "linear_probe"):
            for seed in (0, 1):
                values: dict[str, Any] = {"benchmark": BENCHMARK, "shift": TARGET, "method": method, "seed": seed}
                values |= {"backbone": {"name": "tiny", "weights": "random:0"}}
                found += run(config.load(values=values), self.folder, session)
        return found

    @property
    def cases(self) -> dict[str, Studied]:
        """What it is asked about."""
        return {
            "a study of four runs": studied(self.records, [self.folder]),
            "a study without predictions": studied(self.records, []),
            "one run": studied(self.records[:1], [self.folder]),
        }

    def panels(self, case: Studied) -> list[Panel]:
        """What it says. Raises NotPossible where that is no panels, which the first check tells."""
        found = list(self.definition.make(case))
        if not all(isinstance(panel, Panel) for panel in found):
            raise NotPossible
        return found


def studied(records: list[Record], folders: list[Path]) -> Studied:
    """What a section is made from, of records of one study."""
    [study] = studies(records)
    samples, main = Samples(folders), table(study)
    compared = comparisons.comparisons(study, main, samples, None)
    return Studied(study, main, comparisons.reference_row(study, main, None), tuple(compared), samples)


def check_section(name: str) -> list[Problem]:
    """What a section does not hold of its contract; nothing if all is well."""
    return problems_in(checks(name))


def checks(name: str) -> list[Check]:
    """Everything that is looked at, with its problems."""
    every = [gives_panels, panels_have_names_of_their_own, sheets_have_a_cell_for_each_head, files_are_the_same_again]
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, CLIPDG_CACHE=f"{folder}/cache"):
        return look(every, Subject(name, plugins.section(name), Path(folder) / "out"), name)


def gives_panels(subject: Subject) -> Iterator[Problem]:
    """it gives panels, or nothing, of any study."""
    for case, about in subject.cases.items():
        given: Any = subject.definition.make(about)  # of a user's file: anything
        if not isinstance(given, list | tuple) or not all(isinstance(panel, Panel) for panel in given):
            yield Problem(
                f"make gives {given!r:.60} of {case}",
                place(subject.definition.make),
                "return a list of Panel, an empty one where there is nothing to say",
            )


def panels_have_names_of_their_own(subject: Subject) -> Iterator[Problem]:
    """each panel has a key that no other has, a title, and something to show."""
    where = place(subject.definition.make)
    taken: set[str] = set()
    for name in plugins.names("sections"):
        if name != subject.name:
            for about in subject.cases.values():
                taken |= {panel.key for panel in plugins.section(name).make(about)}
    for case, about in subject.cases.items():
        keys = [panel.key for panel in subject.panels(about)]
        for panel in subject.panels(about):
            if not re.fullmatch(r"[a-z0-9-]+", panel.key):
                yield Problem(f"the key '{panel.key}' is no part of a file name", where, "use a-z, 0-9 and -")
            if panel.key in taken or keys.count(panel.key) > 1:
                yield Problem(f"the key '{panel.key}' is another panel's too, of {case}", where, "take another key")
            if not panel.title or (panel.sheet is None and panel.draw is None):
                yield Problem(f"panel {panel.key} shows nothing", where, "give it a title and a sheet or a figure")


def sheets_have_a_cell_for_each_head(subject: Subject) -> Iterator[Problem]:
    """each row of a table has a cell for each head."""
    for about in subject.cases.values():
        for panel in subject.panels(about):
            sheet: Sheet | None = panel.sheet
            if sheet is None:
                continue
            wrong = [row for row in sheet.rows if len(row) != len(sheet.heads)]
            if wrong or not all(0 <= i < len(sheet.heads) for i in sheet.numeric):
                yield Problem(
                    f"panel {panel.key} has {len(sheet.heads)} heads, and a row or numeric that does not fit them",
                    place(subject.definition.make),
                    "give each row a Shown for each head; numeric holds places of heads",
                )


def files_are_the_same_again(subject: Subject) -> Iterator[Problem]:
    """its CSV, Markdown, LaTeX and figures are made, and are the same bytes when made again."""
    for case in subject.cases:
        first, again = (rendered(subject, case) for _ in range(2))
        differ = sorted(name for name in first.keys() | again.keys() if first.get(name) != again.get(name))
        if differ:
            yield Problem(
                f"{differ[0]} is another when it is made again of {case}",
                place(subject.definition.make),
                "draw nothing at random, and go through sets and folders in a stated order",
            )


def rendered(subject: Subject, case: str) -> dict[str, bytes]:
    """The files of all panels, and their Markdown."""
    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for panel in subject.panels(subject.cases[case]):
            write(panel, "study", Written(out))
            if panel.sheet is not None:
                found[f"{panel.key} in Markdown"] = panel.sheet.markdown.encode()
        return found | {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
