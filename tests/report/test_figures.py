from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise

import pytest
from made_records import evaluation, leave_one_out, make_record, miniatures
from matplotlib.figure import Figure

from clipdg.report import figures
from clipdg.report.figures import PAGE_COLOURS, for_page, render, spread
from clipdg.report.tables import robustness

DRAW = [figures.accuracy, figures.source_vs_shift]


def marks(figure: Figure) -> list[list[tuple[float, float]]]:
    """The dots of each axes, (x, y)."""
    return [
        [(float(x[0]), float(y[0])) for x, y in (line.get_data() for line in axes.lines) if len(x) == 1]
        for axes in figure.axes
    ]


def test_each_panel_holds_its_domains_means_in_the_order_of_the_table() -> None:
    t = robustness(miniatures())
    panels = marks(figures.accuracy(t))
    for panel, key in zip(panels, [*(c.key for c in t.domains), "shifted"], strict=True):
        assert panel == [(pytest.approx(100 * (r.cells[key].mean or 0)), i) for i, r in enumerate(t.rows)]


def test_the_scatter_shows_source_against_shifted_on_equal_scales() -> None:
    t = robustness(leave_one_out(seeds=(0,)))
    figure = figures.source_vs_shift(t)
    (points,) = marks(figure)
    assert points == [(pytest.approx(90), pytest.approx(65))] * 2
    axes = figure.axes[0]
    assert axes.get_xlim() == axes.get_ylim()


def test_a_missing_cell_has_no_dot() -> None:
    t = robustness(leave_one_out()[:-1])  # one seed of one row lacks the shift to sketch
    art, cartoon, photo, sketch, mean = marks(figures.accuracy(t))
    assert [len(p) for p in (art, cartoon, photo, sketch, mean)] == [2, 2, 2, 1, 1]
    assert [len(p) for p in marks(figures.source_vs_shift(t))] == [1]


def test_one_seed_is_a_hollow_mark_without_a_bar() -> None:
    t = robustness(leave_one_out(seeds=(0,), methods=("coop",)))
    for axes in figures.accuracy(t).axes:
        (mark,) = axes.lines
        assert mark.get_markerfacecolor() == figures.PAPER


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_the_same_records_make_the_same_bytes(draw: Callable[..., Figure], narrow: bool, form: str) -> None:
    first, second = (render(draw(robustness(leave_one_out()), narrow=narrow), form) for _ in range(2))
    assert first == second
    assert not re.search(rb"dc:date|CreationDate", first)


@pytest.mark.parametrize("draw", DRAW)
def test_a_label_in_any_script_stands_in_the_drawing_as_it_is(draw: Callable[..., Figure]) -> None:
    record = make_record(
        [evaluation("photo", "test", 0.9), evaluation("sketch", "all", 0.5)], label="提示 $x_1 <b> & co"
    )
    svg = render(draw(robustness([record])), "svg")
    texts = [t.text for t in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert "提示 $x_1 <b> & co" in texts


def test_no_text_of_thirteen_rows_overlaps_or_is_cut() -> None:
    for draw in DRAW:
        for narrow in (False, True):
            figure = draw(robustness(miniatures()), narrow=narrow)
            assert_readable(figure)


def assert_readable(figure: Figure) -> None:
    """No two texts share a pixel and none leaves the figure, measured in its own (wide) typeface."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    unseen = {
        label  # matplotlib keeps labels of ticks outside the axes' limits and does not draw them
        for axes in figure.axes
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim())))
        for tick, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        if not low <= tick <= high
    }
    boxes = [
        (text.get_text(), Text.get_window_extent(text, renderer))  # of an annotation without its line
        for text in figure.findobj(Text)
        if text.get_text() and text not in unseen and not text.get_rotation()
    ]
    assert len(boxes) > 20
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= figure.bbox.height + 1, text
        for other, second in boxes[i + 1 :]:
            wide = min(box.x1, second.x1) - max(box.x0, second.x0)
            tall = min(box.y1, second.y1) - max(box.y0, second.y0)
            assert wide <= 1 or tall <= 2, (text, other)


def test_a_page_gives_a_drawing_its_colours_and_takes_no_request_from_it() -> None:
    svg = for_page(render(figures.accuracy(robustness(miniatures())), "svg"), 'a "title"')
    assert "http" not in svg
    assert not [c for c in PAGE_COLOURS if c in svg]
    assert set(re.findall(r"var\(--[a-z]+\)", svg)) <= set(PAGE_COLOURS.values())
    assert 'aria-label="a &quot;title&quot;"' in svg


def test_spread_moves_no_box_that_has_room() -> None:
    assert spread([3.0, 2.0, 1.0], [0.5] * 3, 0, 4) == [3.0, 2.0, 1.0]


def test_spread_moves_touching_boxes_apart_evenly() -> None:
    assert spread([2.0, 2.0], [1.0, 1.0], 0, 4) == [2.5, 1.5]
    assert spread([4.0, 4.0], [1.0, 1.0], 0, 4) == [3.5, 2.5]
    assert spread([0.0, 0.0], [1.0, 1.0], 0, 4) == [1.5, 0.5]


def test_spread_never_overlaps_and_keeps_the_order() -> None:
    wanted, heights = [9.0, 8.9, 8.9, 8.2, 3.0, 2.9, 0.1, 0.0], [0.5, 0.8, 0.5, 0.5, 0.8, 0.5, 0.5, 0.5]
    boxes = list(zip(spread(wanted, heights, 0, 9), heights, strict=True))
    for (a, tall), (b, low) in pairwise(boxes):
        assert a - tall / 2 >= b + low / 2 - 1e-9
    assert boxes[0][0] + 0.25 <= 9 + 1e-9
    assert boxes[-1][0] - 0.25 >= -1e-9
