"""The figures: accuracy per domain, and source against shift. SVG for pages, PDF for papers; same numbers, same bytes.

Colours are three: the source, the targets, the mean of the targets. They differ in lightness and in marker too, so that
nothing rests on hue (Okabe and Ito's blue and vermilion). The ink colours are replaced by the page's own where a figure
stands in a page, so that one drawing serves light and dark.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from clipdg.report.tables import Cell, Column, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

INK, SOFT, GRID, PAPER = "#1f2328", "#656d77", "#d8dce1", "#ffffff"
SOURCE, TARGET, MEAN = "#0072b2", "#d55e00", "#1f2329"  # MEAN is ink, one step off so that it can be told from text
MAX_DRAWN = 40  # rows of a table in a figure, the highest first: more names than that stand above each other
# What each colour becomes in a page: custom properties that page.css defines for light and dark.
PAGE_COLOURS = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    GRID: "var(--rule)",
    PAPER: "var(--paper)",
    SOURCE: "var(--source)",
    TARGET: "var(--target)",
    MEAN: "var(--ink)",
}

_RC: dict[Any, object] = {  # Any: matplotlib types its keys as one long Literal
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,  # a "$" in a label is a "$"
    "svg.fonttype": "none",  # text stays text: searchable, and any script can be shown
    "pdf.fonttype": 42,
    "axes.edgecolor": GRID,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
}


@contextmanager
def style(size: float) -> Iterator[None]:
    """matplotlib's settings while one of our figures is drawn; ``size`` in points."""
    import matplotlib

    with matplotlib.rc_context({**_RC, "font.size": size}), warnings.catch_warnings():
        # A domain may be named in a script that the metrics font lacks; the SVG shows it all the same.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def render(figure: Figure, form: str) -> bytes:
    """SVG or PDF without a date, so that the same records make the same bytes."""
    import matplotlib

    out = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"CreationDate": None}
    with style(8), matplotlib.rc_context({"svg.hashsalt": figure.get_label() or "clipdg"}):
        figure.savefig(out, format=form, metadata=metadata)
    return out.getvalue()


