"""office_home: art, clipart, products and photos of 65 things.

Venkateswara et al., Deep Hashing Network for Unsupervised Domain Adaptation, CVPR 2017, arXiv:1706.07522. The domains'
counts are from memory; their sum is the 15,588 of the copy on the hub.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipdg.benchmarks import _domains
from clipdg.benchmarks._domains import Dassl, DomainSet, Member
from clipdg.core.benchmark import Benchmark
from clipdg.core.download_source import Hub, Source
from clipdg.core.plugins import BenchmarkSource

# They are in ImageFolder's order, capitals first: TV stands before Table.
FOLDERS = (
    "Alarm_Clock", "Backpack", "Batteries", "Bed", "Bike", "Bottle", "Bucket", "Calculator", "Calendar", "Candles",
    "Chair", "Clipboards", "Computer", "Couch", "Curtains", "Desk_Lamp", "Drill", "Eraser", "Exit_Sign", "Fan",
    "File_Cabinet", "Flipflops", "Flowers", "Folder", "Fork", "Glasses", "Hammer", "Helmet", "Kettle", "Keyboard",
    "Knives", "Lamp_Shade", "Laptop", "Marker", "Monitor", "Mop", "Mouse", "Mug", "Notebook", "Oven", "Pan",
    "Paper_Clip", "Pen", "Pencil", "Postit_Notes", "Printer", "Push_Pin", "Radio", "Refrigerator", "Ruler", "Scissors",
    "Screwdriver", "Shelf", "Sink", "Sneakers", "Soda", "Speaker", "Spoon", "TV", "Table", "Telephone", "ToothBrush",
    "Toys", "Trash_Can", "Webcam",
)  # fmt: skip
SPELT = {"Flipflops": "flip-flops", "Postit_Notes": "post-it notes", "TV": "TV"}

OFFICE_HOME = DomainSet(
    name="office_home",
    folders=("office_home", "office_home_dg", "OfficeHome"),
    members=(
        Member("art", ("A",), "artwork", 2427),
        Member("clipart", ("C",), "clipart", 4365),
        Member("product", ("P",), "product picture", 4439),
        Member("real_world", ("R", "real"), "photo", 4357),
    ),
    classes={folder: SPELT.get(folder, folder.replace("_", " ").lower()) for folder in FOLDERS},
    source=Source(
        "Office-Home",
        hubs=(
            Hub(
                "flwrlabs/office-home", "d430d44779e929b335be368ab3456484e5de36bb", split="train",
                data_files=tuple(f"data/train-0000{i}-of-00003.parquet" for i in range(3)),
            ),
        ),
        terms="Office-Home has a fair-use notice: non-commercial research only "
        "(https://www.hemanthdv.org/officeHomeDataset.html).",
        steps="A local copy: OfficeHomeDataset_10072016.zip; benchmark.root=DIR with images at "
        "DIR/Art/Alarm_Clock/00001.jpg, beside Clipart, Product and Real World.",
    ),
    citation=f"Venkateswara et al., Deep Hashing Network for Unsupervised Domain Adaptation, CVPR 2017; "
    f"{_domains.DOMAINBED}",
    licence="fair-use notice, non-commercial research",
    dassl=Dassl(parts={"train": "train", "val": "val"}, note=" A target counts all of its images."),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """``protocol``: DomainBed's seeded holdout, or Dassl's folders train and val, which a local copy has."""

    protocol: _domains.Protocol = "domainbed"


def build(config: Config, root: str | None = None) -> Benchmark:
    return _domains.build(OFFICE_HOME, root, config.protocol)


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=(OFFICE_HOME.source,))
