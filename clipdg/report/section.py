"""What a report's sections give: panels, each a table, a figure or both, the same on the page and as files.

A section is a file in report/sections/ that ends with ``SECTION = Section(order=…, make=make)``; ``make(studied)``
gives its panels, none where there is nothing to say. A panel's ``key`` names its files, after the benchmark's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipdg.report import figures
from clipdg.report.formats import csv_text, escape_latex, escape_markdown, latex_table
from clipdg.storage.publish import canonical, publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipdg.report.comparisons import Comparison
    from clipdg.report.samples import Samples
    from clipdg.report.tables import Setting, Study, Table


class Shown(NamedTuple):
    """What a cell says, and the value behind it in full; None where there is none."""

    text: str
    value: str | float | None

    @property
    def sort(self) -> str:
        return "" if self.value is None else str(self.value)


@dataclass(frozen=True)
class Sheet:
    """A table of any kind; its first column names the row. ``numeric``: the columns that are sorted as numbers."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Shown, ...], ...]
    numeric: tuple[int, ...]

    @property
    def csv(self) -> str:
        return csv_text([self.heads, *([("" if x.value is None else x.value) for x in row] for row in self.rows)])

    @property
    def markdown(self) -> str:
        lines = ["| " + " | ".join(map(escape_markdown, self.heads)) + " |"]
        lines.append("|" + "".join(" ---: |" if i in self.numeric else " :--- |" for i in range(len(self.heads))))
        lines += ["| " + " | ".join(escape_markdown(x.text) for x in row) + " |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def latex(self, caption: str, label: str) -> str:
        columns = "".join("r" if i in self.numeric else "l" for i in range(len(self.heads)))
        body = [" & ".join(escape_latex(x.text) for x in row) + " \\\\" for row in self.rows]
        return latex_table(columns, self.heads, body, caption, label)


@dataclass(frozen=True)
class Panel:
    """``key`` names its files; ``draw`` makes its figure, narrow for a phone if asked; ``fold``: shown on a click."""

    key: str
    title: str
    caption: str
    sheet: Sheet | None = None
    draw: Callable[[bool], Figure] | None = None
    fold: bool = False
    in_markdown: bool = True  # its table, which may be long


@dataclass(frozen=True)
class Studied:
    """What a section is made from: one study, which may stand in one table, and what is known of it.

    ``table``: accuracy by method and domain, with its averages. ``reference``: the row that others are compared with,
    the highest or the one called ``baseline``; None if no row has a mean. ``comparisons``: every other row beside it,
    image by image. ``samples``: the prediction for each image, of the runs that kept them.
    """

    study: Study
    table: Table
    reference: Setting | None
    comparisons: tuple[Comparison, ...]
    samples: Samples
    baseline: str | None = None


class Written:
    """The files of a report below ``out``, and which they are: the next report takes these away and no others.

    Beside a new report an older one's tables and figures would be read as its own.
    """

    LIST = ".report.json"

    def __init__(self, out: Path) -> None:
        self.out = out
        self._names: set[str] = set()

    def clear(self) -> None:
        """Take away the tables and figures that the last report here wrote."""
        with suppress(OSError, ValueError, TypeError):
            names = json.loads((self.out / self.LIST).read_text(encoding="utf-8"))["files"]
            for name in names:
                if re.fullmatch(r"(tables|figures)/[^/\\]+", name):
                    (self.out / name).unlink(missing_ok=True)

    def publish(self, name: str, content: bytes) -> None:
        """Write ``out/name``, whole or not at all."""
        publish(self.out / name, content)
        self._names.add(name)

    def finish(self) -> None:
        """Keep the list of what was written."""
        publish(self.out / self.LIST, canonical({"files": sorted(self._names)}))


def write(panel: Panel, slug: str, written: Written) -> dict[str, Any]:
    """Publish a panel's files; what the page and its Markdown twin show of it."""
    name = f"{slug}-{panel.key}"
    if panel.sheet is not None:
        written.publish(f"tables/{name}.csv", panel.sheet.csv.encode())
        written.publish(f"tables/{name}.tex", panel.sheet.latex(panel.caption, name).encode())
    drawn = None
    if panel.draw is not None:
        wide = panel.draw(False)
        svg = figures.render(wide, "svg")
        written.publish(f"figures/{name}.svg", svg)
        written.publish(f"figures/{name}.pdf", figures.render(wide, "pdf"))
        narrow = figures.render(panel.draw(True), "svg")
        title = f"{panel.title}, {slug}"
        drawn = (figures.for_page(_own_ids(svg, name), title), figures.for_page(_own_ids(narrow, f"{name}-n"), title))
    return {"section": panel, "name": name, "drawn": drawn}


def _own_ids(svg: bytes, name: str) -> bytes:
    """Groups are named after what they hold (axes_1): in a page with several drawings each name must be one's own."""
    text = svg.decode()
    return re.sub(r' id="([a-zA-Z]+_[0-9]+)"', lambda m: f' id="{name}-{m[1]}"', text).encode()
