"""RELIABILITY.md, table D and the list after it: every odd kind of image has one verdict, the same in every place."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image, ImageFile

import clipdg
from clipdg.core.download_source import Hub
from clipdg.core.errors import DataError
from clipdg.core.model import Preprocessing
from clipdg.data import datasets, loaders
from clipdg.data.rows import TableRows, open_table

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SPEC = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def claims(width: int, height: int) -> bytes:
    """A PNG of a header only."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


RGB = Image.fromarray(NOISE)
JPEG, PNG, WEBP = (saved(RGB, kind) for kind in ("JPEG", "PNG", "WEBP"))
CLEAR = RGB.convert("RGBA")
CLEAR.putalpha(0)
EXIF = Image.Exif()
EXIF[0x0112] = 6

# What it is -> its bytes, and what is said of it; None: it is read
KINDS: dict[str, tuple[bytes, str | None]] = {
    # D1
    "zero bytes": (b"", "is empty: 0 bytes"),
    "one byte": (b"\xff", "is a file that begins with ff"),
    "text": (b"hello", "is a file that begins with"),
    "an HTML page": (b"<!DOCTYPE html><html></html>", "is an HTML page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "zeros": (b"\0" * 500, "is nothing but zero bytes"),
    "a gzipped JPEG": (gzip.compress(JPEG), "is a gzip archive"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is an SVG drawing"),
    "PDF": (b"%PDF-1.7", "is a PDF"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0", "is a PDF or PostScript"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "is a container of kind 'heic'"),
    "a JPEG of its header only": (JPEG[:20], "cannot be read as an image|is cut or broken"),
    "a JPEG cut to a tenth": (JPEG[: len(JPEG) // 10], "cannot be read as an image|is cut or broken"),
    "a JPEG cut by half": (JPEG[: len(JPEG) // 2], "is cut or broken"),
    "a JPEG cut by 200 bytes": (JPEG[:-200], "is cut or broken"),
    "a JPEG cut by 2 bytes": (JPEG[:-2], "is cut or broken"),
    "a PNG cut by half": (PNG[: len(PNG) // 2], "is cut or broken"),
    "a PNG with a broken header": (PNG[:20] + b"\xff" + PNG[21:], "cannot be read as an image: its header is broken$"),
    "a PNG with broken pixels": (PNG[:100] + b"\xff\xff\xff" + PNG[103:], "is cut or broken"),
    "a WebP cut by half": (WEBP[: len(WEBP) // 2], "is cut or broken|cannot be read as an image"),
    # D4
    "16-bit grey": (saved(Image.fromarray(np.full((9, 9), 4000, np.uint16)), "PNG"), None),
    "float TIFF": (saved(Image.fromarray(NOISE[..., 0].astype(np.float32)), "TIFF"), "whose range is not known"),
    "32-bit TIFF": (saved(Image.fromarray(NOISE[..., 0].astype(np.int32)), "TIFF"), "whose range is not known"),
    # D5, D6
    "CMYK": (saved(RGB.convert("CMYK"), "JPEG"), None),
    "a rotated photograph": (saved(RGB, "JPEG", exif=EXIF), None),
    # D7
    "a bomb of 100 megapixels in 89 bytes": (claims(10_000, 10_000), "claims .* pixels, more than 50,000,000"),
    "a bomb of 400 megapixels": (claims(20_000, 20_000), "claims more than 50,000,000 pixels"),
    "one row of pixels": (saved(Image.new("RGB", (2000, 1)), "PNG"), "one side is over 100 times the other"),
    "a text bomb": (
        PNG[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 80_000_000)) + PNG[33:],
        "cannot be read as an image|is cut or broken",
    ),
    # the rest of the list
    "nothing but transparent pixels": (saved(CLEAR, "PNG"), "shows nothing"),
    "an animation": (
        saved(RGB, "GIF", save_all=True, append_images=[Image.new("RGB", RGB.size)]), "holds several pictures",
    ),
    "grey": (saved(RGB.convert("L"), "JPEG"), None),
    "progressive": (saved(RGB, "JPEG", progressive=True), None),
    "one bit": (saved(RGB.convert("1"), "PNG"), None),
    "a palette": (saved(RGB.convert("P"), "PNG"), None),
    "grey with transparency": (saved(RGB.convert("LA"), "PNG"), None),
    "WebP": (WEBP, None),
    "BMP": (saved(RGB, "BMP"), None),
    "a single pixel": (saved(Image.new("RGB", (1, 1)), "PNG"), None),
    "bytes after the end": (JPEG + b"trailing", None),
    # D8: one flipped bit inside valid data is another picture, which only a digest tells from the first
    "a flipped bit": (JPEG[:700] + bytes([JPEG[700] ^ 1]) + JPEG[701:], None),
}  # fmt: skip

PLACES: dict[str, Callable[[Path, list[layouts.Sample]], Path]] = {
    "parquet": layouts.hub_parquet, "saved": layouts.saved, "shards": layouts.wds,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_odd_kind_of_image_has_its_verdict_in_a_folder(tmp_path: Path, kind: str) -> None:
    content, refusal = KINDS[kind]
    path = layouts.put(tmp_path / "photo" / "dog" / "odd.jpg", content)
    if refusal is None:
        rows = TableRows(open_table(tmp_path), [0], np.zeros(1), ["dog/odd.jpg"])
        assert rows.image(0).mode == "RGB"
        return
    with pytest.raises(DataError, match=refusal) as error:  # when the folder is opened, or else when it is read
        TableRows(open_table(tmp_path), [0], np.zeros(1), ["dog/odd.jpg"]).image(0)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", PLACES)
def test_every_odd_kind_of_image_has_the_same_verdict_in_every_place(tmp_path: Path, place: str) -> None:
    given = [layouts.Sample("photo", "dog", f"{i}.jpg", content) for i, (content, _) in enumerate(KINDS.values())]
    table = open_table(PLACES[place](tmp_path / "data", given))
    rows = TableRows(table, range(len(table)), np.zeros(len(table)), [str(i) for i in range(len(table))])
    for i, (kind, (content, refusal)) in enumerate(KINDS.items()):
        assert table.read(i) == content, kind
        if refusal is None:
            assert rows.image(i).mode == "RGB", kind
        else:
            with pytest.raises(DataError, match=refusal) as error:
                rows.image(i)
            assert str(error.value).startswith(f"image {i} ({table.at(i)}) "), kind


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named_with_data_set_domain_index_path_and_reason(tmp_path: Path, workers: int) -> None:
    given = layouts.samples()
    layouts.domain_folders(tmp_path, given)
    cut = tmp_path / "sketch" / "dog" / "pic_002.jpg"
    cut.write_bytes(cut.read_bytes()[:-2])
    benchmark = clipdg.load_benchmark("folder", str(tmp_path))
    rows = benchmark.domains["sketch"].rows
    dataset = datasets.ImageDataset(rows, range(len(rows)), SPEC, 1, name="folder, sketch")
    with pytest.raises(DataError) as error:
        list(loaders.loader(dataset, 4, workers=workers))
    message = str(error.value)
    assert message.startswith(f"folder, sketch: image 1 ({cut}) is cut or broken: ")


def test_a_bad_image_is_never_replaced_and_left_out_by_a_recorded_list_only(tmp_path: Path) -> None:
    layouts.domain_folders(tmp_path, layouts.samples())
    (tmp_path / "sketch" / "dog" / "pic_002.jpg").write_bytes(JPEG[:-2])
    settings = {"name": "table", "root": str(tmp_path), "layout": "{domain}/{label}"}
    with pytest.raises(DataError, match=r"sketch.*image 1 \(.*pic_002\.jpg\) is cut or broken"):
        clipdg.run({"benchmark": settings})
    skip = layouts.put(tmp_path / "skip.txt", "sketch/dog/pic_002.jpg\n")
    records = clipdg.run({"benchmark": settings | {"skip": str(skip)}})
    assert records[0].content["data"]["skipped"] == ["sketch/dog/pic_002.jpg"]
    assert records[0].content["data"]["num_images"]["sketch"] == {"in": 7, "out": 1}
    assert records[0].content["data"]["num_images"]["photo"] == {"in": 8, "out": 1}


def test_cut_files_are_not_filled_with_grey_by_any_import(tmp_path: Path) -> None:
    import datasets  # noqa: F401  # one of the libraries that could set it

    open_table(layouts.hub_parquet(tmp_path, layouts.samples()), Hub("x/y"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_one_flipped_bit_is_seen_by_the_digest_alone(tmp_path: Path) -> None:
    content, _ = KINDS["a flipped bit"]
    rows = []
    for name, stored in (("a", JPEG), ("b", content)):
        layouts.put(tmp_path / name / "x" / "1.jpg", stored)
        rows.append(TableRows(open_table(tmp_path / name), [0], np.zeros(1), ["x"]))
    assert rows[0].image(0).size == rows[1].image(0).size
    assert rows[0].digests() != rows[1].digests()
