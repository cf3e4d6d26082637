"""A region decoded alone has the pixels of the whole photo; whatever is in a file, decoding ends well.

As a script, it decodes mutated JPEGs: PYTHONPATH=. python tests/train/test_decode.py NUMBER SEED
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from train.decode import (
    HAS_REGIONS,
    MAX_PIXELS,
    SCALES,
    Box,
    Pixels,
    cut_out,
    decode,
    dimensions,
    region_alone,
    scaled_region,
)

ROOT = Path(__file__).resolve().parents[2]
FUZZ_SECONDS = 120
ImageFile.MAXBLOCK = 1 << 20  # Pillow's own room is too small for some optimised JPEGs

needs_extension = pytest.mark.skipif(
    not HAS_REGIONS, reason="train/_jpeg.c was not built: no compiler, or no libjpeg-turbo headers"
)


def photo(seed: int, width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    """A JPEG of a coarse pattern with noise on it, so that every block and its neighbours differ."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + random.normal(0, 15, smooth.shape), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def whole(data: bytes, eighths: int) -> Pixels:
    """All of a photo by simplejpeg."""
    width, height = (-(-side * eighths // 8) for side in dimensions(data))
    smallest = (width, height) if eighths < 8 else (0, 0)
    pixels: Pixels = simplejpeg.decode_jpeg(
        data, colorspace="RGB", min_width=smallest[0], min_height=smallest[1], strict=False
    )
    assert pixels.shape == (height, width, 3)
    return pixels


photos = st.builds(
    photo,
    seed=st.integers(0, 1000),
    width=st.integers(1, 130),
    height=st.integers(1, 130),
    mode=st.sampled_from(["RGB", "RGB", "RGB", "L"]),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    quality=st.integers(20, 99),
    progressive=st.booleans(),
    restart_marker_blocks=st.sampled_from([0, 0, 1, 3, 17]),
)


def boxes(width: int, height: int) -> st.SearchStrategy[Box]:
    def span(limit: int) -> st.SearchStrategy[tuple[int, int]]:
        edges = st.lists(st.integers(0, limit), min_size=2, max_size=2, unique=True)
        return edges.map(lambda pair: (min(pair), abs(pair[1] - pair[0])))

    return st.builds(lambda x, y: Box(x[0], y[0], x[1], y[1]), span(width), span(height))


@needs_extension
@given(st.data(), photos, st.integers(1, 8))
def test_a_region_has_the_pixels_of_the_whole_photo(data: st.DataObject, jpeg: bytes, eighths: int) -> None:
    assume(max(dimensions(jpeg)) >= 8)  # simplejpeg cannot be told the scale of smaller ones
    full = whole(jpeg, eighths)
    for _ in range(8):
        box = data.draw(boxes(full.shape[1], full.shape[0]))
        alone = region_alone(jpeg, eighths, box)
        assert alone is not None
        np.testing.assert_array_equal(alone, _part(full, box))


@given(st.data(), photos, st.integers(1, 140))
def test_with_and_without_the_extension_the_pixels_are_the_same(
    data: st.DataObject, jpeg: bytes, side: int
) -> None:
    size = dimensions(jpeg)
    box = data.draw(st.none() | boxes(*size))
    pixels, place = decode(jpeg, side, box)
    eighths, region = scaled_region(size, side, box or Box(0, 0, *size))
    assert place == Box(0, 0, region.width, region.height)
    np.testing.assert_array_equal(pixels, _part(whole(jpeg, eighths), region))
    np.testing.assert_array_equal(pixels, cut_out(jpeg, size, eighths, region))


@needs_extension
@pytest.mark.parametrize("folder", ["leaves", "photos"])
def test_regions_of_real_photos_have_the_pixels_of_the_whole(folder: str) -> None:
    files = sorted((ROOT.parent / "shared" / "data" / folder).glob("**/*.[jJ][pP]*g"))
    if not files:
        pytest.skip(f"needs the photos in ../shared/data/{folder}")
    random = np.random.default_rng(0)
    for file in random.choice(np.array(files), 30):
        jpeg = file.read_bytes()
        for eighths in SCALES:
            full = whole(jpeg, eighths)
            left, right = sorted(random.choice(full.shape[1] + 1, 2, replace=False).tolist())
            top, bottom = sorted(random.choice(full.shape[0] + 1, 2, replace=False).tolist())
            alone = region_alone(jpeg, eighths, Box(left, top, right - left, bottom - top))
            np.testing.assert_array_equal(alone, full[top:bottom, left:right])


@given(st.data(), st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 600))
def test_a_scaled_box_is_the_smallest_that_is_large_enough(
    data: st.DataObject, width: int, height: int, side: int
) -> None:
    assume(max(width, height) >= 8)
    box = data.draw(boxes(width, height))
    eighths, region = scaled_region((width, height), side, box)
    assert eighths in SCALES
    if eighths < 8:
        assert min(region.width, region.height) >= side
    else:
        assert region == box
    if eighths > 1:  # half the scale would have given too few pixels: up to rounding, half of these
        assert min(region.width, region.height) // 2 <= side
    scale = eighths / 8
    for start, length, there, pixels, whole_side in (
        (box.left, box.width, region.left, region.width, width),
        (box.top, box.height, region.top, region.height, height),
    ):
        limit = np.ceil(whole_side * scale)
        error = 0.5 if length * scale >= 1 else 1.5  # less than a pixel becomes one
        assert pixels >= 1
        assert 0 <= there <= start * scale + error
        assert there >= start * scale - error
        if start + length == whole_side:
            assert there + pixels == limit
        else:
            assert there + pixels <= limit
            assert abs(there + pixels - (start + length) * scale) <= error


@pytest.mark.parametrize(
    "box", [Box(0, 0, 0, 5), Box(0, 0, 5, 0), Box(-1, 0, 5, 5), Box(0, 20, 5, 11), Box(30, 0, 11, 5)]
)
def test_a_box_that_is_empty_or_reaches_beyond_is_refused(box: Box) -> None:
    with pytest.raises(ValueError, match="Box"):
        decode(photo(0, 40, 30), 8, box)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a" + bytes(100), photo(0, 40, 30)[:200]])
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        dimensions(data)
    with pytest.raises(ValueError, match=r"\w"):
        decode(data, 8)


def test_more_pixels_than_the_packer_takes_are_refused() -> None:
    jpeg = bytearray(photo(0, 40, 30))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match=f"20000 x 20000 pixels are more than {MAX_PIXELS}"):
        decode(bytes(jpeg), 8, Box(0, 0, 8, 8))


