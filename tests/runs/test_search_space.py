import numpy as np
import pytest

from clipdg.core.errors import ConfigError
from clipdg.core.seeding import seed_hash
from clipdg.runs import search_space

# DomainBed's hparams_registry.py for ERM on image sets (not DomainNet), random half
ERM = {
    "lr": {"log10_uniform": [-5, -3.5]},
    "batch_size": {"int_pow2": [3, 5.5]},
    "resnet_dropout": {"choice": [0.0, 0.1, 0.5]},
    "weight_decay": {"log10_uniform": [-6, -2]},
}


def test_the_draws_are_domainbeds() -> None:
    seed = seed_hash(2, 0)  # hparams_seed 2 of trial 0
    drawn = {name: search_space.draw(how, seed, name) for name, how in ERM.items()}
    assert drawn["lr"] == pytest.approx(5.6841898471e-05, rel=1e-9)
    assert drawn["batch_size"] == 25
    assert drawn["resnet_dropout"] == 0.5
    assert drawn["weight_decay"] == pytest.approx(5.1002235340e-03, rel=1e-9)


def test_a_choice_is_numpys_and_keeps_its_type() -> None:
    values = ["sgd", 0.1, None, True]
    for seed in range(20):
        stream = np.random.RandomState(seed_hash(seed, "x"))
        assert search_space.draw({"choice": values}, seed, "x") is values[stream.choice(np.arange(4))]


def test_a_name_has_its_own_stream() -> None:
    lr = ERM["lr"]
    assert search_space.draw(lr, 7, "lr") == search_space.draw(lr, 7, "lr")
    assert search_space.draw(lr, 7, "lr") != search_space.draw(lr, 7, "weight_decay")


def test_both_ends_of_whole_numbers_are_drawn() -> None:
    assert {search_space.draw({"int_uniform": [1, 3]}, seed, "n") for seed in range(50)} == {1, 2, 3}


@pytest.mark.parametrize(
    ("distribution", "sentence"),
    [
        (3, "give one distribution"),
        ({"uniform": [0, 1], "choice": [1]}, "give one distribution"),
        ({"log_uniform": [0, 1]}, "Did you mean 'log10_uniform'"),
        ({"choice": []}, "give a list"),
        ({"uniform": [1, 0]}, r"\[lowest, highest\]"),
        ({"uniform": [0, float("inf")]}, r"\[lowest, highest\]"),
        ({"uniform": [False, True]}, r"\[lowest, highest\]"),
        ({"int_uniform": [0.5, 2]}, "whole numbers"),
    ],
)
def test_what_is_no_distribution_is_refused(distribution: object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        search_space.check("method.lr", distribution)
