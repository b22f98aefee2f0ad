"""vlcs: five classes in four collections of photos.

Fang, Xu & Rockmore, Unbiased Metric Learning: On the Utilization of Multiple Datasets and Web Images for Softening
Bias, ICCV 2013. The domains are Caltech101, LabelMe, SUN09 and VOC2007. Their counts are those of DomainBed's copy. The
classes' counts are from memory; their sums are the domains'.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipdg.benchmarks import _domains
from clipdg.benchmarks._domains import Dassl, DomainSet, Member
from clipdg.core.benchmark import Benchmark
from clipdg.core.download_source import Source
from clipdg.core.plugins import BenchmarkSource

VLCS = DomainSet(
    name="vlcs",
    folders=("VLCS", "vlcs"),
    members=(
        Member("caltech101", ("C", "Caltech"), "photo", 1415, (237, 123, 118, 67, 870)),
        Member("labelme", ("L",), "photo", 2656, (80, 1209, 89, 43, 1235)),
        Member("sun09", ("S", "SUN"), "photo", 3282, (21, 933, 1036, 31, 1261)),
        Member("voc2007", ("V", "VOC", "PASCAL"), "photo", 3376, (330, 699, 428, 420, 1499)),
    ),
    classes={name: name for name in ("bird", "car", "chair", "dog", "person")},
    source=Source(
        "VLCS",
        terms="VLCS joins four data sets, each under terms of its own.",
        steps="DomainBed's download.py (facebookresearch/DomainBed, domainbed/scripts) fetches VLCS.tar.gz; "
        "benchmark.root=DIR with images at DIR/Caltech101/bird/x.jpg, beside LabelMe, SUN09 and VOC2007.",
    ),
    citation=f"Fang, Xu & Rockmore, Unbiased Metric Learning, ICCV 2013; {_domains.DOMAINBED}",
    licence="mixed: those of Caltech101, LabelMe, SUN09 and PASCAL VOC 2007",
    dassl=Dassl(
        parts={"train": "train", "val": "crossval", "test": "test"},
        note=" A target counts its test folder only.",
    ),
    notes=("All four domains are photos: a domain-aware prompt has the same noun in each.",),
)


@dataclass(frozen=True)
class Config:
    """``protocol``: DomainBed's seeded holdout, or Dassl's folders train, crossval and test."""

    protocol: _domains.Protocol = "domainbed"


def build(config: Config, root: str | None = None) -> Benchmark:
    return _domains.build(VLCS, root, config.protocol)


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=(VLCS.source,))
