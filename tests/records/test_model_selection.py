"""DomainBed's criteria: cases whose choice is known by hand, and a sweep against a second writing of the rules."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipdg.core.errors import ConfigError, RecordError
from clipdg.records.folder import read_records
from clipdg.records.model_selection import Checkpoint, Criterion, select
from clipdg.report.protocol import protocol
from clipdg.runs import config, sweep, sweep_file
from clipdg.runs.plan import identify
from clipdg.runs.session import Session

DOMAINS = ("A", "C", "P")


def checkpoint(
    targets: tuple[str, ...],
    accuracies: Mapping[str, tuple[float, float]],  # domain -> (in, out)
    *,
    step: int = 0,
    draw: int = 0,
    run_id: str = "r",
) -> Checkpoint:
    values = {(d, s): a for d, pair in accuracies.items() for s, a in zip(("in", "out"), pair, strict=True)}
    return Checkpoint("toy", "ERM", 0, draw, targets, step, values, run_id)


def test_training_takes_the_step_that_is_best_on_the_sources_held_out_splits() -> None:
    runs = [
        checkpoint(("A",), {"A": (0.9, 0.9), "C": (1, 0.5), "P": (1, 0.5)}, step=0),
        checkpoint(("A",), {"A": (0.3, 0.3), "C": (1, 0.6), "P": (1, 0.8)}, step=300),  # mean 0.7
        checkpoint(("A",), {"A": (0.8, 0.8), "C": (1, 0.7), "P": (1, 0.6)}, step=600),  # mean 0.65
    ]
    choice = select(runs, "A", "training")
    assert choice is not None
    assert (choice.step, choice.test, choice.value) == (300, 0.3, pytest.approx(0.7))


def test_the_earliest_of_equal_steps_wins() -> None:
    runs = [checkpoint(("A",), {"A": (s / 1000, 0), "C": (1, 0.5), "P": (1, 0.5)}, step=s) for s in (600, 0, 300)]
    choice = select(runs, "A", "training")
    assert choice is not None
    assert choice.step == 0


def test_the_highest_of_equal_draws_wins() -> None:
    runs = [checkpoint(("A",), {"A": (d / 10, 0), "C": (1, 0.5), "P": (1, 0.5)}, draw=d) for d in (2, 0, 1)]
    choice = select(runs, "A", "training")
    assert choice is not None
    assert (choice.draw, choice.test) == (2, 0.2)


def test_the_oracle_looks_at_the_last_step_only() -> None:
    runs = [
        checkpoint(("A",), {"A": (0.9, 0.99), "C": (1, 1), "P": (1, 1)}, step=0),
        checkpoint(("A",), {"A": (0.5, 0.40), "C": (1, 1), "P": (1, 1)}, step=300),
        checkpoint(("A",), {"A": (0.6, 0.30), "C": (1, 1), "P": (1, 1)}, step=300, draw=1),
    ]
    choice = select(runs, "A", "oracle")
    assert choice is not None
    assert (choice.draw, choice.step, choice.test, choice.value) == (0, 300, 0.5, 0.40)


@pytest.mark.parametrize(
    ("criterion", "target", "refused"),
    [("oracle", "P", True), ("oracle", "A", False), ("training", "P", False), ("loo", "P", False), ("loo", "A", True)],
)
def test_nothing_is_chosen_on_a_domain_that_is_for_evaluation_only(
    criterion: Criterion, target: str, refused: bool
) -> None:
    even = dict.fromkeys(DOMAINS, (0.5, 0.5))
    held_out = [*((d,) for d in DOMAINS), *itertools.combinations(DOMAINS, 2)]
    runs = [replace(checkpoint(t, even), eval_only=("P",)) for t in held_out if criterion == "loo" or len(t) == 1]
    if not refused:
        assert select(runs, target, criterion) is not None
        return
    with pytest.raises(RecordError, match="P is for evaluation only: its licence forbids to choose anything on it"):
        select(runs, target, criterion)


def test_leave_one_out_needs_every_pair() -> None:
    single = checkpoint(("A",), {"A": (0.7, 0), "C": (1, 1), "P": (1, 1)})
    with_c = checkpoint(("A", "C"), {"A": (0, 0), "C": (0.4, 0), "P": (1, 1)})
    with_p = checkpoint(("P", "A"), {"A": (0, 0), "C": (1, 1), "P": (0.6, 0)})
    choice = select([single, with_c, with_p], "A", "loo")
    assert choice is not None
    assert (choice.value, choice.test) == (pytest.approx(0.5), 0.7)
    assert select([single, with_c], "A", "loo") is None
    assert select([with_c, with_p], "A", "loo") is None


def test_a_pair_is_no_run_of_one_target() -> None:
    assert select([checkpoint(("A", "C"), {"A": (1, 1), "C": (1, 1), "P": (1, 1)})], "A", "training") is None


def test_a_value_that_is_not_finite_never_wins() -> None:
    runs = [
        checkpoint(("A",), {"A": (0.9, 0.9), "C": (1, math.nan), "P": (1, 1)}, step=0),
        checkpoint(("A",), {"A": (0.5, 0.5), "C": (1, 0.1), "P": (1, 0.1)}, step=300),
    ]
    choice = select(runs, "A", "training")
    assert choice is not None
    assert choice.step == 300


def test_one_draw_twice_is_an_error_that_names_both_runs() -> None:
    same = {"A": (0.9, 0.9), "C": (1, 1), "P": (1, 1)}
    runs = [checkpoint(("A",), same, run_id="one"), checkpoint(("A",), same, run_id="two")]
    with pytest.raises(RecordError, match="one and two"):
        select(runs, "A", "training")


@pytest.mark.parametrize("target", DOMAINS)
def test_a_whole_sweep_against_a_second_writing_of_the_rules(target: str) -> None:
    rng = np.random.default_rng(0)
    held_out = [*((d,) for d in DOMAINS), *itertools.combinations(DOMAINS, 2)]
    draws, steps = range(5), (0, 300, 600)
    # table[draw, targets, step, domain, in/out], coarse numbers so that ties occur
    table = rng.integers(0, 6, (5, len(held_out), 3, 3, 2)) / 5
    runs = [
        checkpoint(
            held_out[t],
            {d: tuple(table[h, t, s, i]) for i, d in enumerate(DOMAINS)},
            step=steps[s],
            draw=h,
            run_id=f"{h}-{t}",
        )
        for h, t, s in itertools.product(draws, range(len(held_out)), range(3))
    ]
    alone, here = held_out.index((target,)), DOMAINS.index(target)
    others = [i for i in range(3) if i != here]

    # training: value per (draw, step); numpy's argmax takes the first step, the flipped one the last draw
    values = table[:, alone, :, others, 1].mean(axis=0)
    best_step = values.argmax(axis=1)
    best = values[np.arange(5), best_step]
    draw = 4 - int(best[::-1].argmax())
    choice = select(runs, target, "training")
    assert choice is not None
    assert (choice.draw, choice.step) == (draw, steps[best_step[draw]])
    assert choice.test == table[draw, alone, best_step[draw], here, 0]

    # leave one out: the other domain's in-split of the run without both
    pairs = {i: next(n for n, t in enumerate(held_out) if set(t) == {target, DOMAINS[i]}) for i in others}
    values = sum(table[:, pairs[i], :, i, 0] for i in others) / 2
    best_step = values.argmax(axis=1)
    best = values[np.arange(5), best_step]
    draw = 4 - int(best[::-1].argmax())
    choice = select(runs, target, "loo")
    assert choice is not None
    assert (choice.draw, choice.step) == (draw, steps[best_step[draw]])
    assert choice.test == table[draw, alone, best_step[draw], here, 0]

    # oracle: the last step's out-split of the target
    last = table[:, alone, -1, here]
    draw = 4 - int(last[::-1, 1].argmax())
    choice = select(runs, target, "oracle")
    assert choice is not None
    assert (choice.draw, choice.test) == (draw, last[draw, 0])


SEARCH = """
base: {benchmark: colored_digits, backbone: {name: tiny, weights: "random:0"}, method: linear_probe, shots: 8}
seeds: [0, 1]
grid: {shift: [null, pairs]}
random: {num: 3, settings: {method.c: {log10_uniform: [-3, 3]}}}
"""


@pytest.mark.slow
def test_an_own_random_search_is_chosen_from_by_all_three_criteria(tmp_path: Path) -> None:
    """Leave-one-domain-out written out: of three domains, each draw has two runs without the target and another."""
    (tmp_path / "sweep.yaml").write_text(SEARCH)
    planned = sweep_file.plan(tmp_path / "sweep.yaml")
    outcome = sweep.execute(planned, tmp_path / "out")
    assert (outcome.done, outcome.failed) == (2 * 3 * (3 + 3), [])
    found, _ = read_records([tmp_path / "out"])
    runs = {
        (r.content["config"]["seed"], r.content["config"]["hparams_seed"], frozenset(r.content["shift"]["targets"])): r
        for r in found
    }
    assert len(runs) == len(found) == 36
    domains = ("+90%", "+80%", "-90%")

    def top1(trial: int, draw: int, targets: set[str], domain: str) -> float:
        [e] = [e for e in runs[trial, draw, frozenset(targets)].evaluations if (e.domain, e.split) == (domain, "in")]
        return float(e.metrics["top1"])

    made = protocol(found)
    assert [t.title for t in made.tables] == ["colored_digits", "Averages"] * 3
    [table] = [t for t in made.tables if (t.criterion, t.title) == ("loo", "colored_digits")]
    assert list(table.rows) == ["linear_probe, tiny"]
    for target in domains:
        for trial in (0, 1):
            others = [d for d in domains if d != target]
            values = [np.mean([top1(trial, draw, {target, v}, v) for v in others]) for draw in range(3)]
            best = max(range(3), key=lambda draw: (values[draw], draw))
            assert table.rows["linear_probe, tiny"][target].values[trial] == top1(trial, best, {target}, target)


def test_a_shift_of_two_is_one_of_a_benchmark_that_leaves_each_domain_out() -> None:
    with pytest.raises(ConfigError, match="or two of them as a\\+b"):
        identify(config.load(overrides=["benchmark=colored_digits", "shift=+90%+grey"]), Session())
