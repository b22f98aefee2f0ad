from itertools import product
from pathlib import Path

import pytest

from clipdg.core.errors import ConfigError
from clipdg.records.identity import flatten
from clipdg.runs import config, sweep_file


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
    planned = sweep_file.plan(file, ["holdout=0.1"])
    found = [(r.plain["label"], r.plain["seed"], r.plain["shots"], r.plain["backbone"]["weights"]) for r in planned]
    assert found == [("a", 3, 4, "random:3"), ("a", 5, 4, "random:5"), ("b", 7, None, "random:7")]
    assert {r.plain["holdout"] for r in planned} == {0.1}
    assert planned[2].plain["method"]["lr"] == 0.5


def values_of(planned: list[config.RunSettings], *keys: str) -> list[tuple[object, ...]]:
    return [tuple(flatten(r.plain)[k] for k in keys) for r in planned]


def test_a_grid_is_every_combination_for_each_row(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "seeds: [0, 1]\n"
        "grid: {shots: [1, 4]}\n"
        "runs:\n"
        "  - {label: a, method: coop, grid: {method.lr: [0.5, 0.25]}}\n"
        "  - {label: b, grid: {shots: [16], method: [zero_shot, {name: linear_probe}]}}\n",
    )
    planned = sweep_file.plan(file)
    assert values_of(planned[:8], "shots", "method.lr", "seed") == list(product([1, 4], [0.5, 0.25], [0, 1]))
    assert values_of(planned[8:], "label", "shots", "method.name", "seed") == [
        ("b", 16, name, seed) for name in ("zero_shot", "linear_probe") for seed in (0, 1)
    ]


RANDOM = """
base: {method: erm}
seeds: [0, 1]
random:
  num: 3
  settings:
    method.lr: {log10_uniform: [-5, -3.5]}
    method.weight_decay: {log10_uniform: [-6, -2]}
    method.batch_size: {int_pow2: [3, 5.5]}
"""


def test_random_search_draws_as_domainbed_and_draw_0_is_the_settings_as_they_stand(tmp_path: Path) -> None:
    planned = sweep_file.plan(written(tmp_path, RANDOM))
    assert values_of(planned, "hparams_seed", "seed") == list(product([0, 1, 2], [0, 1]))
    default = config.load(overrides=["method=erm"]).plain["method"]
    assert planned[0].plain["method"] == default
    [(lr, batch_size, weight_decay)] = values_of(planned[4:5], "method.lr", "method.batch_size", "method.weight_decay")
    assert (lr, batch_size, weight_decay) == (pytest.approx(5.6841898471e-05), 25, pytest.approx(5.1002235340e-03))
    assert planned[2].plain["method"]["lr"] != planned[3].plain["method"]["lr"]  # each trial has its own


def test_a_fixed_seed_of_random_gives_all_run_seeds_the_same_draws(tmp_path: Path) -> None:
    planned = sweep_file.plan(written(tmp_path, RANDOM.replace("num: 3", "num: 3\n  seed: 0")))
    assert planned[4].plain["method"] == planned[5].plain["method"]
    assert planned[4].plain["method"]["lr"] == pytest.approx(5.6841898471e-05)


def test_the_draw_is_recorded_and_no_part_of_identity(tmp_path: Path) -> None:
    drawn = sweep_file.plan(written(tmp_path, RANDOM))[0]
    plain = config.load(overrides=["method=erm"])
    assert drawn.plain["hparams_seed"] == 0
    assert drawn.identity() == plain.identity()


def test_a_seed_on_the_command_line_takes_the_place_of_all_seeds(tmp_path: Path) -> None:
    file = written(tmp_path, "seeds: [0, 1, 2]\nruns: [{method: zero_shot}, {method: coop}]\n")
    assert values_of(sweep_file.plan(file, ["seed=5"]), "method.name", "seed") == [("zero_shot", 5), ("coop", 5)]


def test_what_an_override_makes_the_same_is_planned_once(tmp_path: Path) -> None:
    file = written(tmp_path, "base: {method: coop}\ngrid: {method.lr: [0.1, 0.2], shots: [1, 4]}\n")
    assert values_of(sweep_file.plan(file, ["method.lr=0.5"]), "method.lr", "shots") == [(0.5, 1), (0.5, 4)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("gird: {}\n", "Did you mean 'grid'"),
        ("base: 3\n", "base is 3, not settings"),
        ("base: {seed: 1}\n", "base has 'seed'; give seeds"),
        ("runs: [{label: a, seed: 1}]\n", r"run 1 \(a\) has 'seed'; give seeds"),
        ("grid: {shots: 4}\n", "give each setting a list"),
        ("grid: {seed: [1]}\n", "give seeds"),
        ("grid: {metod.lr: [1]}\n", "run 1: no setting 'metod'"),
        ("runs: [{}, {label: b, grid: {shots: [0]}}]\n", r"sweep.yaml, run 2 \(b\): shots is 0"),
        ("runs: [{label: a}, {label: b}]\n", r"run 2 \(b\) has the settings of run 1 \(a\)"),
        ("random: 3\n", "give num and settings"),
        ("random: {num: 2}\n", "random draws nothing"),
        ("random: {num: 0, settings: {shots: {choice: [1]}}}\n", "num of random is 0"),
        ("random: {num: 2, seed: a, settings: {shots: {choice: [1]}}}\n", "seed of random is 'a'"),
        ("random: {num: 2, settings: {shots: 3}}\n", "run 1: shots is 3; give one distribution"),
        ("random: {num: 2, settings: {shots: {choice: [1]}}}\ngrid: {shots: [2]}\n", "shots is in grid and in random"),
        ("random: {num: 2, settings: {method.lr: {choice: [1]}, backbone.lr: {choice: [1]}}}\n", "stream 'lr'"),
        ("runs: []\n", "runs is a list"),
        ("runs: [coop]\n", "runs is a list"),
        ("seeds: 3\n", r"run 1: seeds is 3; give a list"),
        ("runs: [{metod: coop}]\n", "no setting 'metod'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_before_anything_runs(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        sweep_file.plan(written(tmp_path, text))
