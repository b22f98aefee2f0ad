import io

import numpy as np
from PIL import Image

from clipdg.core.benchmark import Benchmark
from clipdg.data import contact_sheet


def test_each_tile_is_the_first_image_of_its_class_in_its_domain(squares: Benchmark) -> None:
    sheet = Image.open(io.BytesIO(contact_sheet.sheet(squares)))
    side, gap = contact_sheet.TILE, contact_sheet.GAP
    assert sheet.size == (3 * (side + gap) + gap, 2 * (side + gap) + gap)
    for i, domain in enumerate(squares.domains.values()):
        for j in range(3):
            left, top = gap + j * (side + gap), gap + i * (side + gap)
            tile = np.asarray(sheet.crop((left, top, left + side, top + side)).convert("RGB"))
            # 32 pixels enlarged to 64 by repeating each
            assert np.array_equal(tile[::2, ::2], np.asarray(domain.rows.image(12 * j)))


def test_the_same_benchmark_gives_the_same_bytes(squares: Benchmark) -> None:
    assert contact_sheet.sheet(squares) == contact_sheet.sheet(squares)
