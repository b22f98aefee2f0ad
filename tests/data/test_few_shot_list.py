"""Few-shot picks as published lists: given back, a run is the same run."""

from __future__ import annotations

import json
from pathlib import Path

import domain_sets
import numpy as np
import pytest

import clipdg
from clipdg.benchmarks import pacs
from clipdg.core.benchmark import Domain
from clipdg.core.errors import ConfigError, RecordError
from clipdg.core.model import ClipBackbone
from clipdg.data import few_shot_list
from clipdg.data.few_shot_list import Picks
from clipdg.data.rows import ArrayRows

CLASSES = ("cat", "dog")


@pytest.fixture
def domain() -> Domain:
    array = np.zeros((6, 2, 2, 3), np.uint8)
    return Domain("photo", ArrayRows(array, np.array([0, 0, 0, 1, 1, 1]), [f"{c}/{i}" for c in "cd" for i in range(3)]))


def test_picks_are_rows_in_the_order_of_the_list(domain: Domain) -> None:
    given = Picks("p.json", {"photo": ("d/2", "c/0", "d/0", "c/1")})
    assert given.rows(domain, CLASSES, np.arange(6), 2).tolist() == [5, 0, 3, 1]
    assert given.rows(domain, CLASSES, np.arange(6), None).tolist() == [5, 0, 3, 1]


@pytest.mark.parametrize(
    ("ids", "shots", "reason"),
    [
        (("c/0", "d/9"), None, r"picks d/9, which domain 'photo' does not have\. Did you mean"),
        (("c/0", "d/0", "c/0"), None, "picks c/0 of domain 'photo' 2 times"),
        (("c/0", "d/2"), None, "picks d/2 of domain 'photo', which is held out here"),
        (("c/0", "c/1"), None, "picks 0 images of class 'dog' in domain 'photo'; every class needs one"),
        (("c/0", "c/1", "d/0"), 2, "picks 1 images of class 'dog' in domain 'photo'; shots is 2"),
    ],
)
def test_picks_that_cannot_be_meant_are_named(domain: Domain, ids: tuple[str, ...], shots: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Picks("p.json", {"photo": ids}).rows(domain, CLASSES, np.arange(5), shots)


def test_every_source_needs_picks(domain: Domain) -> None:
    with pytest.raises(ConfigError, match="no picks of source 'photo'; it has sketch"):
        Picks("p.json", {"sketch": ("c/0",)}).rows(domain, CLASSES, np.arange(6), None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"photo": "c/0"}', '{"photo": []}', '{"photo": [1]}'])
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match=r"picks: .*p\.json"):
        few_shot_list.read(tmp_path / "p.json")


def test_a_record_given_back_is_the_same_run(tmp_path: Path) -> None:
    root = domain_sets.tree(tmp_path / "pacs", domain_sets.samples(pacs.PACS, 6))
    settings = {
        "benchmark": {"name": "pacs", "root": str(root)},
        "backbone": {"name": "tiny", "weights": "random:0"},
        "method": "linear_probe",
        "shift": "sketch",
        "shots": 2,
        "seed": 3,
    }
    [drawn] = clipdg.run(settings, out=tmp_path / "out")
    record = tmp_path / "out" / f"{drawn.run_id}.json"
    assert {d: len(ids) for d, ids in drawn.content["data"]["fitted_on"].items()} == dict.fromkeys(
        ("art_painting", "cartoon", "photo"), 14
    )
    [given] = clipdg.run({**settings, "picks": str(record)})
    assert given.content["data"]["fitted_on"] == drawn.content["data"]["fitted_on"]
    assert given.evaluations == drawn.evaluations
    assert given.run_id != drawn.run_id
    assert given.content["config"]["picks"] == few_shot_list.read(record).digest[:16]
    (tmp_path / "list.json").write_text(json.dumps(drawn.content["data"]["fitted_on"]))
    [listed] = clipdg.run({**settings, "picks": str(tmp_path / "list.json")})
    assert listed.run_id == given.run_id  # the list counts, not where it lies
    with pytest.raises(ConfigError, match="held out here"):
        clipdg.run({**settings, "seed": 4, "picks": str(record)})
    record.write_text(record.read_text().replace("pic_001.png", "pic_000.png"))
    with pytest.raises(RecordError, match="altered"):
        clipdg.run({**settings, "picks": str(record)})


def test_a_run_on_all_images_has_no_picks(tmp_path: Path) -> None:
    [record] = clipdg.run({"benchmark": "rotated_digits", "backbone": {"name": "tiny", "weights": "random:0"},
                           "method": "zero_shot", "shift": "0"}, out=tmp_path)  # fmt: skip
    with pytest.raises(ConfigError, match="fitted on all images"):
        few_shot_list.read(tmp_path / f"{record.run_id}.json")
    assert "picks" not in record.content["config"]


def test_a_data_module_takes_picks(tmp_path: Path, clip: ClipBackbone) -> None:
    root = domain_sets.tree(tmp_path / "pacs", domain_sets.samples(pacs.PACS, 4))
    drawn = clipdg.datamodule("pacs", "S", clip, root=str(root), shots=1)
    ids = {d: [drawn.benchmark.domains[d].rows.ids[i] for i in rows[::-1]] for d, rows in drawn.fit_rows.items()}
    (tmp_path / "list.json").write_text(json.dumps(ids))
    given = clipdg.datamodule("pacs", "S", clip, root=str(root), picks=tmp_path / "list.json")
    assert {d: rows.tolist() for d, rows in given.fit_rows.items()} == {
        d: rows[::-1].tolist() for d, rows in drawn.fit_rows.items()
    }
