"""A piece of a report beside its main tables: a table, a figure or both, the same on the page and as files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from clipdg.report import figures
from clipdg.report.formats import csv_text, escape_latex, escape_markdown, latex_table
from clipdg.storage.publish import publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
class Section:
    """``key`` names its files; ``draw`` makes its figure, narrow for a phone if asked; ``fold``: shown on a click."""

    key: str
    title: str
    caption: str
    sheet: Sheet | None = None
    draw: Callable[[bool], Figure] | None = None
    fold: bool = False
    in_markdown: bool = True  # its table, which may be long


def write(section: Section, slug: str, out: Path) -> dict[str, Any]:
    """Publish a section's files; what the page and its Markdown twin show of it."""
    name = f"{slug}-{section.key}"
    if section.sheet is not None:
        publish(out / "tables" / f"{name}.csv", section.sheet.csv.encode())
        publish(out / "tables" / f"{name}.tex", section.sheet.latex(section.caption, name).encode())
    drawn = None
    if section.draw is not None:
        wide = section.draw(False)
        svg = figures.render(wide, "svg")
        publish(out / "figures" / f"{name}.svg", svg)
        publish(out / "figures" / f"{name}.pdf", figures.render(wide, "pdf"))
        narrow = figures.render(section.draw(True), "svg")
        title = f"{section.title}, {slug}"
        drawn = (figures.for_page(_own_ids(svg, name), title), figures.for_page(_own_ids(narrow, f"{name}-n"), title))
    return {"section": section, "name": name, "drawn": drawn}


def _own_ids(svg: bytes, name: str) -> bytes:
    """Groups are named after what they hold (axes_1): in a page with several drawings each name must be one's own."""
    text = svg.decode()
    return re.sub(r' id="([a-zA-Z]+_[0-9]+)"', lambda m: f' id="{name}-{m[1]}"', text).encode()
