"""colored_digits: ColoredMNIST with scikit-learn's digits; no download.

The correlation of colour and label turns round in the test environment. Here are 1,797 digits of 8x8 pixels, doubled,
where ``colored_mnist`` has 70,000 of 28x28. The differences from DomainBed are those of colored_mnist.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clipdg.benchmarks import _digits
from clipdg.core.benchmark import Benchmark, leave_one_out
from clipdg.core.plugins import BenchmarkSource

NOTES = (
    "Made from scikit-learn's 1,797 digits of 8x8 pixels, not from MNIST: not comparable to published ColoredMNIST.",
    "A backbone sees 16x16 RGB images, a red or green digit on black, enlarged by its own preprocessing; DomainBed's "
    "network sees two channels that are not normalised.",
)


@dataclass(frozen=True)
class Config:
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})


def build(config: Config, root: str | None = None) -> Benchmark:
    domains = _digits.colored(_digits.sklearn_digits("colored_digits", root), _digits.OwnDraws(config.seed))
    return Benchmark(
        name="colored_digits",
        classes=_digits.COLOUR_CLASSES,
        domains=domains,
        shifts=leave_one_out(tuple(domains)),
        templates=_digits.COLOUR_TEMPLATES,
        notes=(NOTES[0], _digits.COLOUR_NOTES[0], NOTES[1], _digits.COLOUR_NOTES[1]),
        citation=f"{_digits.SKLEARN_CITATION}; {_digits.COLOUR_CITATION}",
        licence=_digits.SKLEARN_LICENCE,
    )


BENCHMARK = BenchmarkSource(config=Config, build=build)
