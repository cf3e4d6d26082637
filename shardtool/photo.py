"""One photo: the bytes on disk -> the JPEG that goes into a shard, or the reason why it cannot.

A plain RGB JPEG that is not rotated by its EXIF tag is kept byte for byte. Everything else that can be
read is converted by these rules: first frame; EXIF rotation applied; 16-bit scaled to 8; transparent
parts on white; any colour model to RGB; saved as JPEG, quality 95, no chroma subsampling.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

Check = Literal["decode", "header"]
Reason = Literal[
    "empty",
    "not an image",
    "damaged",
    "too large",
    "too small",
    "not a regular file",
    "unreadable",
    "misplaced",
    "label conflict",
    "leak",
]

MIN_SIDE = 8
MAX_PIXELS = 128 * 1024 * 1024
MAX_SIDE = 65_500  # of a JPEG, by libjpeg
_ORIENTATION = 0x0112
_JPEG_FORMATS = ("JPEG", "MPO")
# Pillow reads forty formats, one of them (EPS) by starting a program: these are what cameras and people use.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "AVIF", "PPM")


class Refused(Exception):
    """This photo cannot be used; `reason` is one of the counted reasons, `detail` says more."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason: Reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


@dataclass(frozen=True)
class Encoded:
    """A JPEG ready for a shard; `rule` is "" for kept bytes, else what was converted."""

    data: bytes
    width: int
    height: int
    rule: str


def encode(data: bytes, check: Check = "decode") -> Encoded:
    """Turn the bytes of an image file into the bytes of a shard member.

    `check="decode"` decodes every pixel, so that a photo that would fail in training is refused now;
    `check="header"` trusts the data behind a readable header. Raises Refused.
    """
    if not data:
        raise Refused("empty", "0 bytes")
    with warnings.catch_warnings(), _opened(data) as image:
        warnings.simplefilter("ignore")  # Pillow reads tags late and warns about each odd one
        width, height = image.size
        if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
            raise Refused("too large", f"{width} x {height} pixels")
        if min(width, height) < MIN_SIDE:
            raise Refused("too small", f"{width} x {height} pixels")
        rule = conversion(image)
        if rule:
            return _convert(image, rule)
    if check == "decode":
        _decode_all(data)
    return Encoded(data, width, height, "")


def conversion(image: Image.Image) -> str:
    """Why this image cannot be kept as it is, "" if it can."""
    if image.format not in _JPEG_FORMATS:
        return f"{image.format} to JPEG"
    if image.mode != "RGB":
        return f"{image.mode} to RGB"
    if _orientation(image) != 1:
        return "EXIF rotation"
    return ""


def _orientation(image: Image.Image) -> int:
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF is written by thousands of programs; a broken one says nothing
        return 1
    return orientation if 2 <= orientation <= 8 else 1


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes are judged by `encode`, odd EXIF is no fault
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise Refused("not an image", f"starts with {data[:12]!r}") from None
    except Image.DecompressionBombError as error:
        raise Refused("too large", str(error)) from None
    except Exception as error:  # a broken header raises whatever its parser trips over
        raise Refused("damaged", f"{type(error).__name__}: {error}") from None


def _decode_all(data: bytes) -> None:
    try:
        simplejpeg.decode_jpeg(data, colorspace="RGB")
    except ValueError as error:
        raise Refused("damaged", str(error)) from None


def _convert(image: Image.Image, rule: str) -> Encoded:
    out = io.BytesIO()
    try:
        upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        rgb = _rgb(upright)
        # a comment in the source would be taken along, its EXIF not: only the pixels are wanted
        rgb.save(out, "JPEG", quality=95, subsampling=0, comment=b"")
    except Exception as error:  # decoders of ten formats, each with its own exceptions
        raise Refused("damaged", f"{type(error).__name__}: {error}") from None
    return Encoded(out.getvalue(), rgb.width, rgb.height, rule)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # PIL clips these to white; scale them
        depth = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or depth.max() > 255 else 255.0
        image = Image.fromarray((depth.clip(0, top) / top * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image)
    return image.convert("RGB")
