"""Preprocessing of images as a backbone expects it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipdg.core.model import Preprocessing

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bicubic_fast": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "bilinear_fast": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}
_TORCH_MODE = {"bicubic_fast": "bicubic", "bilinear_fast": "bilinear"}
_SUPPORT = {
    "bicubic": 2,
    "bicubic_fast": 2,
    "bilinear": 1,
    "bilinear_fast": 1,
}  # of the kernels, in pixels of the coarser grid
_COLUMNS_FIRST = {12: False, 13: True}  # by Pillow's version: whether a resize may begin with the columns


def to_uint8(image: Image.Image, spec: Preprocessing) -> Tensor:
    """Resized and cropped -> (3, S, S) uint8; torchvision's Resize + CenterCrop on PIL images, pixel by pixel."""
    assert 0 < spec.crop_fraction <= 1
    scaled = math.floor(spec.size / spec.crop_fraction)  # as in timm
    width, height = image.size
    if spec.resize == "squash":
        width = height = scaled
    elif width <= height:
        width, height = scaled, int(scaled * height / width)
    else:
        width, height = int(scaled * width / height), scaled
    if image.mode != "RGB":
        image = image.convert("RGB")
    left, top = (width - spec.size) / 2, (height - spec.size) / 2
    if spec.resize == "shortest_floor":
        left, top = math.floor(left), math.floor(top)
    else:
        left, top = round(left), round(top)  # halves to even, as in torchvision
    right, bottom = left + spec.size, top + spec.size
    if spec.interpolation in _TORCH_MODE and _agree(image.size, (width, height)):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        mode = _TORCH_MODE[spec.interpolation]
        resized = F.interpolate(pixels, (height, width), mode=mode, antialias=True)
        return resized[0, :, top:bottom, left:right].contiguous()
    image = _resized(image, (width, height), (left, top, right, bottom), spec.interpolation)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _resized(
    image: Image.Image, size: tuple[int, int], crop: tuple[int, int, int, int], interpolation: str
) -> Image.Image:
    """``image.resize(size).crop(crop)`` to the bit, without most of what the crop throws away.

    Pillow resizes in two passes, along rows and along columns, with 8 bits between them. A pass's weights follow from
    its axis alone (precompute_coeffs in its src/libImaging/Resample.c), so what is left out across that axis changes
    nothing. ``resize(box=...)`` would leave out more, but rounds the box to float32 and so makes other weights: after
    two passes up to 2 levels off, and many where the order of the passes becomes another.
    """
    how = _RESAMPLING[interpolation]
    columns = _COLUMNS_FIRST.get(int(PIL.__version__.partition(".")[0]))
    if interpolation not in _SUPPORT or columns is None or crop == (0, 0, *size):  # another order is another image
        return image.resize(size, how).crop(crop)
    (width, height), (new_width, new_height), (left, top, right, bottom) = image.size, size, crop
    support = _SUPPORT[interpolation]
    if columns and height - new_height > max(0, 2 * (width - new_width)):  # ImagingResampleInner, of the same file
        first, last = _needed(left, right, width / new_width, width, support)
        part = image.crop((first, 0, last, height)).resize((last - first, new_height), how)
        part = _in_place(part.crop((0, top, last - first, bottom)), (width, bottom - top), (first, 0))
        return part.resize((new_width, bottom - top), how).crop((left, 0, right, bottom - top))
    first, last = _needed(top, bottom, height / new_height, height, support)
    part = image if last - first == height else image.crop((0, first, width, last))
    part = part.resize((new_width, last - first), how).crop((left, 0, right, last - first))
    part = _in_place(part, (right - left, height), (0, first))
    return part.resize((right - left, new_height), how).crop((0, top, right - left, bottom))


def _needed(start: int, stop: int, scale: float, length: int, support: int) -> tuple[int, int]:
    """The range of an axis's ``length`` pixels that those from ``start`` to ``stop`` of the result are made of."""
    margin = support * max(scale, 1.0) + 1
    return max(0, math.floor(start * scale - margin)), min(length, math.ceil(stop * scale + margin))


def _in_place(part: Image.Image, size: tuple[int, int], at: tuple[int, int]) -> Image.Image:
    """``part`` where it was in an image of ``size``, whose other pixels nobody will look at."""
    if part.size == size:
        return part
    whole = Image.new("RGB", size)
    whole.paste(part, at)
    return whole


def _agree(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Whether torch's resizing is within two levels of Pillow's: photographs to a model's size, as a rule.

    Pillow 13 takes columns first where the height shrinks by twice as many; with 8 bits between, another order is
    many levels off. Near the original size torch's 16-bit weights are further off as well.
    """
    (width, height), (new_width, new_height) = size, resized
    smaller = width >= 1.5 * new_width and height >= 1.5 * new_height
    return smaller and height <= 2 * width and height * new_width <= 1.02 * width * new_height


def fast(spec: Preprocessing) -> Preprocessing:
    """The same with torch's resizing, in a third of Pillow's time, where its pixels are a level of 255 off at times.

    In 128 photographs 4 values of 1,000 were, the worst by two levels (experiments/performance, "preprocess"). What it
    does not do so well is left to Pillow.
    """
    if spec.interpolation == "bicubic":
        return replace(spec, interpolation="bicubic_fast")
    return replace(spec, interpolation="bilinear_fast") if spec.interpolation == "bilinear" else spec


def normalize(images: Tensor, spec: Preprocessing) -> Tensor:
    """(..., 3, S, S), uint8 or float in [0, 1] -> normalised float32 on the same device.

    The arithmetic and its order are torchvision's (ToTensor, Normalize), so the results are equal to the last bit.
    """
    unit = images.to(torch.float32, copy=True)
    if images.dtype == torch.uint8:
        unit.div_(255)
    mean = torch.tensor(spec.mean, dtype=torch.float32, device=images.device).view(3, 1, 1)
    std = torch.tensor(spec.std, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return unit.sub_(mean).div_(std)


def preprocess(image: Image.Image, spec: Preprocessing) -> Tensor:
    """One RGB image -> (3, S, S) float32, normalised."""
    return normalize(to_uint8(image, spec), spec)


def augment_light(images: Tensor, generator: torch.Generator) -> Tensor:
    """(N, 3, S, S) uint8 -> float32 around [0, 1], to be normalised: flip, shift, contrast, colour cast.

    Each image is mirrored with probability 1/2, its contrast about mid-grey scaled by 0.8 to 1.2 and each of its
    channels moved by up to 0.054 (0.2 standard deviations of 0.27). The shift, up to S/10 pixels each way with the
    border repeated, is one per batch. Values may leave [0, 1] a little; clipping would undo part of the cast.
    """
    num, _, size, _ = images.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=generator.device).to(images.device)

    unit = images.float().div_(255)
    unit = torch.where(uniform(num, 1, 1, 1) < 0.5, unit.flip(3), unit)
    margin = size // 10
    shift = torch.randint(0, 2 * margin + 1, (2,), generator=generator, device=generator.device)
    top, left = shift.tolist()
    unit = F.pad(unit, (margin, margin, margin, margin), mode="replicate")
    unit = unit[:, :, top : top + size, left : left + size]
    contrast = 1 + (uniform(num, 1, 1, 1) - 0.5) * 0.4
    cast = (uniform(num, 3, 1, 1) - 0.5) * 0.4 * 0.27
    return (unit - 0.5) * contrast + 0.5 + cast
