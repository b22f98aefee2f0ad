from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_records import LOO, TARGETS, evaluation, leave_one_out, make_record, miniatures

from clipdg.core.errors import RecordError
from clipdg.records import evaluations as evaluations_
from clipdg.records.record import Record
from clipdg.report import formats, tables
from clipdg.report.frame import load_records
from clipdg.report.numbers import METRICS, format_mean
from clipdg.report.tables import robustness, studies


def toy(accuracies: dict[int, tuple[float, float, float]], **settings: Any) -> list[Record]:
    """One source and two targets; photo, cartoon and sketch accuracy by seed."""
    return [
        make_record(
            [evaluation("photo", "test", a), evaluation("cartoon", "all", b), evaluation("sketch", "all", c)],
            targets=("cartoon", "sketch"),
            seed=seed,
            **settings,
        )
        for seed, (a, b, c) in accuracies.items()
    ]


def test_a_number_is_written_one_way() -> None:
    assert format_mean(0.66649, 0.0251) == "66.6 ± 2.5"
    assert format_mean(1.0, None) == "100.0"
    assert format_mean(None, None) == ""
    assert format_mean(-0.0501, 0.001) == "−5.0 ± 0.1"
    assert format_mean(-0.0001) == "0.0"
    assert format_mean(1.234, 0.5, METRICS["nll"]) == "1.23 ± 0.50"


def test_means_and_errors_by_hand() -> None:
    # cartoon .6 .7 .8: mean .7, standard deviation .1, standard error .1/sqrt(3)
    # shifted by seed: .5 .55 .6; gap by seed: .4 .4 .4, so its error is 0 though both sides vary
    t = robustness(toy({0: (0.9, 0.6, 0.4), 1: (0.95, 0.7, 0.4), 2: (1.0, 0.8, 0.4)}))
    (row,) = t.rows
    assert row.cells["photo/cartoon"].summary == pytest.approx((0.7, 0.1 / math.sqrt(3)))
    assert row.cells["source"].summary == pytest.approx((0.95, 0.05 / math.sqrt(3)))
    assert row.cells["shifted"].summary == pytest.approx((0.55, 0.05 / math.sqrt(3)))
    assert row.cells["gap"].summary == pytest.approx((0.4, 0.0))
    assert row.cells["worst"].summary == pytest.approx((0.4, 0.0))
    assert row.cells["worst"].note == "sketch"
    assert [c.head for c in t.columns] == ["photo", "cartoon", "sketch", "source", "shifted", "worst domain", "gap"]
    assert t.columns[1].num_images == (100,)


def test_one_seed_has_a_mean_and_no_error() -> None:
    t = robustness(toy({7: (0.9, 0.6, 0.4)}))
    assert t.rows[0].seeds == ("7",)
    assert t.text(t.rows[0], t.columns[0]) == "90.0"


def test_the_last_step_of_the_reported_split_counts() -> None:
    evaluations = [
        evaluation("photo", "val", 0.1, step=9),
        evaluation("photo", "out", 0.5, step=2),
        evaluation("photo", "out", 0.6, step=10),
        evaluation("photo", "all", 0.2, step=10),
        evaluation("sketch", "out", 0.3, step=10),
        evaluation("sketch", "all", 0.4, step=10),
    ]
    record = make_record(evaluations)
    cells = robustness([record]).rows[0].cells
    assert (cells["source"].mean, cells["shifted"].mean) == (0.6, 0.4)
    assert evaluations_.reported_split(record, "photo") == "out"
    assert evaluations_.reported_split(record, "sketch") == "all"
    with_test = make_record([*evaluations, evaluation("photo", "test", 0.7), evaluation("sketch", "test", 0.8)])
    cells = robustness([with_test]).rows[0].cells
    assert (cells["source"].mean, cells["shifted"].mean) == (0.7, 0.8)


def test_two_evaluations_of_one_step_are_refused() -> None:
    record = make_record(
        [evaluation("photo", "test", 0.5), evaluation("photo", "test", 0.6), evaluation("sketch", "all", 0)]
    )
    with pytest.raises(RecordError, match="evaluates photo/test twice at step 0"):
        robustness([record])


