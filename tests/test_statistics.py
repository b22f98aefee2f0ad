from __future__ import annotations

import math

import pytest
from scipy.stats import binomtest, sem

from clipdg.statistics import mean_and_error, paired_difference, wilson_interval


def test_mean_and_error_by_hand() -> None:
    # values 1, 2, 3: mean 2, sample standard deviation 1, standard error 1/sqrt(3)
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / math.sqrt(3)))


def test_mean_and_error_agrees_with_scipy() -> None:
    values = [0.81, 0.62, 0.785, 0.664, 0.7]
    assert mean_and_error(values)[1] == pytest.approx(sem(values))


def test_one_value_has_no_error() -> None:
    assert mean_and_error([0.5]) == (0.5, None)


def test_paired_difference_uses_the_seeds_that_both_have() -> None:
    # shared seeds 0 and 2: differences 1 and 3, mean 2, standard error sqrt(2)/sqrt(2) = 1
    difference = paired_difference({"0": 5.0, "1": 100.0, "2": 8.0}, {"2": 5.0, "0": 4.0, "3": 7.0})
    assert difference == (2.0, pytest.approx(1.0), ("0", "2"))
    assert paired_difference({"0": 1.0}, {"1": 1.0}) is None


@pytest.mark.parametrize(("correct", "num"), [(0, 10), (10, 10), (1, 3), (41, 100), (6512, 7500)])
def test_wilson_interval_agrees_with_scipy(correct: int, num: int) -> None:
    expected = binomtest(correct, num).proportion_ci(0.95, "wilson")
    assert wilson_interval(correct / num, num) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_is_symmetric() -> None:
    low, high = wilson_interval(0.2, 50)
    assert wilson_interval(0.8, 50) == pytest.approx((1 - high, 1 - low))
