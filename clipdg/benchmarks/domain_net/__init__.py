"""domain_net: pictures of 345 classes, from photos to doodles.

Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019, arXiv:1812.01754. The domains are clipart,
infographics, paintings, quick drawings, photos and sketches. DomainBed removes 9,431 duplicates of the 596,006 images,
so that 586,575 are left. Its list is ``duplicates.txt.gz``: ``misc/domain_net_duplicates.txt`` of
facebookresearch/DomainBed at b93c22a (MIT licence), compressed and otherwise unchanged.

The copy on the hub does not number classes and domains in the folders' order, so they are joined by name.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, replace
from pathlib import Path

from clipdg.benchmarks import _domains
from clipdg.benchmarks._domains import Dassl, DomainSet, Member
from clipdg.core.benchmark import Benchmark
from clipdg.core.download_source import Hub, Source
from clipdg.core.plugins import BenchmarkSource

_FOLDERS = """
The_Eiffel_Tower The_Great_Wall_of_China The_Mona_Lisa aircraft_carrier airplane alarm_clock ambulance angel
animal_migration ant anvil apple arm asparagus axe backpack banana bandage barn baseball baseball_bat basket
basketball bat bathtub beach bear beard bed bee belt bench bicycle binoculars bird birthday_cake blackberry
blueberry book boomerang bottlecap bowtie bracelet brain bread bridge broccoli broom bucket bulldozer bus bush
butterfly cactus cake calculator calendar camel camera camouflage campfire candle cannon canoe car carrot castle
cat ceiling_fan cell_phone cello chair chandelier church circle clarinet clock cloud coffee_cup compass computer
cookie cooler couch cow crab crayon crocodile crown cruise_ship cup diamond dishwasher diving_board dog dolphin
donut door dragon dresser drill drums duck dumbbell ear elbow elephant envelope eraser eye eyeglasses face fan
feather fence finger fire_hydrant fireplace firetruck fish flamingo flashlight flip_flops floor_lamp flower
flying_saucer foot fork frog frying_pan garden garden_hose giraffe goatee golf_club grapes grass guitar hamburger
hammer hand harp hat headphones hedgehog helicopter helmet hexagon hockey_puck hockey_stick horse hospital
hot_air_balloon hot_dog hot_tub hourglass house house_plant hurricane ice_cream jacket jail kangaroo key keyboard
knee knife ladder lantern laptop leaf leg light_bulb lighter lighthouse lightning line lion lipstick lobster
lollipop mailbox map marker matches megaphone mermaid microphone microwave monkey moon mosquito motorbike mountain
mouse moustache mouth mug mushroom nail necklace nose ocean octagon octopus onion oven owl paint_can paintbrush
palm_tree panda pants paper_clip parachute parrot passport peanut pear peas pencil penguin piano pickup_truck
picture_frame pig pillow pineapple pizza pliers police_car pond pool popsicle postcard potato power_outlet purse
rabbit raccoon radio rain rainbow rake remote_control rhinoceros rifle river roller_coaster rollerskates sailboat
sandwich saw saxophone school_bus scissors scorpion screwdriver sea_turtle see_saw shark sheep shoe shorts shovel
sink skateboard skull skyscraper sleeping_bag smiley_face snail snake snorkel snowflake snowman soccer_ball sock
speedboat spider spoon spreadsheet square squiggle squirrel stairs star steak stereo stethoscope stitches
stop_sign stove strawberry streetlight string_bean submarine suitcase sun swan sweater swing_set sword syringe
t-shirt table teapot teddy-bear telephone television tennis_racquet tent tiger toaster toe toilet tooth toothbrush
toothpaste tornado tractor traffic_light train tree triangle trombone truck trumpet umbrella underwear van vase
violin washing_machine watermelon waterslide whale wheel windmill wine_bottle wine_glass wristwatch yoga zebra
zigzag
"""
FOLDERS = tuple(_FOLDERS.split())

DOMAIN_NET = DomainSet(
    name="domain_net",
    folders=("domain_net", "domainnet", "DomainNet"),
    members=(
        Member("clipart", ("clip", "C"), "clipart", 48_129),
        Member("infograph", ("info", "I"), "infographic", 51_605),
        Member("painting", ("paint", "P"), "painting", 72_266),
        Member("quickdraw", ("quick", "Q"), "doodle", 172_500),
        Member("real", ("R",), "photo", 172_947),
        Member("sketch", ("S",), "sketch", 69_128),
    ),
    classes={folder: folder.replace("_", " ") for folder in FOLDERS},
    source=Source(
        "DomainNet",
        hubs=(
            Hub(
                "wltjr1007/DomainNet", "ee20570ae7a29c51571e55a9a17983f7625295d6",
                data_files=("data/train-*.parquet", "data/test-*.parquet"),
            ),
        ),
        terms="DomainNet has a fair-use notice: non-commercial research only (http://ai.bu.edu/M3SDA/). 18.5 GB.",
        steps="A local copy: the six zips of http://ai.bu.edu/M3SDA/ (clipart and painting from groundtruth/); "
        "benchmark.root=DIR with images at DIR/clipart/aircraft_carrier/clipart_001_000001.jpg.",
    ),
    citation=f"Peng et al., Moment Matching for Multi-Source Domain Adaptation, ICCV 2019; {_domains.DOMAINBED}",
    licence="fair-use notice, non-commercial research",
    dassl=Dassl(
        parts={"train": "train", "test": "test"},
        file="splits/{domain}_{part}.txt",
        note=" A target counts its test file only; Dassl validates on the sources' test files and trains on all of "
        "train, which is holdout=0 here.",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """``protocol``: DomainBed's seeded holdout, or the data set's own train and test files, which a local copy has."""

    protocol: _domains.Protocol = "domainbed"


def build(config: Config, root: str | None = None) -> Benchmark:
    removed = frozenset(duplicates()) if config.protocol == "domainbed" else frozenset[str]()
    return _domains.build(replace(DOMAIN_NET, duplicates=removed), root, config.protocol)


def duplicates() -> tuple[str, ...]:
    """DomainBed's list of the images that it removes, such as "clipart/bus/clipart_046_000017.jpg"."""
    content = (Path(__file__).parent / "duplicates.txt.gz").read_bytes()
    return tuple(gzip.decompress(content).decode().split())


BENCHMARK = BenchmarkSource(config=Config, build=build, sources=(DOMAIN_NET.source,))