def test_a_missing_domain_empties_its_cell_and_the_averages_beside_it() -> None:
    complete = toy({0: (0.9, 0.6, 0.4), 1: (0.9, 0.6, 0.4)})
    record = make_record([evaluation("photo", "test", 0.9), evaluation("cartoon", "all", 0.6)],
                         targets=("cartoon", "sketch"), seed=2)  # fmt: skip
    t = robustness([*complete, record])
    (row,) = t.rows
    sketch = row.cells["photo/sketch"]
    assert (sketch.n, sketch.expected, sketch.mean) == (2, 3, None)
    assert [t.text(row, c) for c in t.columns] == ["90.0 ± 0.0", "60.0 ± 0.0", "2/3", "90.0 ± 0.0", "", "", ""]
    assert t.incomplete == [("zero_shot", "sketch", sketch)]


def test_a_null_metric_is_missing_not_zero() -> None:
    t = robustness(toy({0: (0.9, 0.6, 0.4)}), "ece")
    assert {t.text(t.rows[0], c) for c in t.domains} == {"0/1"}
    assert [m.name for m in studies(toy({0: (0.9, 0.6, 0.4)}))[0].metrics] == ["top1", "mean_per_class"]


def test_leave_one_out_makes_one_row_of_four_shifts() -> None:
    # target i: 50 + 10 i + seed; seeds 0, 1, 2: art 51, ..., sketch 81; mean of targets 66; sources 91; gap 25
    t = robustness(leave_one_out())
    assert [c.head for c in t.domains] == list(LOO)
    for row in t.rows:
        assert row.seeds == ("0", "1", "2")
        assert [t.text(row, c) for c in t.columns] == [
            "51.0 ± 0.6", "61.0 ± 0.6", "71.0 ± 0.6", "81.0 ± 0.6",  # the targets
            "91.0 ± 0.6", "66.0 ± 0.6", "51.0 ± 0.6", "25.0 ± 0.0",
        ]  # fmt: skip
        assert row.cells["worst"].note == "art"


def test_leave_one_out_with_a_shift_missing() -> None:
    t = robustness(leave_one_out()[:-3])  # coop has no run that leaves sketch out
    coop = next(r for r in t.rows if r.label == "coop")
    assert t.text(coop, t.domains[3]) == "0/3"
    assert coop.cells["source"].mean is None
    assert coop.cells["shifted"].mean is None


def test_records_that_differ_in_more_than_the_seed_are_never_averaged() -> None:
    a, b = toy({0: (0.9, 0.6, 0.4)}, shots=1), toy({1: (0.8, 0.5, 0.3)}, shots=2)
    assert [(r.label, r.seeds) for r in robustness(a + b).rows] == [
        ("zero_shot, 1 shot", ("0",)),
        ("zero_shot, 2 shots", ("1",)),
    ]
    other = toy({1: (0.8, 0.5, 0.3)}, weights={"fingerprint": "e" * 64, "tag": "other"})
    assert len(robustness(toy({0: (0.9, 0.6, 0.4)}) + other).rows) == 2


def test_the_same_seed_twice_is_refused_with_the_versions_that_differ() -> None:
    twice = toy({0: (0.9, 0.6, 0.4)}) + toy({0: (0.9, 0.6, 0.5)}, versions={"clipdg": "0.1.0", "torch": "2.12.0"})
    with pytest.raises(RecordError, match=r"same setting, shift and seed 0 \(versions differ: torch\)"):
        robustness(twice)


def test_records_of_two_benchmarks_do_not_make_one_table() -> None:
    records = toy({0: (0.9, 0.6, 0.4)}) + toy({0: (0.9, 0.6, 0.4)}, benchmark="other")
    assert [s.title for s in studies(records)] == ["other", "toy"]
    with pytest.raises(RecordError, match="2 records of 2 studies"):
        robustness(records)


def test_other_images_are_another_study_with_its_own_name() -> None:
    found = studies(toy({0: (0.9, 0.6, 0.4)}) + toy({0: (0.9, 0.6, 0.4)}, data="c" * 64))
    assert {s.title for s in found} == {
        "toy (photo → cartoon, sketch; data dddddddd)",
        "toy (photo → cartoon, sketch; data cccccccc)",
    }
    assert sorted(s.slug for s in found) == ["toy", "toy-2"]


