"""A contact sheet: what the images of each domain look like, one row a domain and one column a class.

A folder of records has one for each benchmark in it. It decodes 12 images a domain at most, in a new folder once more.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from clipdg.core.benchmark import Benchmark, Domain

NUM_COLUMNS = 12
TILE = 64  # pixels
GAP = 4


def sheet(benchmark: Benchmark) -> bytes:
    """PNG bytes; rows in the order of the benchmark's domains, columns evenly spaced over its classes."""
    chosen = np.unique(np.linspace(0, len(benchmark.classes) - 1, NUM_COLUMNS).round().astype(int))
    width, height = (n * (TILE + GAP) + GAP for n in (len(chosen), len(benchmark.domains)))
    canvas = Image.new("RGBA", (width, height))  # transparent between the tiles, so that it lies on any page
    for i, domain in enumerate(benchmark.domains.values()):
        for j, label in enumerate(chosen):
            row = _first(domain, int(label))
            if row is not None:
                tile = _square(domain.rows.image(row))
                canvas.paste(tile, (GAP + j * (TILE + GAP), GAP + i * (TILE + GAP)))
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _first(domain: Domain, label: int) -> int | None:
    """The first row of a class, of the test split where there is one."""
    rows = (domain.splits or {}).get("test", np.arange(len(domain.rows)))
    found = rows[domain.rows.labels[rows] == label]
    return int(found[0]) if len(found) else None


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    enlarge = Image.Resampling.NEAREST if side < TILE else Image.Resampling.LANCZOS
    return image.resize((TILE, TILE), enlarge, box=(left, top, left + side, top + side))
