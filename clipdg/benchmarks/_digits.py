"""Coloured and rotated digits, as DomainBed makes them of MNIST (datasets.py), of whatever digits there are.

Colours: Arjovsky et al., Invariant Risk Minimization, 2019, arXiv:1907.02893. The label says whether the digit is below
five and is wrong for one image in four; the colour agrees with the label for 90 %, 80 % and 10 % of the images of the
three environments. What reads the digit is right for at most 75 %; what reads the colour does better where it was
trained, and fails where it was not.

Rotations: Ghifary et al., Domain Generalization for Object Recognition with Multi-task Autoencoders, ICCV 2015. Six
environments turned by 0, 15, ..., 75 degrees counter-clockwise, bilinearly, filled with 0.

In both, one permutation of all digits, and every n-th of it from the i-th on is environment i.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipdg.core.benchmark import Domain
from clipdg.core.errors import ConfigError
from clipdg.data.rows import ArrayRows

COLOUR_NOISE = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}  # how often the colour is not the label's
LABEL_NOISE = 0.25
COLOUR_CLASSES = ("digit 5-9", "digit 0-4")  # red and green, if the colour agrees
COLOUR_TEMPLATES = ("a photo of a {}.",)
COLOUR_CITATION = "Arjovsky et al., Invariant Risk Minimization, 2019"
COLOUR_NOTES = (
    "One label in four is wrong on purpose: reading the digit is right for at most 75 % on average.",
    "Class names and prompts are ours; no paper defines them.",
)
ANGLES = (0, 15, 30, 45, 60, 75)
DIGIT_CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_TEMPLATES = ("a photo of the number {}.",)
ROTATED_CITATION = "Ghifary et al., Multi-task Autoencoders, ICCV 2015"
DIGIT_NOTES = ("The prompt is CLIP's for MNIST without its punctuation, the numbers spelt out.",)
DOMAINBED = "Gulrajani & Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021"

View = Literal["red_green", "grey"]


@dataclass(frozen=True)
class Digits:
    """``images``: (N, S, S) uint8, white on black. ``labels``: (N,) int64, the digits they show."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Draws(Protocol):
    """Where chance comes from."""

    def permutation(self, num: int) -> NDArray[np.int64]: ...

    def flips(self, environment: int, num: int, probability: float) -> NDArray[np.bool_]:
        """Whether each of ``num`` things is turned round; a second call for an environment draws anew."""


class OwnDraws:
    """Generators of numpy's that belong to nobody else: one for the order and one for each environment."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.environments: dict[int, np.random.Generator] = {}

    def permutation(self, num: int) -> NDArray[np.int64]:
        return np.random.default_rng(self.seed).permutation(num)

    def flips(self, environment: int, num: int, probability: float) -> NDArray[np.bool_]:
        rng = self.environments.setdefault(environment, np.random.default_rng((self.seed, environment)))
        return rng.random(num) < probability


class DomainBedDraws:
    """torch's stream after ``torch.manual_seed(seed)``, which is DomainBed's global one when it makes its data."""

    def __init__(self, seed: int) -> None:
        import torch

        self.generator = torch.Generator().manual_seed(seed)

    def permutation(self, num: int) -> NDArray[np.int64]:
        import torch

        return torch.randperm(num, generator=self.generator).numpy()

    def flips(self, environment: int, num: int, probability: float) -> NDArray[np.bool_]:
        import torch

        return (torch.rand(num, generator=self.generator) < probability).numpy()


STREAMS: dict[str, Callable[[int], Draws]] = {"own": OwnDraws, "domainbed": DomainBedDraws}


def environments(num_images: int, num: int, draws: Draws) -> list[NDArray[np.int64]]:
    """Which images each of ``num`` environments has."""
    order = draws.permutation(num_images)
    return [order[i::num] for i in range(num)]


def colored(digits: Digits, draws: Draws, view: View = "red_green") -> dict[str, Domain]:
    """Environments "+90%", "+80%" and "-90%" with labels 1 for a digit below five, as RGB.

    ``red_green``: DomainBed's two channels are red and green, and blue is empty. ``grey``: all three channels show the
    digit, so that the colour, which is the shortcut, cannot be seen.
    """
    parts = environments(len(digits.images), len(COLOUR_NOISE), draws)
    domains = {}
    for number, ((name, noise), which) in enumerate(zip(COLOUR_NOISE.items(), parts, strict=True)):
        images = digits.images[which]
        labels = (digits.labels[which] < 5) ^ draws.flips(number, len(which), LABEL_NOISE)
        colours = labels ^ draws.flips(number, len(which), noise)
        if view == "grey":
            seen = images[..., None].repeat(3, axis=3)
        else:
            seen = np.zeros((*images.shape, 3), np.uint8)
            seen[np.arange(len(images)), :, :, colours.astype(int)] = images
        domains[name] = Domain(name, ArrayRows(seen, labels.astype(np.int64), _ids(which, len(digits.images))))
    return domains


def rotated(digits: Digits, draws: Draws) -> dict[str, Domain]:
    """Environments "0" to "75" degrees, with three equal channels."""
    parts = environments(len(digits.images), len(ANGLES), draws)
    domains = {}
    for angle, which in zip(ANGLES, parts, strict=True):
        turned = np.empty_like(digits.images[which])
        for place, image in enumerate(digits.images[which]):
            turned[place] = np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, fillcolor=0))
        pixels = turned[..., None].repeat(3, axis=3)
        domains[f"{angle}"] = Domain(
            f"{angle}", ArrayRows(pixels, digits.labels[which], _ids(which, len(digits.images)))
        )
    return domains


def _ids(which: NDArray[np.int64], num: int) -> list[str]:
    width = len(str(num - 1))
    return [f"digit/{i:0{width}d}" for i in which.tolist()]


# scikit-learn's digits

SKLEARN_SIZE = 16
SKLEARN_CITATION = (
    "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
    f"10.24432/C50P49; {DOMAINBED}"
)
SKLEARN_LICENCE = "CC BY 4.0"


def sklearn_digits(name: str, root: str | None) -> Digits:
    """scikit-learn's 1,797 handwritten digits, their 8x8 pixels doubled bilinearly."""
    from sklearn.datasets import load_digits

    if root is not None:
        raise ConfigError(f"{name} is made from scikit-learn's digits, not read from {root}; leave root out")
    digits = load_digits()
    at = ((np.arange(SKLEARN_SIZE) + 0.5) * 8 / SKLEARN_SIZE - 0.5).clip(0, 7)  # new pixels' centres among the old
    weights = (1 - np.abs(at[:, None] - np.arange(8))).clip(0)  # (16, 8)
    images = np.rint(weights @ (digits.images / 16) @ weights.T * 255).astype(np.uint8)
    return Digits(images, digits.target.astype(np.int64))
