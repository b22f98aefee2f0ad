"""The ImageNet family in miniature: each set in its archive's own layout, or CoOp's, below one root.

The pictures of a set are drawn from numbers of its own, so no two sets share one. Shown from the repository's root:

    python tests/helpers/imagenet_layouts.py DIR
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from layouts import Sample, class_folders, litter, numbered_folders, picture, put

# In all 1,000; 1, 22 and 277 are in R, 22, 277 and 311 in A, and 423, 559, 765 are ObjectNet's chair.
WNIDS = {
    "n01440764": 0,
    "n01443537": 1,
    "n01614925": 22,
    "n02119022": 277,
    "n02226429": 311,
    "n02708093": 409,
    "n02791124": 423,
    "n03376595": 559,
    "n04099969": 765,
}
A = ("n01614925", "n02119022", "n02226429")
R = ("n01443537", "n01614925", "n02119022")
OBJECTS = ("alarm_clock", "chair", "air_freshener")  # the last is none of ImageNet's
KINDS = ("gaussian_noise", "jpeg_compression")


def samples(name: str, labels: Sequence[str], each: int = 2, size: tuple[int, int] = (24, 18)) -> list[Sample]:
    start = sum(name.encode()) * 1000
    return [
        Sample(name, label, f"{name.replace('/', '_')}_{number}.jpg", picture(start + i * each + number, size=size))
        for i, label in enumerate(labels)
        for number in range(each)
    ]


def family(root: Path, each: int = 2, train: int = 6) -> Path:
    """All seven sets and train, with ``each`` pictures a class; of ImageNet-C two corruptions in severities 1 and 3."""
    class_folders(root / "imagenet" / "val", samples("val", list(WNIDS), each))
    class_folders(root / "imagenet" / "train", samples("train", list(WNIDS), train))
    v2(root / "imagenetv2-matched-frequency-format-val", samples("v2", list(WNIDS), each))
    class_folders(root / "imagenet-sketch" / "images", samples("sketch", list(WNIDS), each))
    class_folders(root / "imagenet-adversarial" / "imagenet-a", samples("a", A, each))
    class_folders(root / "imagenet-r", samples("r", R, each))
    class_folders(root / "objectnet-1.0" / "images", framed(samples("objectnet", OBJECTS, each, (40, 30))))
    for kind in KINDS:
        for severity in ("1", "3"):
            name = f"{kind}{severity}"
            class_folders(root / "imagenet-c" / kind / severity, samples(name, list(WNIDS), each, (224, 224)))
    put(root / "imagenet-r" / "README.txt", "as in the archive")
    return litter(root)


def v2(root: Path, given: Sequence[Sample], numbers: Mapping[str, int] = WNIDS) -> Path:
    return numbered_folders(root, given, numbers)


def framed(given: Sequence[Sample]) -> list[Sample]:
    """With a red border of 2 pixels, saved without loss."""
    import io

    from PIL import Image, ImageDraw

    found = []
    for s in given:
        with Image.open(io.BytesIO(s.content)) as image:
            width, height = image.size
            ImageDraw.Draw(image).rectangle((0, 0, width - 1, height - 1), outline=(255, 0, 0), width=2)
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
        found.append(Sample(s.domain, s.label, s.name.replace(".jpg", ".png"), buffer.getvalue()))
    return found


if __name__ == "__main__":
    family(Path(sys.argv[1]))
