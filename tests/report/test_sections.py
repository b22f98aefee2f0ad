"""What reports make of single predictions, shots and timing: numbers known by hand."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_records import evaluation, make_record

from clipdg.core.errors import RecordError
from clipdg.records.record import Record
from clipdg.report import comparisons, rerun
from clipdg.report import section as section_
from clipdg.report.page import write_report
from clipdg.report.samples import Samples
from clipdg.report.sections import calibration, class_changes, class_pulls, costs, curves
from clipdg.report.tables import studies, table
from clipdg.runs import config
from clipdg.storage.publish import hash_bytes

LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def with_predictions(
    folder: Path, label: str, seed: int, predicted: Sequence[int], confidence: float = 0.9, **more: object
) -> Record:
    """A run on ten images of "sketch" and the same ten of "photo", with its predictions beside it."""
    num = len(predicted)
    content = pa.BufferOutputStream()
    pq.write_table(
        pa.table(
            {
                "domain": ["photo"] * num + ["sketch"] * num,
                "split": ["test"] * num + ["in", "out"] * (num // 2),
                "id": [f"{i}" for i in range(num)] * 2,
                "label": pa.array(LABELS * 2, pa.int16()),
                "prediction": pa.array([*LABELS, *predicted], pa.int16()),
                "confidence": pa.array([confidence] * (2 * num), pa.float32()),
            }
        ),
        content,
    )
    top1 = sum(a == b for a, b in zip(LABELS, predicted, strict=True)) / num
    made = make_record(
        [evaluation("photo", "test", 1.0, num), evaluation("sketch", "all", top1, num)],
        label=label, seed=seed, shots=1, method={"name": "m", "setting": label}, **more,  # type: ignore[arg-type]
    )  # fmt: skip
    written = bytes(content.getvalue())
    folder.mkdir(exist_ok=True)
    (folder / f"{made.run_id}.parquet").write_bytes(written)
    stored = {"file": f"{made.run_id}.parquet", "digest": hash_bytes(written)}
    data = {**made.content["data"], "classes": ["cat", "dog", "owl"]}
    record = Record({**made.content, "predictions": stored, "data": data})
    assert record.publish(folder)
    return record


RIGHT = LABELS
DOGS_ARE_CATS = [0, 0, 0, 0, 0, 0, 0, 0, 2, 2]


def test_a_comparison_takes_the_images_of_all_seeds_together(tmp_path: Path) -> None:
    records = [with_predictions(tmp_path, "good", s, RIGHT) for s in (0, 1, 2)]
    records += [with_predictions(tmp_path, "bad", s, DOGS_ARE_CATS) for s in (0, 1, 2)]
    (study,) = studies(records)
    found = comparisons.comparisons(study, table(study), Samples([tmp_path]))
    photo, sketch = found
    assert (photo.label, photo.reference, photo.domain, photo.paired.p) == ("bad", "good", "photo", 1.0)
    # four images differ, three seeds alike: two of 2^4 exchanges are as far, and Holm doubles the smaller of two p
    assert (sketch.paired.difference, sketch.paired.num_images) == (pytest.approx(-0.4), 10)
    assert (sketch.paired.p, sketch.adjusted) == (pytest.approx(2 / 16), pytest.approx(4 / 16))
    assert sketch.over_seeds == pytest.approx((-0.4, -0.4))
    assert not sketch.differs


def test_seeds_with_their_own_images_count_as_images(tmp_path: Path) -> None:
    records = []
    for seed in (0, 1, 2):
        more = {"data": f"{seed}" * 64, "seeded": ("seed", "benchmark.seed")}
        records.append(with_predictions(tmp_path, "good", seed, RIGHT, **more))
        records.append(with_predictions(tmp_path, "bad", seed, DOGS_ARE_CATS, **more))
    (study,) = studies(records)
    t = table(study)
    _, sketch = comparisons.comparisons(study, t, Samples([tmp_path]))
    assert sketch.paired.num_images == 30
    assert sketch.paired.p == pytest.approx(2 / 2**12)
    assert sketch.differs
    marked = comparisons.mark(t, [sketch])
    assert marked.differs == {("bad", "photo/sketch")}
    out = tmp_path / "out"
    write_report([tmp_path], out)
    assert "| bad | 3 | 100.0 ± 0.0 | *60.0 ± 0.0* † |" in (out / "report.md").read_text()
    assert r"\underline{60.0}$^{\dagger}$ $\pm$ 0.0" in (out / "tables" / "toy-accuracy.tex").read_text()
    assert "<sup>†</sup>" in (out / "report.html").read_text()


def test_a_baseline_that_there_is_not_is_one_sentence(tmp_path: Path) -> None:
    with_predictions(tmp_path, "good", 0, RIGHT)
    with pytest.raises(RecordError, match="no row 'best' of toy to compare with; there are: good"):
        write_report([tmp_path], tmp_path / "out", "best")


def test_predictions_that_were_altered_are_named_and_used_for_nothing(tmp_path: Path) -> None:
    for label, predicted in (("good", RIGHT), ("bad", DOGS_ARE_CATS)):
        record = with_predictions(tmp_path, label, 0, predicted)
    (tmp_path / f"{record.run_id}.parquet").write_bytes(b"PAR1")
    report = write_report([tmp_path], tmp_path / "out")
    assert report.problems == (
        f"{record.run_id}.parquet is not what run {record.run_id} wrote: its digest does not match",
    )
    assert not (tmp_path / "out" / "tables" / "toy-comparisons.csv").exists()


def test_classes_that_change_by_hand(tmp_path: Path) -> None:
    records = [with_predictions(tmp_path, "good", 0, RIGHT), with_predictions(tmp_path, "bad", 0, DOGS_ARE_CATS)]
    (study,) = studies(records)
    good, bad = study.rows
    samples = Samples([tmp_path])
    found = [(c.name, c.first, c.second, c.num_images) for c in class_changes.changes(study, good, bad, samples)]
    assert found == [("dog", 1.0, 0.0, 4), ("cat", 1.0, 1.0, 4), ("owl", 1.0, 1.0, 2)]
    pulled = class_pulls.pull(study, bad, samples)
    assert pulled is not None
    assert pulled.domains == ("photo", "sketch")
    assert pulled.values == pytest.approx(np.array([[0, 0, 0], [0.4, -0.4, 0]]))


def test_reliability_bins_by_hand() -> None:
    # Fifteen bins: 0.2 is the upper edge of the third; 1.0 is in the last.
    found = calibration.binned("m", "source", np.array([0.2, 0.15, 1.0, 0.95]), np.array([True, False, True, False]))
    assert found.counts.tolist() == [0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (found.confidence[2], found.accuracy[2]) == (pytest.approx(0.175), 0.5)
    assert found.ece == pytest.approx((abs(0.5 - 0.175) + abs(0.5 - 0.975)) / 2)


def test_reliability_agrees_with_the_ece_of_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.01, 0.99, 1000)
    right = rng.random(1000) < confidence
    # A binary problem whose predicted probability is the confidence and whose target is "right" has the same bins.
    expected = binary_calibration_error(torch.tensor(confidence), torch.tensor(right.astype(int)), n_bins=15)
    assert calibration.binned("m", "source", confidence, right).ece == pytest.approx(float(expected), abs=1e-6)


def shot_runs(label: str, method: str, shots: int | None, top1: float) -> list[Record]:
    return [
        make_record(
            [evaluation("photo", "test", 0.9), evaluation("sketch", "all", top1)],
            label=label, method={"name": method}, shots=shots, seed=seed,
        )
        for seed in (0, 1)
    ]  # fmt: skip


def test_rows_that_differ_in_shots_alone_make_a_curve() -> None:
    records = shot_runs("CoOp, 1 shot", "coop", 1, 0.5) + shot_runs("CoOp, 16 shots", "coop", 16, 0.6)
    records += shot_runs("Probe, 4 shots", "probe", 4, 0.4) + shot_runs("Probe, all", "probe", None, 0.7)
    (study,) = studies(records)
    (family,) = curves.families(study, table(study))
    assert (family.label, list(family.rows)) == ("CoOp", [1, 16])
    section = curves.panel(study, table(study))
    assert section is not None
    assert section.sheet is not None
    assert [[x.text for x in row] for row in section.sheet.rows] == [
        ["CoOp", "1", "90.0 ± 0.0", "50.0 ± 0.0", "2"],
        ["CoOp", "16", "90.0 ± 0.0", "60.0 ± 0.0", "2"],
    ]


def test_a_figure_of_the_first_six_methods_says_so_and_the_table_has_all() -> None:
    records = [
        r
        for i in range(7)
        for s in (1, 2)
        for r in shot_runs(f"M{i}, {s} shot{'s' * (s > 1)}", f"m{i}", s, 0.5 + i / 100)
    ]
    (study,) = studies(records)
    section = curves.panel(study, table(study))
    assert section is not None
    assert section.sheet is not None
    assert {row[0].text for row in section.sheet.rows} == {f"M{i}" for i in range(7)}
    assert "Drawn: the first 6 of 7; the table has all." in section.caption


def test_costs_are_medians_with_their_range() -> None:
    records = shot_runs("A", "a", 1, 0.5)
    timing = [
        {"seconds": 3.0, "fit_seconds": 1.0, "images_per_second": 40.0},
        {"seconds": 5.0, "fit_seconds": 3.0, "images_per_second": 60.0},
    ]
    solved = [Record({**r.content, "timing": t}) for r, t in zip(records, timing, strict=True)]
    made = [Record({**r.content, "evaluations": [{**e, "step": 7} for e in r.content["evaluations"]]}) for r in solved]
    section = costs.panel(studies(solved)[0])
    assert section is not None
    assert section.sheet is not None
    assert "fitted, images/s" not in section.sheet.heads  # after no update nothing went down a gradient
    section = costs.panel(studies(made)[0])
    assert section is not None
    assert section.sheet is not None
    # 200 images (100 of each domain) in two seconds of evaluation; nothing says memory or parameters
    assert section.sheet.heads == ("method", "runs", "fit, s", "whole run, s", "fitted, images/s",
                                   "tested, images/s", "device")  # fmt: skip
    assert [x.text for x in section.sheet.rows[0]] == [
        "A", "2", "2.0 [1.0, 3.0]", "4.0 [3.0, 5.0]", "50 [40, 60]", "100", "not said"
    ]  # fmt: skip
    curve = [{"alpha": a, "domain": "photo", "split": "out", "num_images": 1, "metrics": {}} for a in (0.0, 0.5, 1.0)]
    along = costs.panel(studies([Record({**r.content, "curve": curve}) for r in made])[0])
    assert along is not None
    assert along.sheet is not None
    assert along.sheet.rows[0][5].text == "300"  # each image three times


def test_a_sheet_in_latex_is_escaped_and_every_row_has_every_column() -> None:
    sheet = section_.Sheet(("a_b", "n"), ((section_.Shown("50 %", "x"), section_.Shown("", None)),) * 2, (1,))
    text = sheet.latex("c & d", "t")
    assert r"a\_b & n \\" in text
    assert text.count(r"50 \% &  \\") == 2
    assert r"\caption{c \& d}" in text
    assert sheet.csv == "a_b,n\nx,\nx,\n"


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=coop", "shots=4", "seed=3", "method.context_init=a photo of an", "label=50% of 'it'"],
        ["benchmark=rotated_digits", "method=zero_shot", 'method.templates=["{}","a {a_domain}: of {}"]'],
        ["backbone=tiny:resnet", "backbone.weights=random:1", "method=erm", "method.lr=1e-05", "label=no"],
    ],
)
def test_the_command_of_a_record_gives_its_settings(overrides: list[str]) -> None:
    values = config.load(None, overrides).plain
    record = Record({**make_record([evaluation("sketch", "all", 0.5)]).content, "config": values})
    words = shlex.split(rerun.command(record, width=60).replace("\\\n", " "))
    assert words[:2] == ["clipdg", "run"]
    assert words[-2:] == ["--out", "DIR"]
    assert config.load(None, words[2:-2]).plain == values


def test_a_page_with_everything_has_no_identity_twice(tmp_path: Path) -> None:
    import re

    for seed in (0, 1):
        with_predictions(tmp_path, "good", seed, RIGHT)
        with_predictions(tmp_path, "bad", seed, DOGS_ARE_CATS)
    page = write_report([tmp_path], tmp_path / "out").path.read_text()
    ids = re.findall(r'<[a-z]+ [^>]*\bid="([^"]+)"', page)
    groups = [i for i in ids if re.search(r"(axes|figure|patch)_\d+$", i)]
    assert len(groups) > 10
    mine = [i for i in groups if i.startswith("toy-")]
    assert len(mine) == len(set(mine))
    assert io.StringIO(page).readline() == "<!doctype html>\n"


def imagenet_run(top1: float, **domains: float) -> Record:
    evaluations = [evaluation("imagenet", "test", top1, 50_000)]
    evaluations += [evaluation(d, "test", a, 100) for d, a in domains.items()]
    evaluations.append(evaluation("imagenet", "a-classes", 0.9, 10_000))
    targets = [e["domain"] for e in evaluations if e["domain"] != "imagenet"]
    made = make_record(evaluations, sources=("imagenet",), targets=targets, shift="natural", benchmark="imagenet")
    splits = {d: {"test": 100} for d in targets}
    return Record({**made.content, "data": {**made.content["data"], "num_images": {"imagenet": {"test": 5}, **splits}}})


def test_effective_robustness_is_the_distance_from_the_testbeds_line() -> None:
    from clipdg.report import effective_robustness
    from clipdg.report.sections import shifts

    line = effective_robustness.fit(
        effective_robustness.baseline_models("testbed_standard"), "imagenet", "imagenet-v2", "testbed_standard"
    )
    expected = float(line.expected(np.array(0.7)))
    (study,) = studies([imagenet_run(0.7, v2=expected + 0.05, a=0.3)])
    natural, effective = shifts.panels(study, table(study))
    assert natural.sheet is not None
    assert natural.sheet.heads == ("method", "ImageNet", "V2", "A", "ImageNet, classes of A")
    assert [x.text for x in natural.sheet.rows[0]][1:] == ["70.0", f"{100 * expected + 5:.1f}", "30.0", "90.0"]
    assert effective.sheet is not None
    v2, a = effective.sheet.rows
    assert (v2[1].text, v2[5].text) == ("imagenet-v2", "+5.0")
    assert (a[1].text, a[2].text) == ("imagenet-a", "90.0")  # against the same classes, not all


@pytest.mark.parametrize("whole", [True, False])
def test_corruptions_have_no_mean_where_one_is_missing(whole: bool) -> None:
    from clipdg.records.statistics import ALEXNET_ERRORS
    from clipdg.report.sections import shifts

    (study,) = studies([corrupted(list(ALEXNET_ERRORS) if whole else list(ALEXNET_ERRORS)[:3])])
    (section,) = [s for s in shifts.panels(study, table(study)) if s.key == "corruptions"]
    assert section.sheet is not None
    _, mean, mce, noise, *others = section.sheet.rows[0]
    assert (noise.text, others[-1].text) == ("50.0", "50.0" if whole else "")
    assert mean.text == ("50.0" if whole else "")
    expected = sum(0.5 / e for e in ALEXNET_ERRORS.values()) / 15
    assert mce.value == (pytest.approx(expected) if whole else None)


def corrupted(kinds: list[str]) -> Record:
    evaluations = [evaluation("imagenet", "test", 0.7)]
    evaluations += [evaluation(f"c/{k}/{s}", "test", 0.5) for k in kinds for s in range(1, 6)]
    targets = [e["domain"] for e in evaluations[1:]]
    return make_record(evaluations, sources=("imagenet",), targets=targets, shift="corruptions", benchmark="imagenet")


def test_a_line_between_two_weights_is_a_mean_over_seeds_at_each_alpha() -> None:
    def run(seed: int, at: dict[float, tuple[float, float]]) -> Record:
        made = make_record(
            [evaluation("photo", "test", 0.9), evaluation("sketch", "all", 0.5)],
            seed=seed, method={"name": "wise_ft", "alpha": 0.5},
        )  # fmt: skip
        curve = [
            {**evaluation(domain, split, value), "alpha": alpha}
            for alpha, values in at.items()
            for domain, split, value in zip(("photo", "sketch"), ("test", "all"), values, strict=True)
        ]
        return Record({**made.content, "curve": curve})

    records = [run(0, {0: (0.8, 0.4), 1: (1.0, 0.2)}), run(1, {0: (0.6, 0.4), 1: (1.0, 0.4), 0.5: (1.0, 1.0)})]
    (study,) = studies(records)
    (path,) = curves.paths(study)
    assert path.points == ((0, pytest.approx(0.7), pytest.approx(0.4)), (1, pytest.approx(1), pytest.approx(0.3)))
    assert curves.draw_paths([path]).axes
