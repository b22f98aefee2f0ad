import io

import numpy as np
from PIL import Image

from clipdg import contact
from clipdg.core import Benchmark


def test_each_tile_is_the_first_image_of_its_class_in_its_domain(squares: Benchmark) -> None:
    sheet = Image.open(io.BytesIO(contact.sheet(squares)))
    side, gap = contact.TILE, contact.GAP
    assert sheet.size == (3 * (side + gap) + gap, 2 * (side + gap) + gap)
    for i, domain in enumerate(squares.domains.values()):
        for j in range(3):
            left, top = gap + j * (side + gap), gap + i * (side + gap)
            tile = np.asarray(sheet.crop((left, top, left + side, top + side)).convert("RGB"))
            # 32 pixels enlarged to 64 by repeating each
            assert np.array_equal(tile[::2, ::2], np.asarray(domain.rows.image(12 * j)))


def test_the_same_benchmark_gives_the_same_bytes(squares: Benchmark) -> None:
    assert contact.sheet(squares) == contact.sheet(squares)
