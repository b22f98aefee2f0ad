"""The sets of the ImageNet family: where each lies, on the hub and in folders, and how many images it has.

A repository of the hub is taken at its newest commit unless one is named. The record names the commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from clipdg.core.download_source import Hub


@dataclass(frozen=True)
class ImageSet:
    """A set, and where it is looked for.

    ``folders``: its names below benchmark.root, in the order in which they are tried; CoOp's layout and the archive's
    name are among them. ``gated``: its repository on the hub asks for a login and a click on its terms.
    """

    title: str
    folders: tuple[str, ...]
    hub: Hub | None
    num_images: int
    noun: str
    citation: str
    licence: str
    gated: bool = False


SETS = {
    "imagenet": ImageSet(
        "ImageNet-1k val",
        ("imagenet/val", "imagenet/images/val", "val"),
        Hub("ILSVRC/imagenet-1k", data_files=("data/validation-*.parquet",)),
        50_000,
        "photo",
        "Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
        "ImageNet's terms of access: non-commercial research",
        gated=True,
    ),
    "v2": ImageSet(
        "ImageNet-V2 matched-frequency",
        (
            "imagenetv2-matched-frequency-format-val",
            "imagenetv2/imagenetv2-matched-frequency-format-val",
            "imagenetv2-matched-frequency",
            "imagenet-v2",
            "v2",
        ),
        Hub("clip-benchmark/wds_imagenetv2", data_files=("test/*.tar",)),
        10_000,
        "photo",
        "Recht et al., Do ImageNet Classifiers Generalize to ImageNet?, ICML 2019",
        "MIT",
    ),
    "sketch": ImageSet(
        "ImageNet-Sketch",
        ("imagenet-sketch/images", "imagenet-sketch/sketch", "imagenet-sketch", "sketch"),
        Hub("clip-benchmark/wds_imagenet_sketch", data_files=("test/*.tar",)),
        50_889,
        "sketch",
        "Wang et al., Learning Robust Global Representations by Penalizing Local Predictive Power, NeurIPS 2019",
        "not stated",
    ),
    "a": ImageSet(
        "ImageNet-A",
        ("imagenet-adversarial/imagenet-a", "imagenet-a", "a"),
        Hub("clip-benchmark/wds_imagenet-a", data_files=("test/*.tar",)),
        7_500,
        "photo",
        "Hendrycks et al., Natural Adversarial Examples, CVPR 2021",
        "MIT",
    ),
    "r": ImageSet(
        "ImageNet-R",
        ("imagenet-rendition/imagenet-r", "imagenet-r", "r"),
        Hub("clip-benchmark/wds_imagenet-r", data_files=("test/*.tar",)),
        30_000,
        "rendition",
        "Hendrycks et al., The Many Faces of Robustness, ICCV 2021",
        "MIT",
    ),
    "objectnet": ImageSet(
        "ObjectNet",
        ("objectnet-1.0/images", "objectnet/images", "objectnet-1.0", "objectnet"),
        Hub("timm/objectnet-720p-in1k", split="test"),
        18_574,
        "photo",
        "Barbu et al., ObjectNet, NeurIPS 2019",
        "CC-BY-4.0, with two clauses: nothing is tuned on it, and its images are shown with their red border only",
        gated=True,
    ),
}
TRAIN = ImageSet(
    "ImageNet-1k train",
    ("imagenet/train", "imagenet/images/train", "train"),
    Hub("ILSVRC/imagenet-1k", data_files=("data/train-*.parquet",)),
    1_281_167,
    "photo",
    SETS["imagenet"].citation,
    SETS["imagenet"].licence,
)
CORRUPTED = ImageSet(
    "ImageNet-C",
    ("imagenet-c", "ImageNet-C", "c"),
    None,
    50_000,  # in each corruption and severity
    "photo",
    "Hendrycks & Dietterich, Benchmarking Neural Network Robustness to Common Corruptions, ICLR 2019",
    "CC-BY-4.0",
)
BY_DEFAULT_FROM_HUB = ("imagenet", "v2", "sketch", "a", "r")  # ObjectNet's repository asks for a click on its terms
SEVERITIES = ("1", "2", "3", "4", "5")
