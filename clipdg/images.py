"""Image bytes -> RGB -> tensor: the one decode policy, and the preprocessing that travels with the weights.

Every image of every source passes through ``decode``; ``POLICY`` names what it does and is part of a stored feature's
key. What Pillow would let pass with a wrong or doubtful content is either given its one meaning here or refused:

    formats         JPEG (with MPO, as phones write it: its main picture), PNG, WebP, BMP, TIFF, GIF, told by their
                    content and never by their name
    header          checked before a pixel is decoded: at most 50 megapixels, no side over 100 times the other
    frames          more than one is refused (animations, multi-page TIFF): nothing says which one the label means
    cut, broken     refused, also where LOAD_TRUNCATED_IMAGES would pass them with grey or black pixels
    EXIF            the orientation is applied; one that is corrupt or senseless counts as upright
    16-bit grey     v / 257, rounded; Pillow alone turns it white. 16 bits a channel: the high byte
    32-bit, float   refused: their range is not known
    grey, 1-bit, palette, CMYK, YCbCr    Pillow's ``convert("RGB")``; ICC profiles are not applied, as in CLIP
    transparency    opaque pixels as in ``convert("RGB")``; the others over white. ``convert("RGB")`` would uncover
                    the colours that lie hidden under transparent pixels. Nothing but transparent pixels: refused

Legend: N images, S pixels a side.
"""

from __future__ import annotations

import io
import math
import threading
import warnings
from dataclasses import replace

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from clipdg.core import Preprocessing
from clipdg.errors import DataError

POLICY = "1"  # counted up with every change of a decoded pixel
MAX_PIXELS = 50_000_000
MAX_ASPECT = 100  # resized by its shorter side to 224, such an image already has 22,400 pixels on the longer

ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # MPO is found through JPEG
_READABLE = "JPEG, PNG, WebP, BMP, TIFF and GIF"
_PLAIN = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_ALPHA = ("LA", "PA", "RGBA", "La", "RGBa")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
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
_warnings_lock = threading.Lock()  # catch_warnings swaps a list that all threads share


def decode(data: bytes, where: str) -> Image.Image:
    """The RGB image in ``data``.

    Raises:
        DataError: ``where``, followed by what is wrong.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            f"{where} was not decoded: PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set in this process and would fill "
            "what is missing from cut files with grey; set it to False"
        )
    refusal = not_an_image(data)
    if refusal is not None:
        raise DataError(f"{where} {refusal}")
    try:
        # Pillow warns of headers over 89 megapixels and of odd metadata; the first is refused below, the second has
        # no pixels. Under the lock only the header is read.
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
            frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except Image.DecompressionBombError:
        raise DataError(f"{where} claims more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # a broken header makes Pillow raise almost anything: OSError, SyntaxError, struct.error
        raise DataError(f"{where} cannot be read as an image: {_reason(error)}") from error
    _check_header(image, frames, where)
    try:
        image.load()
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = _orientation(image)
        image = _to_rgb(image, where)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{where} is cut or broken: {_reason(error)}") from error
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def not_an_image(head: bytes) -> str | None:
    """What a file is that begins with ``head`` (a few dozen bytes) and is none of the formats read here, or None.

    The answer continues a sentence that begins with the file's name.
    """
    if not head:
        return "is empty: 0 bytes"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")):
        return None
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return None
    return f"is {_kind(head)}, not an image that is read here ({_READABLE})"


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


def _check_header(image: Image.Image, frames: bool, where: str) -> None:
    width, height = image.size
    if min(width, height) < 1:
        raise DataError(f"{where} has no pixels: {width} × {height}")
    if width * height > MAX_PIXELS:
        raise DataError(f"{where} claims {width:,} × {height:,} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"{where} has {width:,} × {height:,} pixels: one side is over {MAX_ASPECT} times the other")
    if frames:
        raise DataError(
            f"{where} holds several pictures ({image.format}), and nothing says which one the label means; "
            "save the one that is meant as an image of its own"
        )
    if image.mode not in _PLAIN + _ALPHA and not image.mode.startswith("I;16"):
        raise DataError(
            f"{where} has pixels of mode {image.mode}, whose range is not known; save it with 8 or 16 bits a channel"
        )


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # corrupt EXIF: the pixels are whole, and upright is what every viewer shows
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        deep = np.asarray(image).astype(np.uint32)
        grey = Image.fromarray(((deep + 128) // 257).astype(np.uint8))  # 65535 / 257 = 255
        if key is None:
            return grey.convert("RGB")
        grey.putalpha(Image.fromarray(np.where(deep == key, 0, 255).astype(np.uint8)))
        image = grey
    elif image.mode not in _ALPHA and key is None:
        return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    rgba = image.convert("RGBA")
    alpha = np.asarray(rgba)[..., 3]
    if alpha.max() == 0:
        raise DataError(f"{where} shows nothing: all of its pixels are transparent")
    if alpha.min() == 255:
        return rgba.convert("RGB")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _kind(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page (a failed download?)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (`git lfs pull` fetches the file itself)"
    if text.startswith((b"<svg", b"<?xml")):
        return "an SVG drawing or another XML document"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive"
    if head.startswith((b"%PDF", b"%!PS")):
        return "a PDF or PostScript document"
    if head[4:8] == b"ftyp":
        return f"a container of kind '{head[8:12].decode('ascii', 'replace').strip()}' (AVIF, HEIC, a video)"
    return f"a file that begins with {head[:8].hex(' ')}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message is the address of a buffer
        return "its header is broken"
    return " ".join(str(error).split())[:200] or type(error).__name__