def for_page(svg: bytes, title: str) -> str:
    """The drawing as an element of a page: its colours are the page's, its width the column's."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    for colour, name in PAGE_COLOURS.items():
        text = text.replace(colour, name)
    # The page's typeface, the drawing's sizes and weights.
    text = re.sub(
        r"font: ([0-9]+ )?([0-9.]+px) [^;\"]*", lambda m: f"font-size: {m[2]}; font-weight: {m[1] or 400}", text
    )
    size = re.search(r'width="([0-9.]+)pt" height="([0-9.]+)pt"', text)
    assert size, "an SVG of matplotlib's opens with its size"
    attributes = f'role="img" aria-label="{html.escape(title)}" style="max-width: {float(size[1]) * 1.6:.0f}px"'
    return text.replace(size[0], attributes, 1)


def accuracy(table: Table, narrow: bool = False) -> Figure:
    """A panel per domain and one for the mean of the targets; rows are methods, dots means, bars standard errors.

    ``narrow``: two panels side by side, for a phone.
    """
    with style(8):
        from matplotlib.figure import Figure

        shown = [*table.domains, next(c for c in table.columns if c.key == "shifted")]
        columns = 2 if narrow else {5: 5, 6: 3, 9: 3}.get(len(shown), min(4, len(shown)))
        num_rows = math.ceil(len(shown) / columns)
        labels = [wrap(r.label, 18 if narrow else 30) for r in table.rows]
        margin = 0.15 + 0.066 * max(len(line) for label in labels for line in label.split("\n"))  # inches
        pitch = 0.29 if any("\n" in label for label in labels) else 0.18
        panel = (3.75 - margin - 0.1) / 2 if narrow else max(1.3, (8.6 - margin) / max(columns, 4))
        height = pitch * len(labels) + 0.6
        size = (margin + columns * panel + 0.1, num_rows * height + 0.2)
        figure = Figure(figsize=size, label=f"accuracy-{columns}")
        low, high = _limits([c for r in table.rows for c in (r.cells[s.key] for s in shown)], table)
        for i, column in enumerate(shown):
            across, down = i % columns, i // columns
            axes = figure.add_axes(
                (
                    (margin + across * panel + 0.08) / size[0],
                    1 - ((down + 1) * height - 0.3) / size[1],
                    (panel - 0.2) / size[0],
                    (height - 0.6) / size[1],
                )
            )
            _panel(axes, table, column, low, high, narrow)
            axes.set_yticks(range(len(labels)), labels if across == 0 else [""] * len(labels), linespacing=0.95)
        figure.text(
            (margin + columns * panel / 2) / size[0], 0.06 / size[1], f"{table.metric.title} ({table.metric.unit})",
            ha="center", va="bottom", color=SOFT,
        )  # fmt: skip
    return figure


def _panel(axes: Axes, table: Table, column: Column, low: float, high: float, narrow: bool) -> None:
    axes.set_xlim(low, high)
    axes.set_ylim(len(table.rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(_ticks(low, high, 2 if narrow else 1))
    axes.grid(True, axis="both")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    colour, marker = _look(column)
    name = "mean of targets" if column.role == "average" else column.head
    axes.set_title(wrap(name, 22), loc="left", fontsize=8.5, fontweight="bold", color=colour, pad=5)
    if column.role == "source":
        axes.set_title("source", loc="right", fontsize=7, color=SOFT, pad=5)
    for y, row in enumerate(table.rows):
        cell = row.cells[column.key]
        if cell.mean is None:
            continue
        x = cell.mean * table.metric.scale
        if cell.error is not None:
            half = cell.error * table.metric.scale
            axes.plot([x - half, x + half], [y, y], color=colour, linewidth=1.2, solid_capstyle="butt")
        face = colour if cell.error is not None else PAPER
        axes.plot([x], [y], marker, markersize=4.5 if marker == "o" else 4, color=face, markeredgecolor=colour)


def source_vs_shift(table: Table, narrow: bool = False) -> Figure:
    """Each method at (mean of sources, mean of targets), on equal scales with y = x; names in a column beside it."""
    width, size = (3.75, 7.0) if narrow else (6.6, 8.0)
    with style(size):
        from matplotlib.figure import Figure

        points = [r for r in table.rows if r.cells["source"].mean is not None and r.cells["shifted"].mean is not None]
        names = [wrap(r.label, 20 if narrow else 30) for r in points]
        names_width = 0.3 + size / 8 * 0.066 * max((len(line) for n in names for line in n.split("\n")), default=0)
        side = min(width - 0.55 - names_width, 3.8)
        width = side + 0.55 + names_width
        needed = sum(0.17 if "\n" not in n else 0.28 for n in names)
        height = max(side, needed) + 0.55
        figure = Figure(figsize=(width, height), label=f"source-vs-shift-{width}")
        axes = figure.add_axes((0.48 / width, 0.45 / height, side / width, (height - 0.55) / height))
        low, high = _limits([r.cells[k] for r in points for k in ("source", "shifted")], table)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(_ticks(low, high))
        axes.tick_params(axis="y", colors=SOFT)
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        middle = low + 0.3 * (high - low)
        axes.annotate(
            "no loss under shift (y = x)", (middle, middle), xytext=(-4, 4), textcoords="offset points", color=SOFT,
            rotation=math.degrees(math.atan2(height - 0.55, side)), rotation_mode="anchor", ha="center",
            fontsize=size - 1,
        )  # fmt: skip
        axes.set_xlabel(f"source, {table.metric.title} ({table.metric.unit})")
        axes.set_ylabel(f"mean of shifted domains ({table.metric.unit})")
        _points(axes, table, points)
        _names(figure, axes, table, points, names, (width, height, side))
    return figure


def _points(axes: Axes, table: Table, points: Sequence[Row]) -> None:
    scale = table.metric.scale
    for row in points:
        source, shifted = row.cells["source"], row.cells["shifted"]
        assert source.mean is not None
        assert shifted.mean is not None
        x, y = source.mean * scale, shifted.mean * scale
        if source.error is not None and shifted.error is not None:
            axes.plot([x - source.error * scale, x + source.error * scale], [y, y], color=TARGET, linewidth=1)
            axes.plot([x, x], [y - shifted.error * scale, y + shifted.error * scale], color=TARGET, linewidth=1)
        face = TARGET if shifted.error is not None else PAPER
        axes.plot([x], [y], "o", markersize=4.5, color=face, markeredgecolor=TARGET)


def _names(
    figure: Figure,
    axes: Axes,
    table: Table,
    points: Sequence[Row],
    names: Sequence[str],
    size: tuple[float, float, float],
) -> None:
    """Names in a column right of the axes, in the order of the points' heights, each with a thin line to its point."""
    width, height, side = size
    low, high = axes.get_ylim()
    inner = height - 0.55

    def inches(value: float) -> float:
        return 0.45 + (value - low) / (high - low) * inner

    order = sorted(range(len(points)), key=lambda i: -(points[i].cells["shifted"].mean or 0.0))
    wanted = [inches((points[i].cells["shifted"].mean or 0.0) * table.metric.scale) for i in order]
    heights = [0.17 if "\n" not in names[i] else 0.28 for i in order]
    for i, y in zip(order, spread(wanted, heights, 0.45, height - 0.1), strict=True):
        source, shifted = points[i].cells["source"].mean, points[i].cells["shifted"].mean
        assert source is not None
        assert shifted is not None
        axes.annotate(
            names[i],
            (source * table.metric.scale, shifted * table.metric.scale),
            xytext=((0.48 + side + 0.16) / width, y / height),
            textcoords="figure fraction",
            va="center",
            linespacing=0.95,
            arrowprops={
                "arrowstyle": "-",
                "color": SOFT,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Centres as close to ``wanted`` (descending) as boxes of these heights can be without overlap, within the bounds.

    Boxes that touch move together, to the mean of what they want (least squares). If there is no room for all of
    them, they hang over at the bottom.
    """
    clusters: list[tuple[float, int, float]] = []  # (top of its first box, boxes, height), from high to low
    for centre, height in zip(wanted, heights, strict=True):
        cluster = (centre + height / 2, 1, height)
        while clusters and clusters[-1][0] - clusters[-1][2] < cluster[0]:
            top, num, tall = clusters.pop()
            # The lower boxes' wish for the joint top is their own top plus the height of the boxes above them.
            joint = (top * num + (cluster[0] + tall) * cluster[1]) / (num + cluster[1])
            cluster = (joint, num + cluster[1], tall + cluster[2])
        clusters.append(cluster)
    floor, tops = low, list[float]()
    for top, _, tall in reversed(clusters):
        tops.append(max(top, floor + tall))
        floor = tops[-1]
    ceiling, centres, rest = high, list[float](), iter(heights)
    for (_, num, tall), top in zip(clusters, reversed(tops), strict=True):
        edge = min(top, ceiling)
        ceiling = edge - tall
        for height in islice(rest, num):
            centres.append(edge - height / 2)
            edge -= height
    return centres


def _look(column: Column) -> tuple[str, str]:
    return {"source": (SOURCE, "D"), "target": (TARGET, "o"), "average": (MEAN, "s")}[column.role]


def _limits(cells: Sequence[Cell], table: Table) -> tuple[float, float]:
    """The multiples of ten around all dots and bars, within 0 and 100 for fractions."""
    scale = table.metric.scale
    lows = [(c.mean - (c.error or 0)) * scale for c in cells if c.mean is not None]
    highs = [(c.mean + (c.error or 0)) * scale for c in cells if c.mean is not None]
    if not lows:
        return 0.0, 100.0
    low, high = max(0.0, 10 * math.floor((min(lows) - 2) / 10)), min(100.0, 10 * math.ceil((max(highs) + 2) / 10))
    edge = 0.03 * (high - low)  # so that a dot at 0 or at 100 is whole
    return low - edge, high + edge


def _ticks(low: float, high: float, times: int = 1) -> Locator:
    from matplotlib.ticker import MultipleLocator

    return MultipleLocator(times * (25 if high - low > 60 else 20 if high - low > 30 else 10))


def wrap(text: str, width: int) -> str:
    """At most two lines of ``width`` characters, broken at a space; what does not fit ends in an ellipsis."""
    if len(text) <= width:
        return text
    at = text.rfind(" ", 0, width + 1)
    first, rest = (text[:at], text[at + 1 :]) if at > 0 else (text[:width], text[width:])
    return f"{first}\n{rest if len(rest) <= width else rest[: width - 1] + '…'}"
