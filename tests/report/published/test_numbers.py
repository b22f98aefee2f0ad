"""Published numbers against those that were read in their sources, and the page that is made of them."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipdg.core.errors import DataError
from clipdg.report import effective_robustness
from clipdg.report.published import numbers as numbers_
from clipdg.report.published import page as page_
from clipdg.report.published.page import DATASETS, Grid, nearest_resnet, write_published

FAMILY = tuple(DATASETS)
# open_clip's docs/openclip_results.csv, tag openai: ImageNet, V2, Sketch, A, R, ObjectNet in percent.
OPENAI = {
    "RN50": (59.82, 52.84, 35.44, 23.27, 60.73, 41.41),
    "RN101": (62.28, 56.12, 41.06, 29.44, 68.17, 45.15),
    "RN50x4": (66.27, 59.44, 44.68, 41.45, 72.74, 51.41),
    "RN50x16": (70.72, 64.20, 50.63, 57.24, 79.33, 60.71),
    "RN50x64": (73.91, 67.06, 55.93, 70.77, 84.41, 68.20),
    "ViT-B-32": (63.32, 55.92, 42.29, 31.55, 69.33, 44.31),
    "ViT-B-16": (68.34, 61.88, 48.24, 49.95, 77.70, 55.31),
    "ViT-L-14": (75.54, 69.83, 59.59, 70.75, 87.84, 68.89),
    "ViT-L-14-336": (76.56, 70.89, 61.00, 77.48, 89.05, 71.83),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    write_published(out)
    return out


@pytest.mark.parametrize("model", OPENAI)
def test_openais_clips_have_the_numbers_of_open_clips_table(model: str) -> None:
    frame = numbers_.wide("open_clip")
    [row] = [frame.loc[i] for i in frame.index if i[:2] == (f"open_clip:{model}-quickgelu", "openai")]
    assert tuple(round(100 * row[d], 2) for d in FAMILY) == OPENAI[model]


@pytest.mark.parametrize(
    ("model", "size", "numbers"),  # ImageNet, V2, A, R, Sketch, A-clean, R-clean
    [
        ("resnet18.tv_in1k", 224, (69.752, 57.35, 1.120, 33.023, 20.238, 87.38, 88.20)),
        ("resnet50.tv2_in1k", 176, (79.434, 68.03, 9.320, 42.430, 29.684, 93.79, 93.75)),
        ("resnet50.tv2_in1k", 224, (80.846, 69.51, 14.387, 42.840, 29.869, 94.66, 94.59)),
        ("resnet50.ram_in1k", 288, (79.982, 68.51, 9.427, 41.330, 30.447, 94.52, 94.00)),
        ("resnet101.a1_in1k", 288, (82.326, 71.84, 24.947, 41.273, 30.311, 95.49, 94.89)),
    ],
)
def test_a_resnet_is_one_set_of_weights_at_one_resolution(model: str, size: int, numbers: tuple[float, ...]) -> None:
    row = numbers_.wide("timm").loc[(f"timm:{model}", "", size, "supervised")]
    columns = ("imagenet", "imagenet-v2", "imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-a-clean",
               "imagenet-r-clean")  # fmt: skip
    assert tuple(100 * row[c] for c in columns) == pytest.approx(numbers, abs=1e-9)


def test_what_a_source_leaves_out_stays_missing() -> None:
    row = numbers_.wide("timm").loc[("timm:resnet50.tv_in1k", "", 224, "supervised")]
    assert np.isnan(row["imagenet-a"])
    assert numbers_.wide("testbed").xs("testbed:resnet50", level="model")["imagenet-a"].iloc[0] == 0


def test_a_number_from_memory_is_marked_so() -> None:
    table = numbers_.table()
    memory = table[table["note"] == "from memory"]
    assert len(memory) > 50
    assert set(memory["status"]) == {"unverified"}
    assert set(table["status"]) == {"verified", "quoted", "user-reported", "disputed", "unverified"}


def test_two_numbers_for_one_thing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    twice = tmp_path / "results.csv"
    lines = numbers_.RESULTS.read_text().splitlines(keepends=True)
    twice.write_text("".join([*lines[:3], lines[2]]))
    monkeypatch.setattr(numbers_, "RESULTS", twice)
    numbers_.table.cache_clear()
    with pytest.raises(DataError, match="1 twice"):
        numbers_.table()
    numbers_.table.cache_clear()


def test_percent_become_fractions_exactly() -> None:
    assert (
        numbers_.table().query("model == 'timm:resnet18.tv_in1k' and dataset == 'imagenet'")["value"].item() == 0.69752
    )


# ---------------------------------------------------------------------------------------------------------------------
# Fits: the testbed's own values for its 85 standard models


@pytest.mark.parametrize(
    ("y", "num", "slope", "intercept", "r2"),
    [
        ("imagenet-v2-format-val", 85, 0.9232, -0.4977, 0.996),
        ("imagenet-sketch", 85, 1.0709, -2.3701, 0.869),
        ("imagenet-r", 80, 0.6368, -2.1077, 0.889),
        ("objectnet", 85, 0.9809, -1.9283, 0.953),
        ("imagenet-a", 84, 1.9900, -7.6325, 0.828),
    ],
)
def test_the_testbeds_lines_come_out_again(y: str, num: int, slope: float, intercept: float, r2: float) -> None:
    line = effective_robustness.fit(
        effective_robustness.baseline_models("testbed_standard"), effective_robustness.X_OF[y], y, "testbed_standard"
    )
    assert len(line.models) == num
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), abs=5e-5)
    assert line.r2 == pytest.approx(r2, abs=5e-4)


def test_the_testbeds_two_pieces_for_a() -> None:
    frame = effective_robustness.baseline_models("testbed_standard")
    pieces = effective_robustness.fit_pieces(frame, "imagenet-a-clean", "imagenet-a", "testbed_standard")
    assert pieces is not None
    assert (pieces.pivot_model, round(100 * pieces.pivot, 2)) == ("testbed:resnet50", 91.86)
    assert (len(pieces.below.models), len(pieces.above.models)) == (33, 51)
    found = [pieces.below.slope, pieces.below.intercept, pieces.above.slope, pieces.above.intercept]
    assert found == pytest.approx([0.6894, -5.1400, 2.9560, -10.2774], abs=5e-5)
    assert (pieces.below.r2, pieces.above.r2) == (pytest.approx(0.41, abs=5e-3), pytest.approx(0.905, abs=5e-4))


@pytest.mark.parametrize(
    ("model", "expected"),  # points on V2 (format-val), Sketch, R, ObjectNet, and on A by both rules
    [
        ("vit_b_32_clip_zeroshot", (5.63, 28.02, 38.95, 18.10, 29.14, 29.21)),
        ("resnet50_clip_zeroshot", (5.79, 22.86, 32.86, 17.85, 21.35, 20.92)),
        ("resnet50", (-0.74, -0.36, -0.60, 1.15)),
        ("resnet101", (0.03, 1.11, 0.89, 1.81)),
    ],
)
def test_rho_of_the_testbeds_models(model: str, expected: tuple[float, ...]) -> None:
    frame = effective_robustness.baseline_models("testbed_standard")
    row = numbers_.wide("testbed").xs(f"testbed:{model}", level="model").iloc[0]
    found = []
    for y in ("imagenet-v2-format-val", "imagenet-sketch", "imagenet-r", "objectnet", "imagenet-a"):
        x = effective_robustness.X_OF[y]
        found.append(effective_robustness.fit(frame, x, y, "testbed_standard").rho(row[x], row[y]))
    pieces = effective_robustness.fit_pieces(frame, "imagenet-a-clean", "imagenet-a", "testbed_standard")
    assert pieces is not None
    found.append(pieces.rho(row["imagenet-a-clean"], row["imagenet-a"]))
    assert [100 * f for f in found][: len(expected)] == pytest.approx(expected, abs=5e-3)


def test_timms_line_is_close_to_the_testbeds() -> None:
    frame = effective_robustness.baseline_models("timm_in1k")
    for y, slope in (("imagenet-v2", 0.9111), ("imagenet-sketch", 1.0709), ("imagenet-a", 1.99)):
        line = effective_robustness.fit(frame, effective_robustness.X_OF[y], y, "timm_in1k")
        assert line.slope == pytest.approx(slope, rel=0.07)


@pytest.mark.parametrize(
    ("model", "alone"),
    [
        ("timm:resnet50.tv_in1k", True),
        ("timm:resnet50.a1_in1k", True),
        ("timm:vit_base_patch16_224.augreg_in21k_ft_in1k", False),
        ("timm:resnet50.fb_swsl_ig1b_ft_in1k", False),
        ("timm:vit_base_patch16_clip_224.openai_ft_in1k", False),
        ("timm:deit_base_distilled_patch16_224.fb_in1k", True),  # its teacher was trained on ImageNet-1k too
        ("timm:tf_efficientnet_b0.ns_jft_in1k", False),
        ("timm:resnet50d.c2ns_in1k", False),
    ],
)
def test_in1k_alone_reads_the_tag(model: str, alone: bool) -> None:
    assert effective_robustness.in1k_alone(model) is alone


def test_a_line_through_exact_points_is_found_and_its_rho_is_zero() -> None:
    x = np.array([0.5, 0.6, 0.7, 0.8, 1.0])
    y = effective_robustness.sigmoid(1.5 * effective_robustness.logit(x[:4]) - 0.25)
    frame = pd.DataFrame({"x": x, "y": [*y, 0.9]}, index=["a", "b", "c", "d", "perfect"])
    line = effective_robustness.fit(frame, "x", "y", "made up")
    assert (line.slope, line.intercept, line.r2) == pytest.approx((1.5, -0.25, 1))
    assert line.left_out == ("perfect",)  # 100 % has no logit
    assert line.rho(0.6, float(y[1]) + 0.1) == pytest.approx(0.1)
    low, high = line.band(np.array([0.65]))
    assert low == pytest.approx(high)  # every resample of exact points is the same line


def test_the_nearest_resnet_is_the_nearest() -> None:
    index = pd.MultiIndex.from_tuples(
        [(m, "", 224, "supervised") for m in "abc"], names=["model", "weights", "resolution", "method"]
    )
    frame = pd.DataFrame({"imagenet": [0.70, 0.75, 0.80]}, index=index)
    assert nearest_resnet(0.77, frame)[:2] == ("b", 224)


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_the_page_asks_for_nothing_outside_itself(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)[^"']+""", page)
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_committed_report_is_the_one_that_is_made(report: Path) -> None:
    committed = Path(__file__).parents[3] / "results" / "published"
    kept = sorted(p.relative_to(committed) for p in committed.rglob("*") if p.is_file())
    assert {p.suffix for p in kept} == {".csv", ".md", ".svg"}  # the page itself is made by the command
    for file in kept:
        assert (report / file).read_bytes() == (committed / file).read_bytes(), f"{file}: clipdg report --published"


def test_every_drawn_point_has_its_name_and_numbers(report: Path) -> None:
    svg = (report / "figures" / "imagenet-sketch.svg").read_text()
    assert "<title>open_clip:ViT-B-32-quickgelu openai · 224: 63.32 → 42.29</title>" in svg
    titles = re.findall(r"<use [^>]*><title>", svg)
    assert len(titles) == 1857  # as the caption says
    assert "for 1,857 models" in (report / "report.md").read_text()


def test_a_missing_cell_is_empty_and_no_zero() -> None:
    grid = Grid("x", ("a", "b"), (("m", "", "resnet"),), np.array([[np.nan, 0.0]]))
    assert (grid.text(0, 0), grid.text(0, 1)) == ("", "0.00")


def test_a_difference_carries_its_sign() -> None:
    grid = Grid("x", ("a", "b"), (("m", "", "difference"),), np.array([[0.1, -0.025]]))
    assert (grid.text(0, 0), grid.text(0, 1)) == ("+10.00", "−2.50")


def test_captions_name_only_what_there_is() -> None:
    assert set(page_.CAPTIONS) == {"pairs", "rho", "one_axis", "all", "fits"}
