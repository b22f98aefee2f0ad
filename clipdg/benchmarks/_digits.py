"""scikit-learn's 1,797 handwritten digits, for benchmarks in the manner of DomainBed's MNIST variants."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipdg.errors import ConfigError

SIZE = 16
CITATION = (
    "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
    "10.24432/C50P49; Gulrajani & Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021"
)
LICENCE = "CC BY 4.0"


def environments(
    name: str, root: str | None, seed: int, num: int
) -> list[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]]:
    """Per environment: which digits of the 1,797 (n,), their images (n, 16, 16) and the digits they show (n,).

    As in DomainBed, one permutation of all and every ``num``-th of it from the i-th on; its generator is seeded here,
    where DomainBed takes the global one. The 8x8 images are doubled bilinearly.
    """
    from sklearn.datasets import load_digits

    if root is not None:
        raise ConfigError(f"{name} is made from scikit-learn's digits, not read from {root}; leave root out")
    digits = load_digits()
    at = ((np.arange(SIZE) + 0.5) * 8 / SIZE - 0.5).clip(0, 7)  # each new pixel's centre among the old ones
    weights = (1 - np.abs(at[:, None] - np.arange(8))).clip(0)  # (16, 8)
    images = np.rint(weights @ (digits.images / 16) @ weights.T * 255).astype(np.uint8)
    order = np.random.default_rng(seed).permutation(len(images))
    return [(part, images[part], digits.target[part].astype(np.int64)) for part in (order[i::num] for i in range(num))]
