"""colored_mnist: DomainBed's ColoredMNIST; the colour misleads at test.

The correlation of colour and label turns round in the test environment; ``_digits`` describes it. No paper defines
how a backbone sees it. Here DomainBed's two channels of 28x28 pixels become red and green with an empty blue, and the
backbone's own preprocessing enlarges and normalises them (DomainBed's network takes them as they are). ``view=grey``
shows the digit without its colour, as a control.

``stream=own`` draws from numpy's generators, seeded by ``seed`` alone, so that every run of a study sees one data set.
``stream=domainbed`` draws from torch's stream after ``torch.manual_seed(seed)``. If ``seed`` is DomainBed's ``--seed``,
then the digits, labels and colours are those of that run of DomainBed, bit for bit. There, two runs of a sweep have two
seeds and so two data sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from clipdg.benchmarks import _digits, _mnist
from clipdg.core.benchmark import Benchmark, leave_one_out
from clipdg.core.plugins import BenchmarkSource

NOTE = (
    "A backbone sees 28x28 RGB images, {seen}, enlarged by its own preprocessing; DomainBed's network sees two "
    "channels that are not normalised. Not comparable to published ColoredMNIST."
)
SEEN = {"red_green": "a red or green digit on black", "grey": "a white digit on black, its colour hidden"}


@dataclass(frozen=True)
class Config:
    seed: int = field(default=0, metadata={"min": 0, "max": 2**31 - 1})
    stream: Literal["own", "domainbed"] = "own"
    view: Literal["red_green", "grey"] = "red_green"


def build(config: Config, root: str | None = None) -> Benchmark:
    digits, provenance, remarks = _mnist.read(root)
    domains = _digits.colored(digits, _digits.STREAMS[config.stream](config.seed), config.view)
    return Benchmark(
        name="colored_mnist",
        classes=_digits.COLOUR_CLASSES,
        domains=domains,
        shifts=leave_one_out(tuple(domains)),
        templates=_digits.COLOUR_TEMPLATES,
        notes=(NOTE.format(seen=SEEN[config.view]), *_digits.COLOUR_NOTES, *remarks),
        citation=f"{_mnist.CITATION}; {_digits.COLOUR_CITATION}; {_digits.DOMAINBED}",
        licence=_mnist.LICENCE,
        provenance=provenance,
    )


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=(_mnist.SOURCE,))
