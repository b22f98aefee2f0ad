"""Colour and rotate digits of any kind as DomainBed's datasets.py does with MNIST's.

Colours: Arjovsky et al., Invariant Risk Minimization, 2019, arXiv:1907.02893. The label says whether the digit is below
five, and is wrong for one image in four. The colour agrees with the label for 90 %, 80 % and 10 % of the images of the
three environments. A classifier that reads the digit is right for at most 75 %. One that reads the colour does better
where it was trained, and fails where the correlation turns round.

Rotations: Ghifary et al., Domain Generalization for Object Recognition with Multi-task Autoencoders, ICCV 2015. Six
environments are turned by 0, 15, ..., 75 degrees counter-clockwise, bilinearly, and filled with 0.

Both permute all digits once. Environment i of n has every n-th digit of that order from the i-th on.
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
COLOUR_CLASSES = ("digit 5-9", "digit 0-4")  # they are red and green where the colour agrees
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
    """Images (N, S, S) uint8, white on black, and the digits that they show as labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


class Draws(Protocol):
    """A source of chance."""

    def permutation(self, num: int) -> NDArray[np.int64]:
        """Draw an order of ``num`` things."""

    def flips(self, environment: int, num: int, probability: float) -> NDArray[np.bool_]:
        """Draw whether each of ``num`` things is turned round. A second call for an environment draws anew."""


class OwnDraws:
    """Chance from numpy's generators, which nothing else uses: one for the order and one for each environment."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.environments: dict[int, np.random.Generator] = {}

    def permutation(self, num: int) -> NDArray[np.int64]:
        return np.random.default_rng(self.seed).permutation(num)

    def flips(self, environment: int, num: int, probability: float) -> NDArray[np.bool_]:
        rng = self.environments.setdefault(environment, np.random.default_rng((self.seed, environment)))
        return rng.random(num) < probability


class DomainBedDraws:
    """Chance from torch's stream after ``torch.manual_seed(seed)``, which DomainBed has when it makes its data."""

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
    """Divide the images among ``num`` environments: the indices of each."""
    order = draws.permutation(num_images)
    return [order[i::num] for i in range(num)]


def colored(digits: Digits, draws: Draws, view: View = "red_green") -> dict[str, Domain]:
    """Make the environments "+90%", "+80%" and "-90%" of RGB images, labelled 1 for a digit below five.

    With "red_green", DomainBed's two channels are red and green, and blue is empty. With "grey", all three channels
    show the digit, so that the colour, which is the shortcut, cannot be seen.
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
    """Make the environments "0" to "75" degrees, of images with three equal channels."""
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


# ---- scikit-learn's digits ----

SKLEARN_SIZE = 16
SKLEARN_CITATION = (
    "Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, "
    f"10.24432/C50P49; {DOMAINBED}"
)
SKLEARN_LICENCE = "CC BY 4.0"


def sklearn_digits(name: str, root: str | None) -> Digits:
    """scikit-learn's 1,797 handwritten digits, whose 8x8 pixels are doubled bilinearly."""
    from sklearn.datasets import load_digits

    if root is not None:
        raise ConfigError(f"{name} is made from scikit-learn's digits, not read from {root}; leave root out")
    digits = load_digits()
    at = ((np.arange(SKLEARN_SIZE) + 0.5) * 8 / SKLEARN_SIZE - 0.5).clip(0, 7)  # new pixels' centres among the old
    weights = (1 - np.abs(at[:, None] - np.arange(8))).clip(0)  # (16, 8)
    images = np.rint(weights @ (digits.images / 16) @ weights.T * 255).astype(np.uint8)
    return Digits(images, digits.target.astype(np.int64))
