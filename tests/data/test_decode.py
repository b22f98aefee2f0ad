from __future__ import annotations

import dataclasses
import gzip
import io
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from clipdg.core.errors import DataError
from clipdg.core.model import Preprocessing
from clipdg.data import decode, preprocessing

CLIP = Preprocessing(16, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PLAIN = Preprocessing(20, (0.5, 0.5, 0.5), (0.27, 0.27, 0.27))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode.decode(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def refused(data: bytes) -> str:
    with pytest.raises(DataError) as error:
        decode.decode(data, "image 3 (a/b.png)")
    message = str(error.value)
    assert message.startswith("image 3 (a/b.png) ")
    assert "\n" not in message
    return message


# What is read


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_back_the_pixels(kind: str) -> None:
    image = noise(13, 7)
    assert np.array_equal(pixels(encode(image, kind)), np.asarray(image))


def test_lossless_webp_gives_back_the_pixels() -> None:
    image = noise(13, 7)
    assert np.array_equal(pixels(encode(image, "WEBP", lossless=True)), np.asarray(image))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pillow_makes_of_it(mode: str, options: dict[str, bool]) -> None:
    data = encode(noise(33, 21).convert(mode), "JPEG", **options)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_one_bit_and_palette_are_what_pillow_makes_of_them(mode: str) -> None:
    image = noise(9, 11).convert(mode)
    assert np.array_equal(pixels(encode(image)), np.asarray(image.convert("RGB")))


def test_a_still_gif_is_read_and_an_animation_refused() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert pixels(encode(frames[0], "GIF"))[0, 0].tolist() == [255, 0, 0]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert "holds several pictures" in refused(data)


def test_the_main_picture_of_a_phones_mpo_is_read() -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    data = encode(red, "MPO", save_all=True, append_images=[blue])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert pixels(data)[4, 4].tolist() == [254, 0, 0]  # JPEG's red


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_by_257(kind: str) -> None:
    ramp = np.array([[0, 128, 129, 257, 32_768, 65_534, 65_535]], dtype=np.uint16)
    # 128/257 = 0.498, 129/257 = 0.502, 32768/257 = 127.5019, 65534/257 = 254.996
    assert pixels(encode(Image.fromarray(ramp), kind))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255, 255]


def test_16_bit_big_endian_tiff_is_scaled_like_any_other() -> None:
    # one pixel, 771 = 3 * 257, by hand: width, height, bits, no compression, black is zero, strip at 122, ...
    tags = [(256, 1), (257, 1), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 2)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"MM\0*" + struct.pack(">IH", 8, len(tags)) + entries + struct.pack(">IH", 0, 771)
    assert pixels(data).tolist() == [[[3, 3, 3]]]


def test_16_bit_colour_gives_its_high_byte() -> None:
    row = b"\0" + struct.pack(">HHH", 0x1234, 0xABFF, 0x00FF)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert pixels(data).tolist() == [[[0x12, 0xAB, 0x00]]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_float_and_32_bit_are_refused(dtype: type) -> None:
    assert "range is not known" in refused(encode(Image.fromarray(np.ones((4, 4), dtype=dtype)), "TIFF"))


def test_opaque_alpha_changes_nothing() -> None:
    image = noise(6, 5)
    opaque = image.copy()
    opaque.putalpha(255)
    assert np.array_equal(pixels(encode(opaque)), np.asarray(image))


def test_transparent_pixels_show_white_and_never_their_hidden_colour() -> None:
    hidden = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], dtype=np.uint8)
    # black at 51/255 = 20 % over white: 204
    assert pixels(encode(Image.fromarray(hidden))).tolist() == [[[255, 255, 255], [10, 20, 30], [204, 204, 204]]]


def test_transparency_in_a_palette_in_grey_and_in_16_bit_shows_white() -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 50, 60, 70])
    assert pixels(encode(palette, transparency=0)).tolist() == [[[255] * 3, [50, 60, 70]]]
    assert pixels(encode(palette, transparency=b"\x00\xff")).tolist() == [[[255] * 3, [50, 60, 70]]]
    grey = Image.fromarray(np.array([[7, 8]], dtype=np.uint8))
    assert pixels(encode(grey, transparency=7)).tolist() == [[[255] * 3, [8] * 3]]
    deep = Image.fromarray(np.array([[514, 771]], dtype=np.uint16))
    assert pixels(encode(deep, transparency=514)).tolist() == [[[255] * 3, [3] * 3]]


