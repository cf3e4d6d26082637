"""One photo in, one JPEG out: what is kept, what is converted and how, what is refused and why."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from shardtool.photo import KEEP, MAX_PIXELS, Encoded, Refused, Rules, encode

ORIENTATION = 0x0112
RED, GREEN, BLUE, WHITE = (220, 30, 40), (20, 160, 60), (30, 40, 200), (255, 255, 255)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(photo: Encoded) -> NDArray[np.int64]:
    """What a reader of the shard sees; fails unless it is a plain RGB JPEG of the size that was told."""
    with Image.open(io.BytesIO(photo.data)) as image:
        assert (image.format, image.mode) == ("JPEG", "RGB")
        assert image.size == (photo.width, photo.height)
        assert image.getexif().get(ORIENTATION, 1) == 1
        return np.asarray(image).astype(np.int64)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (32, 16), left)
    image.paste(right, (16, 0, 32, 16))
    return image


def assert_colours(photo: Encoded, left: tuple[int, ...], right: tuple[int, ...], near: int = 8) -> None:
    seen = pixels(photo)
    assert seen.shape == (16, 32, 3)
    np.testing.assert_allclose(seen[8, 4], left, atol=near)
    np.testing.assert_allclose(seen[8, 28], right, atol=near)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(halves(RED, BLUE), "JPEG", quality=95, subsampling=0, exif=exif)


def refusal(data: bytes, **options: Any) -> str:
    with pytest.raises(Refused) as caught:
        encode(data, **options)
    assert caught.value.detail
    return caught.value.reason


# --- Kept --------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", ["decode", "header"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_a_plain_jpeg_is_kept_byte_for_byte(check: Any, options: dict[str, Any]) -> None:
    data = saved(halves(RED, BLUE), "JPEG", **options)
    assert encode(data, check) == Encoded(data, 32, 16, "", "progressive" in options)


def test_an_upright_jpeg_with_exif_is_kept_byte_for_byte() -> None:
    assert encode(turned(1)).data == turned(1)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_a_rotation_that_does_not_exist_is_no_reason_to_encode_again(orientation: int) -> None:
    assert encode(turned(orientation)).data == turned(orientation)


def test_a_jpeg_with_broken_exif_is_kept() -> None:
    data = saved(halves(RED, BLUE), "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    assert encode(data).data == data


# --- Converted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (halves(RED, BLUE), "PNG"),
        (halves(RED, BLUE), "BMP"),
        (halves(RED, BLUE), "TIFF"),
        (halves(RED, BLUE), "PPM"),
        (halves(RED, BLUE).quantize(4), "PNG"),
        (halves(RED, BLUE).quantize(4), "GIF"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.mode,
)
def test_other_formats_become_jpegs_of_the_same_colours(image: Image.Image, kind: str) -> None:
    photo = encode(saved(image, kind))
    assert photo.rule == f"{kind} to JPEG"
    assert_colours(photo, RED, BLUE)


def test_a_webp_becomes_a_jpeg() -> None:
    photo = encode(saved(halves(RED, BLUE), "WEBP", lossless=True))
    assert photo.rule == "WEBP to JPEG"
    assert_colours(photo, RED, BLUE)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = {"save_all": True, "append_images": [halves(GREEN, GREEN)]}
    assert_colours(encode(saved(halves(RED, BLUE), kind, **frames, **options)), RED, BLUE)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_parts_become_white(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = halves((*RED, 255), (*BLUE, 0), "RGBA")
    assert_colours(encode(saved(image, kind, **options)), RED, WHITE)


def test_half_transparent_parts_are_mixed_with_white() -> None:
    image = halves((0, 0, 0, 128), (0, 0, 0, 255), "RGBA")
    assert_colours(encode(saved(image, "PNG")), (127, 127, 127), (0, 0, 0))


def test_transparent_palette_colours_become_white() -> None:
    image = Image.new("P", (32, 16), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (16, 0, 32, 16))
    assert_colours(encode(saved(image, "PNG", transparency=1)), RED, WHITE)
    assert_colours(encode(saved(image, "GIF", transparency=0)), WHITE, BLUE)


def test_grey_with_alpha_becomes_grey_on_white() -> None:
    assert_colours(encode(saved(halves((90, 255), (90, 0), "LA"), "PNG")), (90, 90, 90), WHITE)


def test_black_and_white_becomes_rgb() -> None:
    assert_colours(encode(saved(halves((0,), (255,), "L").convert("1"), "PNG")), (0, 0, 0), WHITE)


def test_a_grey_jpeg_becomes_rgb() -> None:
    photo = encode(saved(halves((60,), (200,), "L"), "JPEG"))
    assert photo.rule == "L to RGB"
    assert_colours(photo, (60, 60, 60), (200, 200, 200))


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    photo = encode(saved(halves(RED, BLUE).convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert photo.rule == "CMYK to RGB"
    assert_colours(photo, RED, BLUE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_is_scaled_and_not_clipped_to_white(kind: str) -> None:
    depth = np.full((16, 32), 16_384, dtype=np.uint16)
    depth[:, 16:] = 65_535
    assert_colours(encode(saved(Image.fromarray(depth), kind)), (64, 64, 64), WHITE)


def test_a_dark_16_bit_photo_is_scaled_like_a_bright_one() -> None:
    depth = np.full((16, 32), 255, dtype=np.uint16)
    assert_colours(encode(saved(Image.fromarray(depth), "PNG")), (1, 1, 1), (1, 1, 1))


def test_a_photo_that_is_converted_carries_nothing_but_its_pixels() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    exif[0x010E] = "where I live"
    image = halves(RED, BLUE)
    for data in (
        saved(image, "JPEG", exif=exif, comment="where I live"),
        saved(image.quantize(4), "GIF", comment=b"where I live"),
        saved(image, "PNG", exif=exif),
    ):
        assert b"where I live" not in encode(data).data


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_rotation_is_baked_in(orientation: int) -> None:
    photo = encode(turned(orientation))
    assert photo.rule == "EXIF rotation"
    seen = pixels(photo)
    upright = {2: "BR", 3: "BR", 4: "RB", 5: "RB", 6: "RB", 7: "BR", 8: "BR"}[orientation]
    first, last = ({"R": RED, "B": BLUE}[letter] for letter in upright)
    assert seen.shape[:2] == ((16, 32) if orientation < 5 else (32, 16))
    np.testing.assert_allclose(seen[2, 2], first, atol=8)
    np.testing.assert_allclose(seen[-3, -3], last, atol=8)


def test_a_png_named_jpg_is_known_by_its_content() -> None:
    assert encode(saved(halves(RED, BLUE), "PNG")).rule == "PNG to JPEG"


def test_the_same_bytes_are_converted_to_the_same_jpeg() -> None:
    data = saved(halves((*RED, 99), (*BLUE, 0), "RGBA"), "PNG")
    assert encode(data) == encode(data)
    assert encode(data, "header") == encode(data, "decode")


# --- Refused -----------------------------------------------------------------------------------


def test_an_empty_file_is_empty() -> None:
    assert refusal(b"") == "empty"


@pytest.mark.parametrize("data", [b"\0", b"<!doctype html><html>", b"plain text", bytes(5000), b"\xff\xd8"])
def test_what_is_no_image_is_refused_as_such(data: bytes) -> None:
    assert refusal(data) == "not an image"
    assert refusal(data, check="header") == "not an image"


def test_a_jpeg_cut_in_its_pixels_is_damaged(jpeg: Callable[..., bytes]) -> None:
    whole = jpeg(1, 64, 64)
    for share in (0.5, 0.7, 0.9):
        assert refusal(whole[: int(len(whole) * share)]) == "damaged"
    assert refusal(whole[:-2]) == "damaged"


def test_a_jpeg_cut_anywhere_is_refused(jpeg: Callable[..., bytes]) -> None:
    whole = jpeg(1)
    reasons = {refusal(whole[:end]) for end in range(len(whole) - 1)}
    assert reasons <= {"empty", "not an image", "damaged"}


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_other_formats_cut_in_their_pixels_are_damaged(kind: str) -> None:
    rng = np.random.default_rng(0)
    whole = saved(Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)), kind)
    assert refusal(whole[: len(whole) // 2]) in ("damaged", "not an image")


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_of_few_pixels_is_too_small(size: tuple[int, int], kind: str) -> None:
    assert refusal(saved(Image.new("RGB", size), kind)) == "too small"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(12_000, 12_000), (50_000, 50_000), (2**31 - 1, 2**31 - 1)])
def test_a_file_that_asks_for_gigabytes_is_too_large_before_anything_is_decoded(
    size: tuple[int, int],
) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    assert refusal(png_header(*size)) == "too large"


def test_a_jpeg_that_asks_for_gigabytes_is_too_large(jpeg: Callable[..., bytes]) -> None:
    data = bytearray(jpeg(1))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    assert refusal(bytes(data)) == "too large"


def test_a_photo_wider_than_a_jpeg_can_be_is_too_large() -> None:
    assert refusal(saved(Image.new("RGB", (70_000, 8)), "PNG")) == "too large"


def test_a_document_that_would_start_a_program_is_not_an_image() -> None:
    assert refusal(saved(halves(RED, BLUE), "EPS")) == "not an image"


def slow_to_decode(data: bytes) -> bool:
    """Whether a header asks for so many pixels that the test would take seconds."""
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        return 10**6 < image.width * image.height <= MAX_PIXELS
    return False


@given(st.data())
def test_whatever_is_changed_in_an_image_it_is_encoded_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]))
    image = halves(RED, BLUE).quantize(4) if kind == "GIF" else halves(RED, BLUE)
    content = bytearray(saved(image, kind))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content) - 1, 200)))
        content[place] = data.draw(st.integers(0, 255))
    check: Any = data.draw(st.sampled_from(["decode", "header"]))
    assume(not slow_to_decode(bytes(content)))
    with contextlib.suppress(Refused):
        photo = encode(bytes(content), check)
        assert photo.rule or photo.data == content
        assert photo.width >= 8
        assert photo.height >= 8


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0"]),
)
def test_arbitrary_bytes_are_refused_and_raise_nothing_else(noise: bytes, magic: bytes) -> None:
    assert refusal(magic + noise)


# --- Rules: shrink, quality, baseline, GPS ------------------------------------------------------


@pytest.mark.parametrize(("size", "side", "shrunk"), [((64, 32), 32, (32, 16)), ((30, 60), 40, (20, 40))])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_longer_side_is_shrunk_with_its_aspect(
    size: tuple[int, int], side: int, shrunk: tuple[int, int], kind: str
) -> None:
    image = halves(RED, BLUE).resize(size, Image.Resampling.NEAREST)
    photo = encode(saved(image, kind), rules=Rules(max_side=side))
    assert (photo.width, photo.height) == shrunk
    assert photo.rule == ("shrunk" if kind == "JPEG" else "PNG to JPEG, shrunk")
    seen = pixels(photo)
    middle = seen.shape[0] // 2
    np.testing.assert_allclose(seen[middle, 2], RED, atol=12)
    np.testing.assert_allclose(seen[middle, -2], BLUE, atol=12)


def test_nothing_is_ever_enlarged() -> None:
    data = saved(halves(RED, BLUE), "JPEG")
    assert encode(data, rules=Rules(max_side=32)).data == data
    assert encode(data, rules=Rules(max_side=500)).data == data


def test_a_rotated_photo_is_shrunk_upright() -> None:
    photo = encode(turned(6), rules=Rules(max_side=16))
    assert max(photo.width, photo.height) == 16
    upright = encode(turned(6))
    assert (photo.width < photo.height) == (upright.width < upright.height)


def test_a_panorama_shrinks_no_further_than_its_shorter_side_may() -> None:
    photo = encode(saved(Image.new("RGB", (2000, 10)), "JPEG"), rules=Rules(max_side=100))
    assert (photo.width, photo.height) == (1600, 8)


@pytest.mark.parametrize("rules", [Rules(max_side=20), Rules()], ids=["shrunk", "rotated"])
def test_damage_is_not_baked_into_a_photo_that_is_made_anew(rules: Rules) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    good = saved(noise(), "JPEG", exif=exif)
    place = good.index(b"\xff\xda") + 100
    bad = good[:place] + b"\xff\x00" * 40 + good[place + 80 :]
    assert refusal(bad, rules=KEEP) == "damaged"
    assert refusal(bad, rules=rules) == "damaged"
    assert encode(good, rules=rules).rule


@pytest.mark.parametrize("values", [(0.0, 1.001), (0.0, float("nan"), 1.0)])
def test_floats_of_0_to_1_become_black_to_white(values: tuple[float, ...]) -> None:
    depth = np.tile(np.repeat(np.array(values, np.float32), 16), (16, 1))
    seen = pixels(encode(saved(Image.fromarray(depth), "TIFF")))
    assert seen[8, 4].max() < 20
    assert seen[8, -4].min() > 235


@pytest.mark.skipif(shutil.which("cjpeg") is None, reason="needs cjpeg (libjpeg-turbo-progs)")
@pytest.mark.parametrize("factors", ["1x1,2x2,2x2", "2x2,2x2,1x1", "3x1,1x1,1x1", "2x1,1x1,2x1"])
def test_colours_sampled_in_a_nameless_way_are_made_anew(factors: str) -> None:
    picture = io.BytesIO()
    noise().save(picture, "PPM")
    data = subprocess.run(
        ["cjpeg", "-sample", factors], input=picture.getvalue(), capture_output=True, check=True
    ).stdout
    for check in ("decode", "header"):
        photo = encode(data, check)  # type: ignore[arg-type]
        assert photo.rule == "rare JPEG coding"
        assert simplejpeg.decode_jpeg(photo.data).shape == (48, 64, 3)


def test_quality_is_that_of_made_photos_alone() -> None:
    plain, png = saved(halves(RED, BLUE), "JPEG"), saved(noise(), "PNG")
    assert encode(plain, rules=Rules(quality=20)).data == plain
    assert len(encode(png, rules=Rules(quality=20)).data) < len(encode(png).data) / 2


def test_a_photo_that_tells_its_place_loses_its_tags_and_no_pixel() -> None:
    exif = Image.Exif()
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 31.0, 12.0)}
    data = saved(halves(RED, BLUE), "JPEG", exif=exif)
    photo = encode(data)
    assert photo.rule == "GPS removed"
    assert b"Exif" not in photo.data
    assert (simplejpeg.decode_jpeg(photo.data) == simplejpeg.decode_jpeg(data)).all()
    assert encode(photo.data).rule == ""


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="needs jpegtran (libjpeg-turbo-progs)")
def test_a_progressive_photo_becomes_baseline_when_asked_for() -> None:
    data = saved(noise(), "JPEG", progressive=True)
    photo = encode(data, rules=Rules(baseline=True))
    assert (photo.rule, photo.progressive) == ("progressive to baseline", False)
    assert (simplejpeg.decode_jpeg(photo.data) == simplejpeg.decode_jpeg(data)).all()
    plain = saved(noise(), "JPEG")
    assert encode(plain, rules=Rules(baseline=True)).data == plain


@pytest.mark.parametrize("rules", [Rules(), Rules(max_side=20, quality=70)])
def test_a_header_check_makes_the_same_bytes_as_a_decode_check(rules: Rules) -> None:
    for data in (saved(halves(RED, BLUE), "JPEG"), saved(noise(), "PNG"), turned(6)):
        assert encode(data, "header", rules) == encode(data, "decode", rules)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
