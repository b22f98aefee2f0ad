"""rotated_mnist: DomainBed's RotatedMNIST; a domain is an angle.

``_digits`` describes it. A backbone sees DomainBed's one channel of 28x28 pixels three times, enlarged and normalised
by its own preprocessing. ``seed`` and ``stream`` are those of colored_mnist, but only the order of the digits is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipdg.benchmarks import _digits, _mnist
from clipdg.core.benchmark import Benchmark, leave_one_out
from clipdg.core.plugins import BenchmarkSource

NOTE = (
    "A backbone sees 28x28 images with three equal channels, white on black, enlarged by its own preprocessing; "
    "DomainBed's network sees one channel that is not normalised. Not comparable to published RotatedMNIST."
)


@dataclass(frozen=True)
class Config:
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    stream: Literal["own", "domainbed"] = "own"


def build(config: Config, root: str | None = None) -> Benchmark:
    digits, provenance, remarks = _mnist.read(root)
    domains = _digits.rotated(digits, _digits.STREAMS[config.stream](config.seed))
    return Benchmark(
        name="rotated_mnist",
        classes=_digits.DIGIT_CLASSES,
        domains=domains,
        shifts=leave_one_out(tuple(domains)),
        templates=_digits.DIGIT_TEMPLATES,
        notes=(NOTE, *_digits.DIGIT_NOTES, *remarks),
        citation=f"{_mnist.CITATION}; {_digits.ROTATED_CITATION}; {_digits.DOMAINBED}",
        licence=_mnist.LICENCE,
        provenance=provenance,
    )


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=(_mnist.SOURCE,))