@needs_extension
def test_a_photo_of_hundreds_of_scans_is_refused() -> None:
    jpeg = photo(0, 40, 30, progressive=True)
    start = jpeg.index(b"\xff\xda")
    end = jpeg.index(b"\xff\xc4", start)  # the tables of the next scan
    with pytest.raises(ValueError, match="scans"):
        decode(jpeg[:start] + jpeg[start:end] * 300 + jpeg[end:], 8)


@given(st.data(), photos, st.booleans())
def test_damaged_pixels_are_made_up_as_simplejpeg_does(data: st.DataObject, jpeg: bytes, cut: bool) -> None:
    scan = jpeg.index(b"\xff\xda")
    place = data.draw(st.integers(scan + 2 + jpeg[scan + 3], len(jpeg) - 3))
    flipped = bytes([jpeg[place] ^ 1 << data.draw(st.integers(0, 7))])
    damaged = jpeg[:place] if cut else jpeg[:place] + flipped + jpeg[place + 1 :]
    size = dimensions(damaged)
    box = Box(size[0] // 4, size[1] // 4, size[0] // 2 + 1, size[1] // 2 + 1)
    try:
        expected = cut_out(damaged, size, 8, box)
    except ValueError:  # beyond repair; only a region above the damage may still decode
        assume(False)
    np.testing.assert_array_equal(decode(damaged, 130, box)[0], expected)


def test_memory_that_nobody_wrote_to_is_never_taken_for_pixels() -> None:
    """Of a progressive photo that ends in its second scan's tables, simplejpeg returns what was in memory."""
    jpeg = photo(0, 40, 30, progressive=True, quality=20)
    tables = jpeg.index(b"\xff\xc4", jpeg.index(b"\xff\xda"))
    with pytest.raises(ValueError, match="beyond repair"):
        decode(jpeg[: tables + 10], 30)


def test_a_photo_that_ends_too_soon_has_its_full_size() -> None:
    jpeg = photo(1, 120, 90, quality=95)
    pixels, _ = decode(jpeg[: len(jpeg) // 2], 90)
    np.testing.assert_array_equal(pixels[:30], whole(jpeg, 8)[:30])
    assert pixels.shape == (90, 120, 3)
    assert len(np.unique(pixels[-16:])) < 100 < len(np.unique(whole(jpeg, 8)[-16:]))


def test_cmyk_is_decoded_as_simplejpeg_does() -> None:
    jpeg = photo(2, 64, 48, mode="CMYK")
    pixels, _ = decode(jpeg, 48, Box(9, 0, 50, 48))
    np.testing.assert_array_equal(pixels, whole(jpeg, 8)[:, 9:59])


@needs_extension
def test_pixels_of_one_thread_are_left_alone_by_others() -> None:
    def last_of_many(seed: int) -> Pixels:
        for again in range(200):
            decode(jpegs[(seed + again) % len(jpegs)], 64, Box(0, 0, 70, 70))
        return decode(jpegs[seed], 64, Box(3, 5, 100, 80))[0]

    jpegs = [photo(seed, 110, 90) for seed in range(4)]
    with ThreadPoolExecutor(len(jpegs)) as pool:
        results = [pixels.copy() for pixels in pool.map(last_of_many, range(len(jpegs)))]
    for jpeg, pixels in zip(jpegs, results, strict=True):
        np.testing.assert_array_equal(pixels, whole(jpeg, 8)[5:85, 3:103])


@needs_extension
def test_memory_for_pixels_is_used_again() -> None:
    jpeg = photo(0, 110, 90)
    larger, _ = decode(jpeg, 90)
    smaller, _ = decode(jpeg, 40, Box(5, 5, 40, 40))
    assert np.shares_memory(larger, smaller)


@needs_extension
def test_the_extension_refuses_memory_that_does_not_fit() -> None:
    from train import _jpeg

    jpeg = photo(0, 40, 30)
    for width, height, room in ((20, 10, 599), (20, 10, 601), (2**31, 2**31, 12), (0, 0, 3)):
        with pytest.raises(ValueError, match="do not fit"):
            _jpeg.decode(jpeg, 8, 0, 0, width, height, np.empty(room, np.uint8))
    for eighths in (-1, 0, 9):
        with pytest.raises(ValueError, match="do not fit"):
            _jpeg.decode(jpeg, eighths, 0, 0, 4, 4, np.empty(48, np.uint8))
    for left, top in ((37, 0), (0, 27), (2**32 - 1, 0), (0, 2**32 - 4)):
        assert not _jpeg.decode(jpeg, 8, left, top, 4, 4, np.empty(48, np.uint8))
    with pytest.raises(TypeError, match="read-write"):
        _jpeg.decode(jpeg, 8, 0, 0, 1, 1, b"abc")  # type: ignore[arg-type]


def test_mutated_photos_decode_or_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, __file__, "400", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=FUZZ_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    decoded, refused = map(int, done.stdout.split())
    assert decoded + refused == 400
    assert min(decoded, refused) > 20


def _part(pixels: Pixels, box: Box) -> Pixels:
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def _mutant(random: np.random.Generator, jpeg: bytes) -> bytes:
    """Cut, with bits flipped anywhere or in the header, or with bytes of the header set to extremes."""
    data, kind = bytearray(jpeg), random.integers(4)
    if kind == 0:
        return jpeg[: random.integers(len(jpeg))]
    header = jpeg.index(b"\xff\xda") + 16
    for place in random.integers(2, len(data) if kind == 1 else header, random.integers(1, 6)):
        if kind == 3:
            data[place] = random.choice([0, 1, 127, 128, 254, 255])
        else:
            data[place] ^= 1 << random.integers(8)
    return bytes(data)


def _fuzz(count: int, seed: int) -> tuple[int, int]:
    """How many mutants decoded, and how many were refused with ValueError."""
    random = np.random.default_rng(seed)
    kinds: list[dict[str, Any]] = [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2", "restart_marker_blocks": 3},
        {"subsampling": "4:4:4", "progressive": True},
        {"subsampling": "4:2:0", "progressive": True},
        {"mode": "L"},
    ]
    jpegs = [photo(number, 97, 75, **kind) for number, kind in enumerate(kinds)]
    decoded = 0
    for number in range(count):
        data = _mutant(random, jpegs[number % len(jpegs)])
        try:
            width, height = dimensions(data)
            left, top = int(random.integers(width)), int(random.integers(height))
            box = Box(
                left, top, int(random.integers(width - left)) + 1, int(random.integers(height - top)) + 1
            )
            decode(data, int(random.integers(1, 80)), box)
        except ValueError:
            continue
        decoded += 1
    return decoded, count - decoded


if __name__ == "__main__":
    print(*_fuzz(int(sys.argv[1]), int(sys.argv[2])))
