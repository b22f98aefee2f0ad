"""What a few runs allow to be said: the mean over seeds with its standard error, and the interval of one accuracy.

Two spreads that are never mixed here. Over seeds: what changes when the same experiment is repeated (splits, shots,
initialisation, whatever follows the seed). Over images: what would change for one trained classifier on other images
of the same domain; Wilson, Probable Inference, JASA 1927; Clopper & Pearson, Biometrika 1934.

Two classifiers on the same images are compared image by image: McNemar's exact test (Psychometrika 1947) asks whether
they differ at all, the paired bootstrap by how much. Where many are compared, Holm's correction (Scandinavian Journal
of Statistics 1979) keeps the chance of one false claim among all of them at its level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean

import numpy as np


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error, ``stdev(ddof=1) / sqrt(n)``; one value has no error, and None says so.

    DomainBed divides by n instead of n - 1 in the deviation; with three seeds its error is 0.82 of this one.
    """
    assert values, "a mean of nothing"
    if len(values) == 1:
        return values[0], None
    mean, n = fmean(values), len(values)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float]
) -> tuple[float, float | None, tuple[str, ...]] | None:
    """Mean and standard error of ``first - second`` over the seeds that both have, and these seeds; None if none."""
    seeds = tuple(s for s in first if s in second)
    if not seeds:
        return None
    mean, error = mean_and_error([first[s] - second[s] for s in seeds])
    return mean, error, seeds


def wilson_interval(fraction: float, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for an accuracy measured on ``num_images`` images; it stays within [0, 1]."""
    assert 0 <= fraction <= 1
    assert num_images > 0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = fraction + z**2 / (2 * num_images)
    half = z * math.sqrt(fraction * (1 - fraction) / num_images + z**2 / (4 * num_images**2))
    scale = 1 + z**2 / num_images
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def clopper_pearson(fraction: float, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of an accuracy, never too short; the ImageNet testbed draws it with 99.5 %."""
    from scipy.stats import binomtest

    found = binomtest(round(fraction * num_images), num_images).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def student_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval of the mean over seeds; None for one value. With three seeds it is 2.5 times as wide as
    1.96 standard errors would be.
    """
    mean, error = mean_and_error(values)
    if error is None:
        return None
    half = _student(0.5 + confidence / 2, len(values) - 1) * error
    return mean - half, mean + half


@lru_cache
def _student(quantile: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(quantile, degrees))


@dataclass(frozen=True)
class Paired:
    """Two classifiers on the same images: ``first - second``."""

    num_images: int
    difference: float  # of accuracies
    low: float  # 95 % percentile bootstrap over images
    high: float
    only_first: int  # images (of each seed) that only the first classifier gets right
    only_second: int
    p: float  # two-sided: McNemar, exact


def compare(first: np.ndarray, second: np.ndarray, num_resamples: int = 2000, seed: int = 0) -> Paired:
    """``first`` and ``second``: (N,) bool, right or wrong on the same N images in the same order; (S, N) of S seeds.

    Resampling images moves the difference by the images on which the two disagree and by nothing else, so that a
    resample is the counts of a multinomial draw: exact, and independent of the order of the images.

    Over several seeds an image is drawn, and its classifiers exchanged, with all its seeds at once: S answers about one
    image are not S images. The exact test is then McNemar's with an image's balance of S answers in the place of one.
    It speaks of images, for these trained classifiers; of other seeds it says nothing.
    """
    assert first.shape == second.shape
    assert first.size, "a comparison on no image"
    first, second = np.atleast_2d(first), np.atleast_2d(second)  # (S, N)
    seeds, num = first.shape
    balance = first.sum(axis=0) - second.sum(axis=0)  # (N,) -S..S
    values, counts = np.unique(balance, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(num, counts / num, num_resamples)
    low, high = np.quantile(drawn @ values / (seeds * num), [0.025, 0.975]).tolist()
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    difference = (only_first - only_second) / (seeds * num)
    return Paired(num, difference, low, high, only_first, only_second, _exchanged(balance))


def _exchanged(balance: np.ndarray) -> float:
    """The chance of a sum as far from zero as that of ``balance``, if each image's sign were a coin's; exact."""
    from scipy.stats import binom

    chances = np.ones(1)  # of the sums from -T to T
    for size in range(1, int(np.abs(balance).max()) + 1):
        num = int((np.abs(balance) == size).sum())
        one = np.zeros(2 * num * size + 1)
        one[:: 2 * size] = binom.pmf(np.arange(num + 1), num, 0.5)
        chances = one if len(chances) == 1 else chances if num == 0 else _convolve(chances, one)
    sums = np.arange(len(chances)) - len(chances) // 2
    as_far = np.abs(sums) >= abs(int(balance.sum()))
    return float(np.clip(chances[as_far].sum(), 0.0, 1.0))


def _convolve(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By Fourier transforms: a hundred thousand sums take milliseconds, and are off by 1e-16 of the largest."""
    size = len(first) + len(second) - 1
    return np.asarray(np.fft.irfft(np.fft.rfft(first, size) * np.fft.rfft(second, size), size))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: below a level exactly if the step-down test rejects at it."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


# Of ImageNet-C, by corruption: AlexNet's error, the mean of its five severities (hendrycks/robustness, ImageNet-C).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}


def corruption_accuracies(domains: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """Top-1 by corruption, its five severities in order, from accuracies by domain, ``"c/gaussian_noise/3"``.

    Corruptions of which a severity is missing are not in it.
    """
    found = {}
    for kind in ALEXNET_ERRORS:
        names = [f"c/{kind}/{severity}" for severity in range(1, 6)]
        if all(name in domains for name in names):
            found[kind] = tuple(domains[name] for name in names)
    return found


def mean_corruption_accuracy(accuracies: Mapping[str, Sequence[float]]) -> float:
    """Mean top-1 over the 15 corruptions and their severities, as the ImageNet testbed reports ImageNet-C.

    Raises ValueError if a corruption is missing.
    """
    _check_corruptions(accuracies)
    return fmean(fmean(accuracies[kind]) for kind in ALEXNET_ERRORS)


def mean_corruption_error(accuracies: Mapping[str, Sequence[float]]) -> float:
    """mCE (Hendrycks & Dietterich 2019): the mean over 15 corruptions of the error divided by AlexNet's; 1 is AlexNet.

    An error is the mean over five severities. Raises ValueError if a corruption is missing.
    """
    _check_corruptions(accuracies)
    return fmean((1 - fmean(accuracies[kind])) / alexnet for kind, alexnet in ALEXNET_ERRORS.items())


def _check_corruptions(accuracies: Mapping[str, Sequence[float]]) -> None:
    missing = [kind for kind in ALEXNET_ERRORS if len(accuracies.get(kind, ())) != 5]
    if missing:
        raise ValueError(f"a mean over corruptions needs all 15 with 5 severities each; not here: {', '.join(missing)}")
