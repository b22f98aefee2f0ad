"""Augmentation of an image as it is read, by torchvision's own transforms, from a seed of its own.

    domainbed   RandomResizedCrop(scale 0.7 to 1), flip, ColorJitter(0.3, 0.3, 0.3, 0.3), RandomGrayscale(0.1)
                (domainbed/datasets.py, MultipleEnvironmentImageFolder)
    crop        RandomResizedCrop(scale 0.9 to 1), bicubic: what open_clip and WiSE-FT train CLIP with
    coop        RandomResizedCrop(scale 0.08 to 1), bicubic, flip: what CoOp and those after it train prompts with
                (KaiyangZhou/CoOp's configs/trainers, on Dassl's RRCROP_SCALE)

What is seen of an image depends on its seed and on nothing else: not on the process that reads it nor on what was read
before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipdg.core.model import Preprocessing
from clipdg.core.seeding import seed_hash
from clipdg.core.versions import version

READ = ("domainbed", "crop", "coop")  # of fit.Augment, those made here


@dataclass(frozen=True)
class View:
    """One random view of every image, always the same: the ``number``-th of those that are stored.

    What is seen of an image follows from its own bytes, so that it is the same view in whatever selection it lies.
    """

    number: int
    how: str = "coop"
    seed: int = 0  # not a run's: runs of all seeds share what was encoded

    def seed_of(self, digest: str) -> int:
        """Of the image with this SHA-256."""
        return seed_hash("view", self.seed, self.number, digest)

    def story(self, spec: Preprocessing) -> dict[str, object]:
        """All that a view's pixels follow from, beside the image."""
        transform = repr(_transform(self.how, spec.size))
        return {"transform": transform, "seed": self.seed, "number": self.number, "torchvision": version("torchvision")}


def augmented(image: Image.Image, spec: Preprocessing, how: str, seed: int) -> Tensor:
    """-> (3, S, S) uint8, the view of ``image`` that ``seed`` means."""
    generator = torch.default_generator  # torchvision's transforms draw from no other
    before = generator.get_state()
    try:
        generator.manual_seed(seed)
        seen = _transform(how, spec.size)(image)
    finally:
        generator.set_state(before)
    return torch.from_numpy(np.array(seen)).permute(2, 0, 1).contiguous()


@cache
def _transform(how: str, size: int) -> Callable[[Any], Image.Image]:
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    if how == "crop":
        return transforms.RandomResizedCrop(size, scale=(0.9, 1.0), interpolation=InterpolationMode.BICUBIC)  # type: ignore[no-any-return]
    if how == "coop":
        crop = transforms.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC)
        return transforms.Compose([crop, transforms.RandomHorizontalFlip()])  # type: ignore[no-any-return]
    assert how == "domainbed"
    return transforms.Compose(  # type: ignore[no-any-return]
        [
            transforms.RandomResizedCrop(size, scale=(0.7, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3, 0.3),
            transforms.RandomGrayscale(),
        ]
    )
