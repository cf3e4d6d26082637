"""One photo: the bytes on disk -> the JPEG that goes into a shard, or the reason why it cannot.

A plain RGB JPEG that is not rotated by its EXIF tag is kept byte for byte. Everything else that can be
read is converted by these rules: first frame; EXIF rotation applied; 16-bit scaled to 8; transparent
parts on white; any colour model to RGB; shrunk to `Rules.max_side`; saved as JPEG without chroma
subsampling. A photo that says where it was taken loses its tags, not a pixel.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from shardtool import jpeg
from shardtool.similar import LOOK_SIDE, look

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
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8")
_BRANDS = tuple(b"ftyp" + brand for brand in (b"avif", b"heic", b"heix", b"mif1"))
# Luma and chroma factors that have a name: 4:4:4, 4:2:2, 4:4:0, 4:2:0, 4:1:1, 4:4:1.
_SAMPLINGS = frozenset(bytes((luma, 0x11, 0x11)) for luma in (0x11, 0x21, 0x12, 0x22, 0x41, 0x14))
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
    `check="header"` trusts the data behind a readable header. Raises Refused, MemoryError.
    """
    photo = _kept(data, rules) or _changed(data, check, rules)
    if check == "header":
        return photo
    seen = look(_decoded(photo.data))
    return Encoded(photo.data, photo.width, photo.height, photo.rule, photo.progressive, seen)


def _kept(data: bytes, rules: Rules) -> Encoded | None:
    """A plain JPEG as it is, judged by its header alone; None for all that needs a closer look."""
    header = jpeg.read_header(data)
    if header is None or header.tagged or header.precision != 8 or header.kind not in jpeg.COMMON:
        return None
    if header.sampling not in _SAMPLINGS:
        return None
    _check_size(header.width, header.height)
    if (rules.baseline and header.progressive) or 0 < rules.max_side < max(header.width, header.height):
        return None
    return Encoded(data, header.width, header.height, "", header.progressive)


def _changed(data: bytes, check: Check, rules: Rules) -> Encoded:
    if not data:
        raise Refused("empty", "0 bytes")
    with warnings.catch_warnings(), _opened(data) as image:
        warnings.simplefilter("ignore")  # Pillow reads tags late and warns about each odd one
        _check_size(*image.size)
        is_jpeg = image.format in _JPEG_FORMATS
        done = [conversion(image) or (_rare(data) if is_jpeg else "")]
        if check == "decode" and is_jpeg and image.mode in ("RGB", "L") and not done[0].startswith("rare"):
            _decoded(data)  # Pillow shrugs at damage that would be baked in
        if 0 < rules.max_side < max(image.size):
            done.append("shrunk")
        if any(done):
            if is_jpeg and jpeg.located(data):
                done.append("GPS removed")
            return _convert(image, ", ".join(filter(None, done)), rules)
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


def begins_like_an_image(start: bytes) -> bool:
    """Whether a file whose name does not tell may be a photo; TIFF is left out, raw camera files are TIFF."""
    return start.startswith(_STARTS) or start[8:12] == b"WEBP" or start[4:12] in _BRANDS


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
    """A rule for JPEGs that many decoders cannot read: lossless, hierarchical, arithmetic coding; colours
    sampled in ways that have no name."""
    header = jpeg.read_header(data)
    if header is None or (header.kind in jpeg.COMMON and header.sampling in _SAMPLINGS):
        return ""
    try:
        simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return "rare JPEG coding"
    return "" if header.kind in jpeg.COMMON else "rare JPEG coding"


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
    """The grey pixels [H, W], as few as `look` needs: all coefficients are read, so what is damaged fails
    here as it would in training; colours and sizes that nobody looks at are not made."""
    side = LOOK_SIDE
    try:
        decoded = simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=side, min_width=side)
        pixels: NDArray[np.uint8] = decoded[:, :, 0]
    except ValueError as error:
        raise Refused("damaged", str(error)) from None
    return pixels


def _convert(image: Image.Image, rule: str, rules: Rules) -> Encoded:
    out = io.BytesIO()
    try:
        size = _shrunk(image.size, rules.max_side)
        if size != image.size:  # the codec decodes no more than twice the size that is needed
            image.draft("RGB", (2 * max(size), 2 * max(size)))
        upright = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
        rgb = _rgb(upright)
        size = _shrunk(rgb.size, rules.max_side)
        if size != rgb.size:
            rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        # a comment in the source would be taken along, its EXIF not: only the pixels are wanted
        rgb.save(out, "JPEG", quality=rules.quality, subsampling=0, comment=b"")
    except MemoryError:
        raise
    except Exception as error:  # decoders of ten formats, each with its own exceptions
        raise Refused("damaged", f"{type(error).__name__}: {error}") from None
    return Encoded(out.getvalue(), rgb.width, rgb.height, rule)


def _shrunk(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height with a longer side of `side`, or as small as the shorter one may become."""
    if not 0 < side < max(size):
        return size
    scale = max(side / max(size), MIN_SIDE / min(size))
    return round(size[0] * min(scale, 1)), round(size[1] * min(scale, 1))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # PIL clips these to white; scale them
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        return page
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Whole numbers or floats as grey levels of 0 ... 255, some rows at a time: the image may be huge."""
    depth = np.asarray(image)
    white = _white(image.mode, float(np.nanmax(depth)))
    levels = np.empty(depth.shape, np.uint8)
    for top in range(0, len(depth), 64):
        rows = np.nan_to_num(depth[top : top + 64].astype(np.float64)).clip(0, white)
        levels[top : top + 64] = (rows / white * 255).round()
    return Image.fromarray(levels)


def _white(mode: str, highest: float) -> float:
    """The value of white in an image of whole numbers or floats, which do not tell it."""
    if mode == "F" and highest <= 2:  # 0 ... 1, with some glints
        return 1.0
    return 65535.0 if mode.startswith("I;16") or highest > 255 else 255.0