def test_an_image_with_nothing_but_transparent_pixels_is_refused() -> None:
    assert "transparent" in refused(encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0))))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    # The stored picture of EXIF 2.3, table of orientation: the transpose that undoes it gives the upright one back.
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16], upright[:8, 16:], upright[8:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **lossless)
    result = pixels(data)
    assert result.shape == (16, 32, 3)
    assert np.abs(result.astype(int) - upright).max() <= (4 if kind == "JPEG" else 0)


def test_senseless_and_corrupt_exif_count_as_upright() -> None:
    image = noise(16, 8)
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"):
        data = encode(image, "JPEG", exif=exif)
        assert pixels(data).shape == (8, 16, 3)
    senseless = Image.Exif()
    senseless[0x0112] = 99
    assert pixels(encode(image, exif=senseless)).shape == (8, 16, 3)


def test_content_decides_and_not_the_name_and_trailing_bytes_do_not_matter() -> None:
    image = noise(5, 5)
    assert np.array_equal(np.asarray(decode.decode(encode(image) + b"garbage", "cat.jpg")), np.asarray(image))


def test_a_png_without_its_last_chunk_has_all_its_pixels() -> None:
    image = noise(5, 5)
    assert np.array_equal(pixels(encode(image)[:-12]), np.asarray(image))


def test_a_garbage_icc_profile_is_not_applied() -> None:
    image = noise(5, 5)
    assert np.array_equal(pixels(encode(image, icc_profile=b"garbage")), np.asarray(image))


