"""Only the pixels that a crop needs: a region of a JPEG, at the smallest scale that is large enough.

`train/_jpeg.c` decodes the rows and columns of the region alone. Where it was not built (no compiler, no
libjpeg-turbo headers), simplejpeg decodes the whole photo and the region is cut out: the same pixels, later.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

try:
    from train import _jpeg
except ImportError:
    HAS_REGIONS = False
else:
    HAS_REGIONS = True

Pixels = NDArray[np.uint8]  # H, W, 3
MAX_PIXELS = 128 * 1024 * 1024  # of a photo; the packer refuses larger ones
EIGHTHS = 8
# In eighths. The codec has 3, 5, 6 and 7 too, without vector code: they take longer than the next larger one.
SCALES = (1, 2, 4, 8)


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG from its header. Raises ValueError, for more than MAX_PIXELS too."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except KeyError as error:  # how simplejpeg 1.9 says that it does not know a subsampling
        raise ValueError("no JPEG, or one with an unknown subsampling") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
    return int(width), int(height)


def decode(data: bytes, side: int, box: Box | None = None) -> tuple[Pixels, Box]:
    """RGB pixels uint8 [h, w, 3] of `box` (in pixels of the photo; None: all of it) and where the box lies in
    them, at the smallest of SCALES at which both sides have at least `side` pixels, or else unscaled. They
    are valid until the same thread decodes again: fresh memory costs page faults.

    Raises ValueError for data that does not decode and for a box that is not inside. As in simplejpeg with
    strict=False, pixel data that is damaged or ends too soon is no error: what is missing is made up.
    """
    size = dimensions(data)
    eighths, region = scaled_region(size, side, box or Box(0, 0, *size))
    pixels = region_alone(data, eighths, region)
    if pixels is None:
        pixels = cut_out(data, size, eighths, region)
    return pixels, Box(0, 0, region.width, region.height)


def cut_out(data: bytes, size: tuple[int, int], eighths: int, region: Box) -> Pixels:
    """The region of a photo of `size` decoded whole at eighths/8. Raises ValueError."""
    try:
        photo = _whole(data, size, eighths)
    except ValueError:
        photo = _whole_if_damaged(data, size, eighths)
    return photo[region.top : region.top + region.height, region.left : region.left + region.width]


def _whole(data: bytes, size: tuple[int, int], eighths: int, **options: Any) -> Pixels:
    # simplejpeg is told sizes, not scales, and without any it does not scale
    width, height = (_scaled(side, eighths) for side in size) if eighths < EIGHTHS else (0, 0)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_width=width, min_height=height, **options
    )
    return pixels


def _whole_if_damaged(data: bytes, size: tuple[int, int], eighths: int) -> Pixels:
    """simplejpeg 1.9 takes an error that follows a warning for a warning, too, and then returns memory that
    nobody wrote to: such pixels differ where the memory did."""
    room = _scaled(size[0], eighths) * _scaled(size[1], eighths) * 3
    black, white = (
        _whole(data, size, eighths, strict=False, buffer=np.full(room, grey, dtype=np.uint8))
        for grey in (0, 255)
    )
    if not np.array_equal(black, white):
        raise ValueError("the JPEG's pixel data is damaged beyond repair")
    return black


def region_alone(data: bytes, eighths: int, region: Box) -> Pixels | None:
    """The same pixels, nothing else decoded; None where the extension is not there or leaves the photo to
    simplejpeg: one in CMYK, a damaged progressive one, one with an error. Raises ValueError for a photo of
    hundreds of scans, each of which may cost seconds."""
    if not HAS_REGIONS:
        return None
    pixels = _room.pixels(region.height, region.width)
    return pixels if _jpeg.decode(data, eighths, *region, pixels) else None


class _Room(threading.local):
    """Memory for one photo in each thread."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def pixels(self, height: int, width: int) -> Pixels:
        size = height * width * 3
        if len(self._bytes) < size:
            self._bytes = np.empty(size, dtype=np.uint8)
        return self._bytes[:size].reshape(height, width, 3)


_room = _Room()


def scaled_region(size: tuple[int, int], side: int, box: Box) -> tuple[int, Box]:
    """The scale in eighths for a box of a photo of `size` (width, height), and the box at that scale, its
    edges rounded to the nearest pixels. Raises ValueError for a box that is empty or reaches beyond."""
    width, height = size
    if min(box) < 0 or not box.width or not box.height:
        raise ValueError(f"{box} has no pixels")
    if box.left + box.width > width or box.top + box.height > height:
        raise ValueError(f"{box} reaches beyond {width} x {height} pixels")
    # a photo of fewer than eight pixels a side has the same size at several scales: see _whole
    for eighths in SCALES if max(size) >= EIGHTHS else SCALES[-1:]:
        left, columns = _span(box.left, box.width, width, eighths)
        top, rows = _span(box.top, box.height, height, eighths)
        if columns >= side and rows >= side:
            break
    return eighths, Box(left, top, columns, rows)


def _span(start: int, length: int, whole: int, eighths: int) -> tuple[int, int]:
    """Start and length of a stretch of a side of `whole` pixels, scaled; at least one pixel long."""
    limit = _scaled(whole, eighths)
    first = min(_nearest(start, eighths), limit - 1)
    # the last pixel of a scaled photo may stand for fewer pixels than the others
    last = limit if start + length == whole else _nearest(start + length, eighths)
    return first, max(last - first, 1)


def _nearest(edge: int, eighths: int) -> int:
    return (edge * eighths + EIGHTHS // 2) // EIGHTHS


def _scaled(length: int, eighths: int) -> int:
    """The side of a photo as the codec scales it."""
    return -(-length * eighths // EIGHTHS)
