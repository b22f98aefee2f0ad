"""What a few runs allow to be said: the mean over seeds with its standard error, and the interval of one accuracy.

Two spreads that are never mixed here. Over seeds: what changes when the same experiment is repeated (splits, shots,
initialisation, whatever follows the seed). Over images: what would change for one trained classifier on other images
of the same domain; Wilson, Probable Inference, JASA 1927.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, fmean, stdev


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard error, ``stdev(ddof=1) / sqrt(n)``; one value has no error, and None says so.

    DomainBed divides by n instead of n - 1 in the deviation; with three seeds its error is 0.82 of this one.
    """
    assert values, "a mean of nothing"
    if len(values) == 1:
        return values[0], None
    return fmean(values), stdev(values) / math.sqrt(len(values))


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