def test_a_single_pixel_is_an_image() -> None:
    assert pixels(encode(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


# What is refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"\0" * 500, "nothing but zero bytes"),
        (b"x", "begins with 78"),
        (b"hello, world", "not an image"),
        (b"\n<!DOCTYPE html><html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "'heic'"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(data: bytes, reason: str) -> None:
    assert reason in refused(data)


def test_a_gzipped_jpeg_is_refused() -> None:
    assert "gzip" in refused(gzip.compress(encode(noise(8, 8), "JPEG")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_file_is_refused(kind: str, share: float) -> None:
    data = encode(noise(64, 64), kind)
    refused(data[: int(len(data) * share)])


def test_a_jpeg_cut_by_two_bytes_is_refused() -> None:
    assert "cut or broken" in refused(encode(noise(64, 64), "JPEG")[:-2])


def test_a_broken_png_is_refused() -> None:
    good = encode(noise(64, 64))
    at = good.index(b"IDAT") + 40
    refused(good[:at] + b"\0\0\0\0" + good[at + 4 :])
    refused(good[:20] + b"\xff" + good[21:])  # the header's checksum does not match


def test_a_png_text_bomb_is_refused() -> None:
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"\0" * 80_000_000, 9))
    good = encode(noise(8, 8))
    refused(good[:33] + bomb + good[33:])


@pytest.mark.parametrize("side", [7_072, 10_000, 20_000])  # 7072² is just over 50 million; Pillow warns of 10000²
def test_a_header_over_50_megapixels_is_refused_before_a_pixel_is_decoded(side: int) -> None:
    assert "50,000,000" in refused(png_header(side, side) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_50_megapixels_are_a_matter_of_the_whole_image() -> None:
    # 7071² < 50 million: the header passes, and the missing pixels are what is wrong
    assert "50,000,000" not in refused(png_header(7_071, 7_071) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_a_side_over_100_times_the_other_is_refused() -> None:
    assert pixels(encode(Image.new("RGB", (1, 100)))).shape == (100, 1, 3)
    assert "over 100 times" in refused(encode(Image.new("RGB", (1, 101))))


def test_an_image_of_no_pixels_is_refused() -> None:
    refused(png_header(0, 5) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_cut_files_are_never_filled_with_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False  # nobody here sets it
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "LOAD_TRUNCATED_IMAGES" in refused(encode(noise(8, 8)))


# Preprocessing

SIZES = [(16, 16), (17, 31), (31, 17), (500, 33), (33, 500), (3, 5), (1, 1), (640, 6), (15, 16), (100, 101)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_preprocess_is_clips_transform(size: tuple[int, int], mode: str) -> None:
    import torchvision.transforms as T

    # openai/CLIP, clip/clip.py, _transform
    theirs = T.Compose(
        [
            T.Resize(CLIP.size, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(CLIP.size),
            lambda image: image.convert("RGB"),
            T.ToTensor(),
            T.Normalize(CLIP.mean, CLIP.std),
        ]
    )
    image = noise(*size).convert(mode).convert("RGB")
    assert torch.equal(preprocessing.preprocess(image, CLIP), theirs(image))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_fraction", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_preprocess_is_timms_eval_transform(
    size: tuple[int, int], crop_fraction: float, interpolation: str, resize: str
) -> None:
    from timm.data.transforms_factory import transforms_imagenet_eval

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = Preprocessing(24, mean, std, resize, interpolation, crop_fraction)  # type: ignore[arg-type]  # parametrised
    theirs = transforms_imagenet_eval(
        24, crop_fraction, "squash" if resize == "squash" else "center", None, interpolation, mean, std
    )
    image = noise(*size)
    assert torch.equal(preprocessing.preprocess(image, spec), theirs(image))


CUT_SIZES = [*SIZES, (75, 50), (50, 75), (90, 60), (24, 120), (120, 24), (26, 25), (25, 26), (400, 30), (40, 300)]


@pytest.mark.parametrize("size", CUT_SIZES)
@pytest.mark.parametrize("crop_fraction", [0.8, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("resize", ["shortest", "shortest_floor", "squash"])
def test_what_the_crop_throws_away_changes_no_bit_of_the_rest(
    size: tuple[int, int], crop_fraction: float, interpolation: str, resize: str
) -> None:
    """Pillow resizes the whole image in one call, numpy cuts; on noise, and on bands, whose edges overshoot."""
    spec = Preprocessing(24, CLIP.mean, CLIP.std, resize, interpolation, crop_fraction)  # type: ignore[arg-type]  # parametrised
    shorter, whole = min(size), 30 if crop_fraction == 0.8 else 24
    width, height = (whole, whole) if resize == "squash" else (side * whole // shorter for side in size)
    half = math.floor if resize == "shortest_floor" else round
    left, top = half((width - 24) / 2), half((height - 24) / 2)
    how = Image.Resampling[interpolation.upper()]
    bands = np.repeat(np.asarray(noise(*size)), 3, axis=0)[: size[1]]
    for image in (noise(*size), Image.fromarray(bands)):
        expected = np.asarray(image.resize((width, height), how))[top : top + 24, left : left + 24]
        assert np.array_equal(preprocessing.to_uint8(image, spec).permute(1, 2, 0).numpy(), expected)


def test_an_unknown_pillow_resizes_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of its passes would be a guess, and another order is many levels off."""
    sizes = []
    resize = Image.Image.resize

    def seen(image: Image.Image, size: tuple[int, int], *rest: object) -> Image.Image:
        sizes.append((image.size, size))
        return resize(image, size, *rest)  # type: ignore[arg-type]  # handed on

    monkeypatch.setattr(Image.Image, "resize", seen)
    known = preprocessing.to_uint8(noise(50, 75), CLIP)
    assert len(sizes) == 2  # a call for each pass
    monkeypatch.setattr(preprocessing.PIL, "__version__", "99.1.0")
    assert torch.equal(preprocessing.to_uint8(noise(50, 75), CLIP), known)
    assert sizes[2:] == [((50, 75), (16, 24))]


def test_squash_is_domainbeds_evaluation_transform() -> None:
    import torchvision.transforms as T

    # DomainBed, datasets.py: Resize((224, 224)), ToTensor, Normalize
    spec = Preprocessing(24, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "squash", "bilinear")
    theirs = T.Compose([T.Resize((24, 24)), T.ToTensor(), T.Normalize(spec.mean, spec.std)])
    image = noise(50, 30)
    assert torch.equal(preprocessing.preprocess(image, spec), theirs(image))


def test_a_batch_is_normalised_like_its_images() -> None:
    batch = torch.stack([preprocessing.to_uint8(noise(40, 30, seed), CLIP) for seed in range(3)])
    assert batch.dtype == torch.uint8
    assert torch.equal(
        preprocessing.normalize(batch, CLIP),
        torch.stack([preprocessing.preprocess(noise(40, 30, s), CLIP) for s in range(3)]),
    )
    before = batch.float() / 255
    unit = before.clone()
    preprocessing.normalize(unit, CLIP)
    assert torch.equal(unit, before)  # its argument is left alone


# Augmentation


def test_augmentation_is_the_miniatures_recipe() -> None:
    # The recipe acts on (x/255 - 0.5)/0.27; the same draws in the same order must give the same image.
    batch = torch.stack([preprocessing.to_uint8(noise(30, 30, seed), PLAIN) for seed in range(5)])
    g = torch.Generator().manual_seed(3)
    x = (batch.float() / 255 - 0.5) / 0.27
    x = torch.where(torch.rand(5, 1, 1, 1, generator=g) < 0.5, x.flip(3), x)
    x = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    i, j = torch.randint(0, 5, (2,), generator=g)
    x = x[:, :, i : i + 20, j : j + 20]
    x = x * (1 + (torch.rand(5, 1, 1, 1, generator=g) - 0.5) * 0.4) + (torch.rand(5, 3, 1, 1, generator=g) - 0.5) * 0.4
    ours = preprocessing.augment_light(batch, torch.Generator().manual_seed(3))
    torch.testing.assert_close(preprocessing.normalize(ours, PLAIN), x, rtol=0, atol=1e-5)


def test_augmentation_leaves_the_global_generator_alone_and_repeats() -> None:
    batch = torch.stack([preprocessing.to_uint8(noise(30, 30, seed), PLAIN) for seed in range(4)])
    state = torch.get_rng_state()
    first = preprocessing.augment_light(batch, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, preprocessing.augment_light(batch, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, preprocessing.augment_light(batch, torch.Generator().manual_seed(2)))


def test_augmentation_of_grey_stays_within_its_limits() -> None:
    # mid-grey: flip, shift and contrast do nothing, so only the cast is left, and it is one number per channel
    grey = torch.full((64, 3, 20, 20), 128, dtype=torch.uint8)
    moved = preprocessing.augment_light(grey, torch.Generator().manual_seed(0)) - 128 / 255
    assert moved.abs().max() <= 0.054 + 0.2 * (128 / 255 - 0.5)
    assert moved.flatten(2).std(2).max() < 1e-6
    assert moved[:, :, 0, 0].std() == pytest.approx(0.108 / 12**0.5, rel=0.15)  # uniform: width / sqrt(12)


FAST_SIZES = [*SIZES, (500, 375), (375, 500), (1600, 1200), (25, 24), (24, 24)]


@pytest.mark.parametrize("size", FAST_SIZES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize", ["shortest", "shortest_floor", "squash"])
def test_fast_pixels_of_small_squares_are_at_most_one_level_off(
    size: tuple[int, int], interpolation: str, resize: str
) -> None:
    """Noise, whose neighbours differ by up to 255, is the hardest image there is."""
    exact = Preprocessing(24, CLIP.mean, CLIP.std, resize, interpolation)  # type: ignore[arg-type]  # parametrised
    image = noise(*size)
    theirs, ours = (preprocessing.to_uint8(image, spec).int() for spec in (exact, preprocessing.fast(exact)))
    assert ours.shape == (3, 24, 24)
    assert (ours - theirs).abs().max() <= 1


def test_fast_pixels_are_other_pixels_under_another_name() -> None:
    image = noise(75, 50)
    fast = preprocessing.fast(CLIP)
    assert fast != CLIP
    assert not torch.equal(preprocessing.to_uint8(image, fast), preprocessing.to_uint8(image, CLIP))
    assert torch.equal(
        preprocessing.to_uint8(noise(33, 500), fast), preprocessing.to_uint8(noise(33, 500), CLIP)
    )  # Pillow's turn
    nearest = dataclasses.replace(CLIP, interpolation="nearest")
    assert preprocessing.fast(nearest) == nearest
