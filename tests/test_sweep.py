from pathlib import Path

import pytest

from clipdg import sweep
from clipdg.errors import ConfigError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    return file


def test_a_plan_is_runs_times_seeds_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "base: {backbone: {name: tiny, weights: 'random:${seed}'}, shots: 4}\n"
        "seeds: [3, 5]\n"
        "runs:\n"
        "  - {method: linear_probe, label: a}\n"
        "  - {method: {name: coop, lr: 0.5}, label: b, seeds: [7], shots: null}\n",
    )
    planned = sweep.plan(file, ["holdout=0.1"])
    found = [(r.values["label"], r.values["seed"], r.values["shots"], r.values["backbone"]["weights"]) for r in planned]
    assert found == [("a", 3, 4, "random:3"), ("a", 5, 4, "random:5"), ("b", 7, None, "random:7")]
    assert {r.values["holdout"] for r in planned} == {0.1}
    assert planned[2].values["method"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grid: {}\n", "has 'grid'; a sweep file has base, seeds, runs"),
        ("runs: []\n", "runs is a list"),
        ("runs: [coop]\n", "runs is a list"),
        ("seeds: 3\n", r"seeds of run 1 is 3; give a list"),
        ("runs: [{metod: coop}]\n", "no setting 'metod'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_before_anything_runs(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        sweep.plan(written(tmp_path, text))
