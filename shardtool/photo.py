"""One photo: the bytes on disk -> the JPEG that goes into a shard, or the reason why it cannot.

A plain RGB JPEG that is not rotated by its EXIF tag is kept byte for byte. Everything else that can be
read is converted by these rules: first frame; EXIF rotation applied; 16-bit scaled to 8; transparent
parts on white; any colour model to RGB; shrunk to `Rules.max_side`; saved as JPEG without chroma
subsampling. A photo that says where it was taken loses its tags, not a pixel.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shardtool import jpeg
from shardtool.similar import look

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
class Rules:
    """How photos are changed on their way into a shard; the same rules, the same bytes."""

    max_side: int = 0  # shrink what is longer, 0: never
    quality: int = 95  # of every JPEG that is made anew
    baseline: bool = False  # rewrite progressive JPEGs without loss


KEEP = Rules()


@dataclass(frozen=True)
class Encoded:
    """A JPEG ready for a shard; `rule` is "" for kept bytes, else what was changed.

    `look` is the perceptual hash (b"" when nothing was decoded, or nothing is to be seen).
    """

    data: bytes
    width: int
    height: int
    rule: str
    progressive: bool = False
    look: bytes = field(default=b"", compare=False)


def encode(data: bytes, check: Check = "decode", rules: Rules = KEEP) -> Encoded:
    """Turn the bytes of an image file into the bytes of a shard member.

    `check="decode"` decodes every pixel, so that a photo that would fail in training is refused now;
    `check="header"` trusts the data behind a readable header. Raises Refused.
    """
    photo = _kept(data, rules) or _changed(data, rules)
    if check == "header":
        return photo
    return replace(photo, look=look(_decoded(photo.data)))


def _kept(data: bytes, rules: Rules) -> Encoded | None:
    """A plain JPEG as it is, judged by its header alone; None for all that needs a closer look."""
    header = jpeg.read_header(data)
    if header is None or header.tagged or header.precision != 8 or header.components != 3:
        return None
    if header.kind not in jpeg.COMMON:
        return None
    _check_size(header.width, header.height)
    if (rules.baseline and header.progressive) or 0 < rules.max_side < max(header.width, header.height):
        return None
    return Encoded(data, header.width, header.height, "", header.progressive)


def _changed(data: bytes, rules: Rules) -> Encoded:
    if not data:
        raise Refused("empty", "0 bytes")
    with warnings.catch_warnings(), _opened(data) as image:
        warnings.simplefilter("ignore")  # Pillow reads tags late and warns about each odd one
        _check_size(*image.size)
        rule = conversion(image) or _rare(data)
        if 0 < rules.max_side < max(image.size):
            rule = f"{rule}, shrunk" if rule else "shrunk"
        if rule:
            return _convert(image, rule, rules)
    return _rewritten(data, *image.size, rules)


def _rewritten(data: bytes, width: int, height: int, rules: Rules) -> Encoded:
    """A plain JPEG with the changes that leave its pixels alone."""
    done = []
    if jpeg.located(data):
        data = jpeg.without_tags(data)
        done.append("GPS removed")
    header = jpeg.read_header(data)
    progressive = header is not None and header.progressive
    if progressive and rules.baseline:
        try:
            data = jpeg.as_baseline(data)
        except ValueError as error:
            raise Refused("damaged", str(error)) from None
        done.append("progressive to baseline")
        progressive = False
    return Encoded(data, width, height, ", ".join(done), progressive)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise Refused("too large", f"{width} x {height} pixels")
    if min(width, height) < MIN_SIDE:
        raise Refused("too small", f"{width} x {height} pixels")


def conversion(image: Image.Image) -> str:
    """Why this image cannot be kept as it is, "" if it can."""
    if image.format not in _JPEG_FORMATS:
        return f"{image.format} to JPEG"
    if image.mode != "RGB":
        return f"{image.mode} to RGB"
    if _orientation(image) != 1:
        return "EXIF rotation"
    return ""


def _rare(data: bytes) -> str:
    """A rule for JPEGs that many decoders cannot read: lossless, hierarchical, arithmetic coding."""
    header = jpeg.read_header(data)
    return "" if header is None or header.kind in jpeg.COMMON else "rare JPEG coding"


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


def _decoded(data: bytes) -> NDArray[np.uint8]:
    """The grey pixels [H, W]: all coefficients are read, so what is damaged fails here as it would in
    training, and the colours, which nobody looks at, are not made."""
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]
    except ValueError as error:
        raise Refused("damaged", str(error)) from None
    return pixels


def _convert(image: Image.Image, rule: str, rules: Rules) -> Encoded:
    out = io.BytesIO()
    side = rules.max_side
    try:
        if 0 < side < max(image.size):
            image.draft("RGB", (2 * side, 2 * side))  # decodes no more than twice the size it needs
        upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        rgb = _rgb(upright)
        if 0 < side < max(rgb.size):
            rgb.thumbnail((side, side), Image.Resampling.LANCZOS)
        # a comment in the source would be taken along, its EXIF not: only the pixels are wanted
        rgb.save(out, "JPEG", quality=rules.quality, subsampling=0, comment=b"")
    except Exception as error:  # decoders of ten formats, each with its own exceptions
        raise Refused("damaged", f"{type(error).__name__}: {error}") from None
    _check_size(*rgb.size)
    return Encoded(out.getvalue(), rgb.width, rgb.height, rule)


def _white(mode: str, highest: float) -> float:
    """The value of white in an image of whole numbers or floats, which do not tell it."""
    if mode == "F" and highest <= 1:
        return 1.0
    return 65535.0 if mode.startswith("I;16") or highest > 255 else 255.0


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # PIL clips these to white; scale them
        depth = np.asarray(image).astype(np.float64)
        top = _white(image.mode, depth.max())
        image = Image.fromarray((depth.clip(0, top) / top * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(page, image)
    return image.convert("RGB")
