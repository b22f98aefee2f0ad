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
import threading
import warnings

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from clipdg.core.errors import DataError

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
