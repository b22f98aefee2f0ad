"""rotated_digits: RotatedMNIST with scikit-learn's digits; no download.

A domain is an angle. Here are 1,797 digits of 8x8 pixels, doubled, where ``rotated_mnist`` has 70,000 of 28x28. These
digits fill their frame, where MNIST's have a margin, so that turning them cuts off up to 3 % of the ink.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clipdg.benchmarks import _digits
from clipdg.core.benchmark import Benchmark, leave_one_out
from clipdg.core.plugins import BenchmarkSource

NOTES = (
    "Made from scikit-learn's 1,797 digits of 8x8 pixels, not from MNIST: not comparable to published RotatedMNIST.",
    "A backbone sees 16x16 images with three equal channels, white on black, enlarged by its own preprocessing; "
    "DomainBed's network sees one channel.",
)


@dataclass(frozen=True)
class Config:
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})


def build(config: Config, root: str | None = None) -> Benchmark:
    domains = _digits.rotated(_digits.sklearn_digits("rotated_digits", root), _digits.OwnDraws(config.seed))
    return Benchmark(
        name="rotated_digits",
        classes=_digits.DIGIT_CLASSES,
        domains=domains,
        shifts=leave_one_out(tuple(domains)),
        templates=_digits.DIGIT_TEMPLATES,
        notes=NOTES + _digits.DIGIT_NOTES,
        citation=f"{_digits.SKLEARN_CITATION}; {_digits.ROTATED_CITATION}",
        licence=_digits.SKLEARN_LICENCE,
    )


BENCHMARK = BenchmarkSource(config=Config, build=build)
