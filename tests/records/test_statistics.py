from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, sem

from clipdg.records.statistics import (
    ALEXNET_ERRORS,
    clopper_pearson,
    compare,
    corruption_accuracies,
    holm,
    mean_and_error,
    mean_corruption_accuracy,
    mean_corruption_error,
    paired_difference,
    student_interval,
    wilson_interval,
)


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


def test_clopper_pearson_of_all_right_has_a_closed_form() -> None:
    assert clopper_pearson(1.0, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)


def test_student_interval_of_three_seeds_by_hand() -> None:
    # values 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.302653
    low, high = student_interval([1.0, 2.0, 3.0]) or (0, 0)
    assert (low, high) == (pytest.approx(2 - 4.302653 / math.sqrt(3)), pytest.approx(2 + 4.302653 / math.sqrt(3)))
    assert student_interval([1.0]) is None


def test_mcnemar_by_hand() -> None:
    # 5 images that only the first gets right, 1 that only the second does: p = 2 * (C(6,0) + C(6,1)) / 2**6
    first = np.array([True] * 5 + [False] + [True] * 4)
    second = np.array([False] * 5 + [True] + [True] * 4)
    found = compare(first, second)
    assert (found.only_first, found.only_second, found.num_images) == (5, 1, 10)
    assert found.difference == pytest.approx(0.4)
    assert found.p == pytest.approx(2 * 7 / 64)


def test_two_classifiers_that_never_disagree_do_not_differ() -> None:
    same = np.array([True, False, True])
    found = compare(same, same)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1.0)


def test_the_bootstrap_interval_agrees_with_resampling_images_one_by_one() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random(400) < 0.8, rng.random(400) < 0.7
    picks = rng.integers(0, 400, (4000, 400))
    differences = (first[picks].mean(axis=1)) - second[picks].mean(axis=1)
    low, high = np.quantile(differences, [0.025, 0.975])
    found = compare(first, second, 4000)
    assert (found.low, found.high) == (pytest.approx(low, abs=0.006), pytest.approx(high, abs=0.006))


def test_a_comparison_does_not_depend_on_the_order_of_the_images() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random(100) < 0.8, rng.random(100) < 0.7
    order = rng.permutation(100)
    assert compare(first, second) == compare(first[order], second[order])


def test_exchanging_images_with_all_their_seeds_by_counting_every_exchange() -> None:
    # Three seeds, four images: balances 3, 1, -1, 2; of the 16 sign patterns count those as far from zero as 5.
    first = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]], dtype=bool)
    second = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=bool)
    balance = first.sum(axis=0) - second.sum(axis=0)
    assert balance.tolist() == [3, 1, -1, 2]
    sums = [sum(s * b for s, b in zip(signs, balance, strict=True)) for signs in itertools.product((1, -1), repeat=4)]
    expected = sum(abs(s) >= 5 for s in sums) / 16
    found = compare(first, second)
    assert found.p == pytest.approx(expected)
    assert (found.num_images, found.difference) == (4, pytest.approx(5 / 12))


def test_three_seeds_with_the_same_answers_are_no_more_images_than_one() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.random(200) < 0.8, rng.random(200) < 0.7
    one, three = compare(first, second), compare(np.stack([first] * 3), np.stack([second] * 3))
    assert (three.p, three.low, three.high) == pytest.approx((one.p, one.low, one.high))


def test_one_seed_is_mcnemars_exact_test() -> None:
    from scipy.stats import binomtest

    rng = np.random.default_rng(4)
    for num in (10, 500, 5000):
        first, second = rng.random(num) < 0.8, rng.random(num) < 0.78
        found = compare(first, second)
        assert found.p == pytest.approx(binomtest(found.only_first, found.only_first + found.only_second).pvalue)


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.03, 0.04 times 3, 2, 1: 0.03, 0.06, 0.04 -> not falling: 0.03, 0.06, 0.06
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_corruption_error_by_hand() -> None:
    # Errors of half of AlexNet's on fourteen corruptions and of 0 on one: 14/15 of a half.
    accuracies = {k: [1 - e / 2] * 5 for k, e in ALEXNET_ERRORS.items()}
    assert mean_corruption_error(accuracies) == pytest.approx(0.5)
    accuracies["fog"] = [1.0] * 5
    assert mean_corruption_error(accuracies) == pytest.approx(0.5 * 14 / 15)
    # Of severities only the mean counts: fog's error is 0.4 on one of five, 0.08 in the mean.
    accuracies["fog"] = [1.0, 1.0, 0.6, 1.0, 1.0]
    assert mean_corruption_error(accuracies) == pytest.approx((7 + 0.08 / 0.819324) / 15)


def test_alexnet_has_a_mean_corruption_error_of_one() -> None:
    assert mean_corruption_error({k: [1 - e] * 5 for k, e in ALEXNET_ERRORS.items()}) == pytest.approx(1.0)


def test_mean_corruption_accuracy_weighs_corruptions_and_severities_alike() -> None:
    accuracies = {k: [0.0] * 5 for k in ALEXNET_ERRORS}
    accuracies["snow"] = [0.0, 0.75, 0.0, 0.0, 0.0]
    assert mean_corruption_accuracy(accuracies) == pytest.approx(0.75 / 75)


def test_a_mean_over_corruptions_needs_all_of_them() -> None:
    accuracies = {k: [0.5] * 5 for k in ALEXNET_ERRORS}
    accuracies["frost"] = [0.5] * 4
    del accuracies["pixelate"]
    for mean in (mean_corruption_error, mean_corruption_accuracy):
        with pytest.raises(ValueError, match="not here: frost, pixelate"):
            mean(accuracies)


def test_corruptions_are_read_from_domains_with_all_their_severities() -> None:
    domains = {f"c/fog/{s}": s / 10 for s in range(5, 0, -1)} | {"c/snow/1": 0.5, "imagenet": 0.7, "c/odd/1": 0.1}
    assert corruption_accuracies(domains) == {"fog": (0.1, 0.2, 0.3, 0.4, 0.5)}
