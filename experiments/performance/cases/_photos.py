"""Photographs made up for timing: 500 × 375 JPEGs of quality 90, smooth with texture, as large as ImageNet's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def photo(seed: int, width: int = 500, height: int = 375) -> bytes:
    rng = np.random.default_rng(seed)

    def layer(columns: int, rows: int, filter_: Image.Resampling) -> Image.Image:
        small = Image.fromarray(rng.integers(0, 255, (rows, columns, 3), dtype=np.uint8))
        return small.resize((width, height), filter_)

    smooth, texture = layer(16, 12, Image.Resampling.BICUBIC), layer(125, 94, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    Image.blend(smooth, texture, 0.25).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def folder(place: Path, domains: Sequence[str], classes: Sequence[str], per_class: int) -> Path:
    """DomainBed's layout: DOMAIN/CLASS/NUMBER.jpg; every third photograph is upright."""
    seed = 0
    for domain in domains:
        for name in classes:
            (place / domain / name).mkdir(parents=True)
            for number in range(per_class):
                size = (375, 500) if seed % 3 == 2 else (500, 375)
                (place / domain / name / f"{number:04}.jpg").write_bytes(photo(seed, *size))
                seed += 1
    return place
