"""JPEG files as segments: what a header says, and changes that leave every pixel as it is."""

from __future__ import annotations

import io
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from shardtool import jpeg, photo

ROTATED, PLACE = {0x0112: 6}, {ExifTags.IFD.GPSInfo: {1: "N", 2: (52.0, 31.0, 12.0)}}
XMP = b'<x:xmpmeta><rdf:Description exif:GPSLatitude="52,31N"/></x:xmpmeta>'
needs_jpegtran = pytest.mark.skipif(
    shutil.which("jpegtran") is None, reason="needs jpegtran (Debian: libjpeg-turbo-progs)"
)


def saved(exif: dict[int, object] | None = None, kind: str = "JPEG", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    tags = Image.Exif()
    for tag, value in (exif or {}).items():
        tags[tag] = value
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **({"exif": tags} if exif else {}), **options)
    return out.getvalue()


def pixels(data: bytes) -> list[int]:
    return simplejpeg.decode_jpeg(data).ravel().tolist()


def test_a_header_tells_the_frame() -> None:
    assert jpeg.read_header(saved()) == jpeg.Header(0xC0, 8, 40, 24, b"\x22\x11\x11", False)
    progressive = jpeg.read_header(saved(progressive=True))
    assert progressive is not None
    assert progressive.progressive


@pytest.mark.parametrize(
    ("exif", "tagged"), [({0x010F: "Camera"}, False), ({0x0112: 1}, False), (ROTATED, True), (PLACE, True)]
)
def test_only_tags_that_turn_a_photo_or_tell_its_place_need_a_closer_look(
    exif: dict[int, object], tagged: bool
) -> None:
    header = jpeg.read_header(saved(exif))
    assert header is not None
    assert header.tagged == tagged


@pytest.mark.parametrize(
    ("xmp", "tagged"),
    [
        (b"<x:xmpmeta/>", False),
        (b'<rdf:Description tiff:Orientation="1"/>', False),
        (b'<rdf:Description tiff:Orientation="6"/>', True),
        (b"<tiff:Orientation>8</tiff:Orientation>", True),
        (XMP, True),
    ],
)
def test_xmp_is_judged_likewise(xmp: bytes, tagged: bool) -> None:
    header = jpeg.read_header(saved(xmp=xmp))
    assert header is not None
    assert header.tagged == tagged


@given(st.binary(max_size=300))
def test_any_bytes_are_a_header_or_none(data: bytes) -> None:
    jpeg.read_header(data)
    jpeg.read_header(b"\xff\xd8" + data)
    jpeg.without_tags(b"\xff\xd8" + data)
    jpeg.located(b"\xff\xd8" + data)


@given(st.integers(2, 600), st.integers(0, 255))
def test_a_damaged_header_says_what_pillow_says_or_nothing(place: int, value: int) -> None:
    data = bytearray(saved({0x010F: "Camera"}))
    data[place] = value
    header = jpeg.read_header(bytes(data))
    if header is not None and len(header.sampling) == 3 and header.precision == 8:
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                assert image.size == (header.width, header.height)
        except (OSError, SyntaxError, ValueError, struct.error):
            pass  # Pillow looks at more, and the decoder has the last word


def test_a_place_is_found_in_exif_and_in_xmp() -> None:
    assert jpeg.located(saved(PLACE))
    assert jpeg.located(saved(xmp=XMP))
    assert not jpeg.located(saved({0x010F: "Camera"}))
    assert not jpeg.located(saved())


@pytest.mark.parametrize("behind", [True, False])
def test_a_place_is_found_wherever_it_hides(behind: bool) -> None:
    other = saved(PLACE)
    data = (
        saved() + bytes(20) + other if behind else saved({0x010F: "Camera"}, xmp="GPSL".encode("utf-16-le"))
    )
    header = jpeg.read_header(data)
    assert header is not None
    assert header.tagged
    assert jpeg.located(data)
    assert not jpeg.located(jpeg.without_tags(data))


def test_a_crowd_of_pictures_in_one_file_takes_no_time_and_no_stack() -> None:
    segment = b"\xff\xe1\x00\x25http://ns.adobe.com/xmp/extension/\0"
    data = saved()[:2] + segment + saved()[2:] + b"\xff\xd8\xff\xd9" * 100_000
    assert not jpeg.located(data)
    assert photo.encode(data).data == data


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"icc_profile": b"profile"}])
def test_without_tags_every_pixel_stays_and_no_place(options: dict[str, object]) -> None:
    data = saved(PLACE, xmp=XMP, **options) + b"trailer with GPSLatitude"
    bare = jpeg.without_tags(data)
    assert not jpeg.located(bare)
    assert b"GPS" not in bare
    assert b"Exif" not in bare
    assert pixels(bare) == pixels(data)
    with Image.open(io.BytesIO(bare)) as image:
        assert image.info.get("icc_profile") == options.get("icc_profile")


def test_of_several_pictures_in_a_file_the_first_is_kept() -> None:
    second = Image.new("RGB", (40, 24), "red")
    data = saved(PLACE, "MPO", save_all=True, append_images=[second])
    bare = jpeg.without_tags(data)
    assert len(bare) < len(data) - 600
    with Image.open(io.BytesIO(bare)) as image:
        assert image.format == "JPEG"
    assert pixels(bare) == pixels(data)


@needs_jpegtran
def test_a_progressive_photo_becomes_baseline_without_loss() -> None:
    data = saved(progressive=True, icc_profile=b"profile")
    header = jpeg.read_header(jpeg.as_baseline(data))
    assert header is not None
    assert not header.progressive
    assert pixels(jpeg.as_baseline(data)) == pixels(data)
    with Image.open(io.BytesIO(jpeg.as_baseline(data))) as image:
        assert image.info["icc_profile"] == b"profile"


@needs_jpegtran
def test_what_jpegtran_cannot_read_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"."):
        jpeg.as_baseline(b"\xff\xd8no picture")


def test_the_header_alone_judges_real_photos_as_the_closer_look_does(real_leaves: Path) -> None:
    judged = 0
    for path in sorted(real_leaves.rglob("*.jp*g"))[::11]:
        data = path.read_bytes()
        if (kept := photo._kept(data, photo.KEEP)) is not None:
            assert kept == photo._changed(data, "header", photo.KEEP), path
            judged += 1
    assert judged > 500