def test_a_setting_that_came_later_and_has_its_first_value_makes_no_other_study() -> None:
    before, after = (make_record([evaluation("sketch", "all", 0.5)], method={"name": n}) for n in ("erm", "zero_shot"))
    for half, expected in (("all", 1), ("base", 2)):
        config = {**after.content["config"], "benchmark": {**after.content["config"]["benchmark"], "half": half}}
        assert len(studies([before, Record({**after.content, "config": config})])) == expected


def test_labels_name_the_method_and_what_tells_rows_apart() -> None:
    def label(**settings: Any) -> list[str]:
        return sorted((r.label for r in robustness(records(**settings)).rows), key=evaluations_.natural)

    def records(**more: Any) -> list[Record]:
        made = toy({0: (0.9, 0.6, 0.4)})  # zero_shot
        for shots in (1, 16, None):
            made += toy({0: (0.9, 0.6, 0.4)}, method={"name": "coop", "csc": False}, shots=shots, **more)
        return made + toy({0: (0.9, 0.6, 0.4)}, method={"name": "coop", "csc": True}, shots=16, **more)

    assert label() == ["coop, 1 shot", "coop, 16 shots", "coop, 16 shots, csc", "coop, all images", "zero_shot"]
    assert label(weights={"backbone": "resnet", "fingerprint": "e" * 64, "tag": "r"}) == [
        "coop, resnet, 1 shot", "coop, resnet, 16 shots", "coop, resnet, 16 shots, csc", "coop, resnet, all images",
        "zero_shot, tiny",
    ]  # fmt: skip


def test_an_objective_is_part_of_a_name_and_erm_is_the_default() -> None:
    made = toy({0: (0.9, 0.6, 0.4)}, method={"name": "erm"})
    for method, objective in (("erm", "irm"), ("coop", "irm"), ("coop", "erm")):
        made += toy({0: (0.9, 0.6, 0.4)}, method={"name": method}, objective={"name": objective})
    assert {r.label for r in robustness(made).rows} == {"erm", "irm", "coop + irm", "coop"}


def test_a_given_label_is_used_and_two_equal_ones_are_told_apart() -> None:
    given = toy({0: (0.9, 0.6, 0.4)}, label="Ours") + toy({0: (0.9, 0.6, 0.3)}, method={"name": "coop"}, label="CoOp")
    assert {r.label for r in robustness(given).rows} == {"Ours", "CoOp"}
    same = [*toy({0: (0.9, 0.6, 0.4)}, label="Ours", shots=1), *toy({0: (0.9, 0.6, 0.3)}, label="Ours", shots=2)]
    assert {r.label for r in robustness(same).rows} == {"Ours, 1 shot", "Ours, 2 shots"}


def test_best_and_second_are_by_the_printed_number() -> None:
    records = (
        toy({0: (0.9, 0.6001, 0.4)}, label="a")
        + toy({0: (0.8, 0.6004, 0.5)}, label="b", shots=1)
        + toy({0: (0.7, 0.5, 0.6)}, label="c", shots=2)
        + toy({0: (0.6, 0.2, 0.1)}, label="d", shots=3)
    )
    marks = robustness(records).marks
    assert {k: v for k, v in marks.items() if k[1] == "photo/cartoon"} == {
        ("a", "photo/cartoon"): "best", ("b", "photo/cartoon"): "best", ("c", "photo/cartoon"): "second",
    }  # fmt: skip
    assert (marks["a", "source"], marks["b", "source"], marks["c", "worst"]) == ("best", "second", "best")
    assert not [k for k in marks if k[1] == "gap"]


def test_lower_is_better_for_calibration() -> None:
    def record(label: str, shots: int, ece: float) -> Record:
        return make_record([evaluation("photo", "test", 0.9, ece=ece), evaluation("sketch", "all", 0.5, ece=2 * ece)],
                           label=label, shots=shots)  # fmt: skip

    t = robustness([record("a", 1, 0.2), record("b", 2, 0.1), record("c", 3, 0.3)], "ece")
    assert {label for (label, key), mark in t.marks.items() if mark == "best" and key != "gap"} == {"b"}


def test_rows_whose_images_follow_the_seed_are_compared_only_with_their_like() -> None:
    t = robustness(miniatures())
    assert len(t.rows) == 13
    assert len(t.compared) == 10  # thirteen, less one row with seed 0 and two with two seeds
    assert {label for label, _ in t.marks} <= set(t.compared)


