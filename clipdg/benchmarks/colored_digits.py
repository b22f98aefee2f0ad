"""colored_digits: ColoredMNIST with scikit-learn's digits, a correlation that turns round in the test environment.

Arjovsky et al., Invariant Risk Minimization, 2019, arXiv:1907.02893, as DomainBed makes it (datasets.py): the label
says whether the digit is below five and is wrong for one image in four; the colour agrees with the label for 90 %, 80 %
and 10 % of the images of the three environments. What reads the digit is right for at most 75 %; what reads the colour
does better where it was trained, and fails where it was not.

Differences: 1,797 digits of 8x8 pixels, doubled, in the place of 70,000 of 28x28; a generator seeded by the settings,
of its own for each environment, in the place of the global one; RGB with nothing in the third channel in the place of
two channels, so that any backbone can see it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clipdg.benchmarks import _digits
from clipdg.core import Benchmark, Domain, leave_one_out
from clipdg.rows import ArrayRows

COLOUR_NOISE = {"+90%": 0.1, "+80%": 0.2, "-90%": 0.9}  # how often the colour is not the label's
LABEL_NOISE = 0.25
CLASSES = ("digit 5-9", "digit 0-4")  # red and green, if the colour agrees
NOTES = (
    "Made from scikit-learn's 1,797 digits of 8x8 pixels, not from MNIST: not comparable to published ColoredMNIST.",
    "One label in four is wrong on purpose: reading the digit is right for at most 75 % on average.",
    "A backbone sees 16x16 RGB images, a red or green digit on black, enlarged by its own preprocessing; DomainBed's "
    "network sees two channels that are not normalised.",
    "Class names and prompts are ours; no paper defines them.",
)


@dataclass(frozen=True)
class Config:
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})


def build(config: Config, root: str | None = None) -> Benchmark:
    parts = _digits.environments("colored_digits", root, config.seed, len(COLOUR_NOISE))
    domains = {}
    for number, ((name, noise), (which, images, digits)) in enumerate(zip(COLOUR_NOISE.items(), parts, strict=True)):
        rng = np.random.default_rng((config.seed, number))
        labels = (digits < 5) ^ (rng.random(len(digits)) < LABEL_NOISE)
        colours = labels ^ (rng.random(len(digits)) < noise)
        coloured = np.zeros((*images.shape, 3), np.uint8)
        coloured[np.arange(len(images)), :, :, colours.astype(int)] = images
        domains[name] = Domain(name, ArrayRows(coloured, labels.astype(np.int64), [f"digit/{i:04d}" for i in which]))
    return Benchmark(
        name="colored_digits",
        classes=CLASSES,
        domains=domains,
        shifts=leave_one_out(tuple(domains)),
        templates=("a photo of a {}.",),
        notes=NOTES,
        citation=f"{_digits.CITATION}; Arjovsky et al., Invariant Risk Minimization, 2019",
        licence=_digits.LICENCE,
    )
