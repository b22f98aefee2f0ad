"""Base and new classes, by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipdg.core.benchmark import Benchmark, Domain, Subset
from clipdg.core.errors import ConfigError
from clipdg.data import base_to_new
from clipdg.data.rows import ArrayRows
from clipdg.runs import config, run

CLASSES = ("a", "b", "c", "d", "e")


def bench() -> Benchmark:
    """Rows 0 to 9 of labels 0, 1, 2, 3, 4, 0, …; the gray value of an image is its row."""
    labels = np.arange(10) % 5
    images = np.broadcast_to(np.arange(10, dtype=np.uint8)[:, None, None, None], (10, 4, 4, 3)).copy()
    rows = ArrayRows(images, labels, [f"r{i}" for i in range(10)])
    splits = {"train": np.arange(7), "test": np.arange(7, 10)}
    subset = Subset((0, 1, 3, 4), groups=((0, 1), (3, 4)))
    domain = Domain("x", rows, splits, subset, class_subsets={"v": Subset((1, 2, 4))}, pool=lambda: rows)
    return Benchmark("b", CLASSES, {"x": domain}, wnids=tuple(f"n{c}" for c in CLASSES))


def test_the_first_half_rounded_up_is_base_and_the_rest_new() -> None:
    base, new = base_to_new.of(bench(), "base"), base_to_new.of(bench(), "new")
    assert (base.classes, new.classes) == (("a", "b", "c"), ("d", "e"))
    assert (base.wnids, new.wnids) == (("na", "nb", "nc"), ("nd", "ne"))
    whole = bench()
    assert base_to_new.of(whole, "all") is whole


def test_images_keep_their_class_split_and_pixels() -> None:
    x = base_to_new.of(bench(), "new").domains["x"]
    assert list(x.rows.ids) == ["r3", "r4", "r8", "r9"]
    assert x.rows.labels.tolist() == [0, 1, 0, 1]
    assert [x.rows.image(i).getpixel((0, 0)) for i in range(4)] == [(i,) * 3 for i in (3, 4, 8, 9)]
    assert x.splits is not None
    assert {name: rows.tolist() for name, rows in x.splits.items()} == {"train": [0, 1], "test": [2, 3]}
    assert x.pool is not None
    assert x.pool().labels.tolist() == [0, 1, 0, 1]


def test_subsets_are_those_of_the_half() -> None:
    x = base_to_new.of(bench(), "new").domains["x"]
    assert x.subset == Subset((0, 1), groups=((0, 1),))
    assert x.class_subsets == {"v": Subset((1,))}


def test_a_half_of_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"half=new: b has 1 such class"):
        base_to_new.of(replace(bench(), classes=CLASSES[:3]), "new")


def test_a_context_learnt_on_base_classes_is_tested_on_new_ones(tmp_path: Path) -> None:
    given = {"benchmark": {"name": "rotated_digits", "half": "base"}, "shift": "75", "shots": 1}
    coop = {"name": "coop", "epochs": 1, "num_context": 2}
    base, *_ = run.run(config.load(values={**given, "method": coop}), tmp_path)
    file = tmp_path / base.content["learnt"]["file"]
    given["benchmark"] = {"name": "rotated_digits", "half": "new"}
    new, *_ = run.run(config.load(values={**given, "method": {"name": "context", "file": str(file)}}), tmp_path)
    assert len(base.content["data"]["classes"]) == len(new.content["data"]["classes"]) == 5
    assert not set(base.content["data"]["classes"]) & set(new.content["data"]["classes"])
    assert base.content["data"]["fingerprint"] != new.content["data"]["fingerprint"]
    assert "new half" in new.content["data"]["notes"][-1]
