"""terra_incognita: camera traps at four places, nine animals and nothing.

Beery, Van Horn & Perona, Recognition in Terra Incognita, ECCV 2018, arXiv:1807.04975. The subset is DomainBed's.
Today's download has 24,330 images where the DomainBed paper has 24,788 (DomainBed issue 58), so a table must say which.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipdg.benchmarks import _domains
from clipdg.benchmarks._domains import DomainSet, Member
from clipdg.core.benchmark import Benchmark
from clipdg.core.download_source import Source
from clipdg.core.plugins import BenchmarkSource

TERRA_INCOGNITA = DomainSet(
    name="terra_incognita",
    folders=("terra_incognita", "TerraIncognita"),
    members=(  # in the order of texts, in which "100" stands before "38"
        Member("location_100", ("L100", "100"), "camera trap photo", 4879),
        Member("location_38", ("L38", "38"), "camera trap photo", 9767),
        Member("location_43", ("L43", "43"), "camera trap photo", 4020),
        Member("location_46", ("L46", "46"), "camera trap photo", 6122),
    ),
    classes={
        name: name
        for name in (
            "bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel",
        )
    },
    editions={"today's download from LILA": (4741, 9736, 3970, 5883)},
    source=Source(
        "Terra Incognita",
        terms="Caltech Camera Traps is under CDLA-Permissive (https://lila.science/datasets/caltech-camera-traps).",
        steps="DomainBed's download.py (facebookresearch/DomainBed, domainbed/scripts) makes it of LILA's "
        "eccv_18_all_images_sm.tar.gz; benchmark.root=DIR with images at DIR/location_38/bird/x.jpg, beside "
        "location_43, location_46 and location_100.",
    ),
    citation=f"Beery, Van Horn & Perona, Recognition in Terra Incognita, ECCV 2018; {_domains.DOMAINBED}",
    licence="CDLA-Permissive",
    notes=("The class 'empty' is a picture without an animal; its prompt is the word itself, as in published tables.",),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """There is nothing to choose, as Dassl has no protocol for it."""


def build(config: Config, root: str | None = None) -> Benchmark:
    return _domains.build(TERRA_INCOGNITA, root)


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=(TERRA_INCOGNITA.source,))
