"""pacs: photos, paintings, cartoons and sketches of seven classes.

Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017, arXiv:1710.03077. The domains' counts are
Dassl's. The classes' counts are from memory; their sums are the domains'.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipdg.benchmarks import _domains
from clipdg.benchmarks._domains import Dassl, DomainSet, Member
from clipdg.core.benchmark import Benchmark
from clipdg.core.download_source import Hub, Source
from clipdg.core.plugins import BenchmarkSource

PACS = DomainSet(
    name="pacs",
    folders=("PACS", "pacs"),
    members=(
        Member("art_painting", ("A", "art"), "painting", 2048, (379, 255, 285, 184, 201, 295, 449)),
        Member("cartoon", ("C",), "cartoon", 2344, (389, 457, 346, 135, 324, 288, 405)),
        Member("photo", ("P",), "photo", 1670, (189, 202, 182, 186, 199, 280, 432)),
        Member("sketch", ("S",), "sketch", 3929, (772, 740, 753, 608, 816, 80, 160)),
    ),
    classes={name: name for name in ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")},
    source=Source(
        "PACS",
        hubs=(
            Hub(
                "flwrlabs/pacs", "394113073258ead631f617d2e13bb377c0715c4b", split="train",
            ),
        ),
        terms="PACS states no licence; it is used in research.",
        steps="A local copy: DomainBed's download.py fetches PACS.zip; benchmark.root=DIR with images at "
        "DIR/art_painting/dog/pic_001.jpg.",
    ),
    citation=f"Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017; {_domains.DOMAINBED}",
    licence="unknown",
    dassl=Dassl(
        parts={"train": "train", "val": "crossval"},
        file="splits/{domain}_{part}_kfold.txt",
        first=1,
        dropped=("sketch/dog/n02103406_4068-1.png",),
        note=" A target counts all of its images; one broken sketch is left out, as in Dassl.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """``protocol``: DomainBed's seeded holdout, or Dassl's train and crossval files, which a local copy has."""

    protocol: _domains.Protocol = "domainbed"


def build(config: Config, root: str | None = None) -> Benchmark:
    return _domains.build(PACS, root, config.protocol)


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=(PACS.source,))