def test_single_runs_carry_the_interval_over_images() -> None:
    found = tables.singles(studies(toy({0: (0.9, 0.5, 0.4)}))[0])
    assert [(s.domain, s.num_images) for s in found] == [("photo", 100), ("cartoon", 100), ("sketch", 100)]
    # Wilson at 50 of 100 is 0.5 ± 1.96 sqrt(1/400 + 1.96²/40000) / (1 + 1.96²/100) = 0.4038, 0.5962
    assert (found[1].low, found[1].high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    header, *lines = csv.reader(io.StringIO(formats.singles_csv(found)))
    assert header[-3:] == ["top1", "wilson_low", "wilson_high"]
    assert len(lines) == 3


def test_csv_holds_fractions_errors_and_counts() -> None:
    text = formats.to_csv(robustness(toy({0: (0.9, 0.6, 0.4), 1: (0.8, 0.6, 0.4)})))
    (line,) = csv.DictReader(io.StringIO(text))
    assert (line["method"], line["seeds"], line["photo"], line["photo_n"]) == ("zero_shot", "2", "0.85", "2")
    assert float(line["photo_se"]) == pytest.approx(0.05)
    assert (line["worst domain"], line["worst domain_name"]) == ("0.4", "sketch")


def test_latex_is_escaped_and_every_row_has_every_column() -> None:
    records = toy({0: (0.9, 0.6, 0.4), 1: (0.8, 0.6, 0.4)}, label="50% & more_{x}") + toy({0: (0.7, 0.5, 0.3)}, shots=1)
    text = formats.to_latex(robustness(records), "± 5 % of_all", "toy")
    assert r"50\% \& more\_\{x\}" in text
    assert r"\caption{$\pm$ 5 \% of\_all}" in text
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {8}  # nine columns
    assert r"\textbf{85.0} $\pm$ 5.0" in text
    assert text.count("{") == text.count("}")


def test_a_latex_table_fits_the_text_and_a_long_one_goes_on_over_pages() -> None:
    short = formats.latex_table("lr", ["ρ", "n"], ["a & 1 \\\\"] * formats.LATEX_ROWS, "c", "t")
    assert "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}" in short
    assert r"$\rho$ & n \\" in short  # a letter that LaTeX has no glyph for in text
    long = formats.latex_table("lr", ["ρ", "n"], ["a & 1 \\\\"] * (formats.LATEX_ROWS + 1), "c", "t")
    assert "\\begin{longtable}" in long
    assert "\\begin{table}" not in long
    assert long.count(r"$\rho$ & n \\") == 2  # on the first page and on the others


def test_markdown_is_a_table_whatever_the_label() -> None:
    text = formats.to_markdown(robustness(toy({0: (0.9, 0.6, 0.4)}, label="a|b <i> *c*")))
    assert r"| a\|b \<i\> \*c\* | 1 | 90.0 | 60.0 | 40.0 |" in text


def test_load_records_is_tidy(publish: Any) -> None:
    frame = load_records(publish(miniatures()))
    assert len(frame) == 35 * 8  # seven domains, photo on two splits
    assert frame["reported"].sum() == 35 * 7
    assert set(frame["role"]) == {"source", "target"}
    assert frame["group"].nunique() == 13
    ensemble = frame[(frame["row"] == "zero-shot, ensemble") & frame["reported"] & (frame["role"] == "target")]
    assert set(ensemble["domain"]) == set(TARGETS)
    t = robustness(miniatures())
    row = next(r for r in t.rows if r.label == "zero-shot, ensemble")
    by_seed = ensemble.groupby("seed")["top1"].mean()
    assert row.cells["shifted"].mean == pytest.approx(by_seed.mean())
    assert row.cells["shifted"].error == pytest.approx(by_seed.sem())
    assert frame["worst_class"].dtype == "float64"


def test_load_records_refuses_what_is_no_record(publish: Any, tmp_path: Path) -> None:
    folder = publish(leave_one_out())
    (folder / ("ab" * 8 + ".json")).write_text("{")
    with pytest.raises(RecordError, match=r"ab\.json is not a record"):
        load_records(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="no record"):
        load_records([tmp_path / "empty"])
