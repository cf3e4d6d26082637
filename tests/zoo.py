"""The zoo of bad input: one file for each fault that folders of photos are known to have, and its fate.

`build` writes the tree. Every photo shows the same four quarters (red, green, blue, yellow), so a test
sees at once whether a picture is upright and of the right colours.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import pickle
import socket
import stat
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, features

Pixels = NDArray[np.uint8]
WIDTH, HEIGHT = 48, 32
RED, GREEN, BLUE, YELLOW, WHITE = (220, 30, 40), (20, 160, 60), (30, 40, 200), (230, 200, 40), (255, 255, 255)
XMP = b"http://ns.adobe.com/xap/1.0/\0"
ICC = b"ICC_PROFILE\0"

# What Pillow cannot write, of 32 x 16 pixels, the left half RED, the right half BLUE; base85.
_ARITHMETIC = (  # jpegtran -arithmetic
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00smF1_cBL1_cHO2L=cV5DE$j2?`Vr4-60&6c`v66c!d59VH(c8zUSR79cDjBPJ&)D"
    "k&KsEif%8FeNA{DF534LjeZ|2MP!Z6AB6wC>j<TC@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@"
    "3f>C@BBQ01*fP5C9+p0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zf#0HvqY=g8>>OAAoo|Je"
)
_TWELVE_BITS = (  # libjpeg-turbo 3, data_precision 12
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00smF1_cBL1_cHO2L=cV5DE$j2?`Vr4-60&6c`v66c!d59VH(c8zUSR79cDjBPJ&)D"
    "k&KsEif%8FeNA{DF534LjeZ|2MP!Z6AB6wC>j<TC@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@"
    "3f>C@BBI01*rT5C9+p0U`hb5di}c0sq7R6#xMN0000000000000000000A|HJ?k5CH%H0000000000000000095Q02ToO0Ra"
    "F200000000000000B2@L<l02C1c00000000000000000000|Jncy0|5X65d#qbKLCn=5J1;SMgaJ%{{WBw*#"
)
_LOSSLESS = (  # libjpeg-turbo 3, SOF3
    "|JeWT01iQ9Z(?NtWB>pF0095P01*fP5C9+pQV{@05dcCF0RO}Q7XSeP0RaF20000000000000081PA}x01N|C07n2q00961>"
    "zsF!fB*mh00KePPyhe`00000000000zuVK000000000000002LDf(I00000000000006()ldKc000000000000KePPyhe`00"
    "000000000zuVK000000000000002LDf(I00000000000006()ldKc000000000000KePPyhe`00000000000zuVK00000000"
    "0000002LDf(I00000000000006()ldKc000000000000KePPyhe`00000000000zuVK000000000000002LDf(I000000000"
    "00006()ldKc00003|Je"
)


@dataclass(frozen=True)
class Kept:
    """Packed with the bytes that it has on disk."""


@dataclass(frozen=True)
class Converted:
    """Packed as another JPEG: counted under `rule`, and it looks like `pixels` [H, W, 3].

    `exactly`: the pixels decode to the very same values.
    """

    rule: str
    pixels: Pixels
    exactly: bool = False


@dataclass(frozen=True)
class Refused:
    """Not packed, but listed with this reason."""

    reason: str


@dataclass(frozen=True)
class Ignored:
    """No photo; counted under `rule`."""

    rule: str


Fate = Kept | Converted | Refused | Ignored


@dataclass(frozen=True)
class Animal:
    """One file: the `fault` it has, its path under the tree, how it is made, and what must become of it.

    `make` gets the path and raises OSError where a system has no such files. `trusted` is the fate with
    `--check header`.
    """

    fault: str
    path: str
    make: Callable[[Path], None]
    fate: Fate
    trusted: Fate


def build(root: Path) -> list[Animal]:
    """Write the tree; the animals that this system allows (devices: for root; any name: not on macOS)."""
    made = []
    for animal in animals():
        path = root / animal.path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            animal.make(path)
        except OSError:
            continue
        made.append(animal)
    return made


@functools.cache
def animals() -> tuple[Animal, ...]:
    """The whole zoo, in memory."""
    cages = (_broken, _formats, _colours, _rotations, _tags, _appended, _names, _classes, _copies, _no_files)
    return tuple(animal for cage in cages for animal in cage())


# --- Pictures ----------------------------------------------------------------------------------


def picture(width: int = WIDTH, height: int = HEIGHT, colours: Any = (RED, GREEN, BLUE, YELLOW)) -> Pixels:
    """Four quarters: top left, top right, bottom left, bottom right; uint8 [height, width, 3]."""
    pixels = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left], pixels[:top, left:], pixels[top:, :left], pixels[top:, left:] = colours
    return pixels


def saved(image: Image.Image | Pixels, kind: str = "JPEG", **options: Any) -> bytes:
    """The file of an image; JPEGs of high quality unless told otherwise."""
    out = io.BytesIO()
    if kind == "JPEG":
        options = {"quality": 95, "subsampling": 0, **options}
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(out, kind, **options)
    return out.getvalue()


def plain(number: int, **options: Any) -> bytes:
    """A JPEG that has no fault; another number, another photo."""
    pixels = picture()
    pixels[:8, :8] = (number * 37 % 256, number * 91 % 256, number * 11 % 256)
    return saved(pixels, **options)


def decoded(data: bytes) -> Pixels:
    """RGB pixels of a file as Pillow sees them, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def oriented(orientation: int, pixels: Pixels) -> bytes:
    """A JPEG whose EXIF tag asks for a rotation."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(pixels, exif=exif)


def upright(orientation: int, pixels: Pixels) -> Pixels:
    """The picture that people see in `oriented`, after the table of the EXIF specification (4.6.4 A)."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[:, ::-1],
        7: pixels.swapaxes(0, 1)[::-1, ::-1],
        8: pixels.swapaxes(0, 1)[::-1],
    }
    return turned[orientation]


def segment(marker: int, payload: bytes) -> bytes:
    """A JPEG segment with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def with_segment(data: bytes, marker: int, payload: bytes) -> bytes:
    """The JPEG with one more segment right behind its start marker."""
    return data[:2] + segment(marker, payload) + data[2:]


def png(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def asking_for(data: bytes, width: int, height: int) -> bytes:
    """The baseline JPEG with another size in its frame header."""
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def gps_exif(endian: str = "<", **more: int) -> Image.Exif:
    """EXIF that tells where the photo was taken; `more` are further tags by name."""
    exif = Image.Exif()
    exif.endian = endian
    exif[ExifTags.Base.Make] = "Camera"
    for name, value in more.items():
        exif[ExifTags.Base[name]] = value
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(
        {
            ExifTags.GPS.GPSLatitudeRef: "N",
            ExifTags.GPS.GPSLatitude: (52.0, 31.0, 12.0),
            ExifTags.GPS.GPSLongitudeRef: "E",
            ExifTags.GPS.GPSLongitude: (13.0, 24.0, 18.0),
        }
    )
    return exif


def gps_xmp() -> bytes:
    """The payload of an XMP segment that tells where the photo was taken."""
    return XMP + (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        b'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="52,31.2N" '
        b'exif:GPSLongitude="13,24.3E"/></rdf:RDF></x:xmpmeta>'
    )


# --- Animals -----------------------------------------------------------------------------------


def _file(fault: str, path: str, data: bytes, fate: Fate, trusted: Fate | None = None) -> Animal:
    def write(place: Path) -> None:
        place.write_bytes(data)

    return Animal(fault, path, write, fate, trusted or fate)


def _broken() -> Iterator[Animal]:
    cage, whole = "train/Broken/bytes", plain(1)
    scan = whole.index(b"\xff\xda")
    damaged, no_image, large = Refused("damaged"), Refused("not an image"), Refused("too large")
    yield _file("truncated JPEG", f"{cage}/cut.jpg", whole[: (scan + len(whole)) // 2], damaged, Kept())
    yield _file("JPEG without its end marker", f"{cage}/no-end.jpg", plain(2)[:-2], damaged, Kept())
    yield _file("JPEG that ends with its header", f"{cage}/header.jpg", whole[: scan + 14], damaged, Kept())
    yield _file("JPEG that ends inside its header", f"{cage}/part.jpg", whole[: scan - 20], damaged)
    yield _file("truncated PNG", f"{cage}/cut.png", saved(picture(), "PNG")[:-60], damaged)
    yield _file("empty", f"{cage}/empty.jpg", b"", Refused("empty"))
    yield _file("web page named .jpg", f"{cage}/page.jpg", b"<!doctype html><title>404</title>", no_image)
    yield _file("zeros", f"{cage}/zeros.jpg", bytes(5000), no_image)
    yield _file("program named .jpg", f"{cage}/program.jpg", b"%!PS\n(ls) system\n", no_image)
    bomb = png(50_000, 50_000, 8, 2, bytes(60 << 20))  # 58 KB that ask for 7.5 GB
    yield _file("PNG bomb", f"{cage}/bomb.png", bomb, large)
    yield _file("JPEG of 65,500 x 65,500", f"{cage}/huge.jpg", asking_for(plain(3), 65_500, 65_500), large)
    yield _file("photo of 4 pixels", f"{cage}/pixels.jpg", plain_of(2, 2), Refused("too small"))
    yield _file("12-bit JPEG", f"{cage}/deep.jpg", base64.b85decode(_TWELVE_BITS), no_image)


def plain_of(width: int, height: int) -> bytes:
    """A JPEG of this size that has no fault."""
    return saved(picture(width, height))


def _formats() -> Iterator[Animal]:
    cage, seen, other = "train/Formats/kind", picture(), Image.new("RGB", (WIDTH, HEIGHT), "white")
    image, animation = Image.fromarray(seen), {"save_all": True, "append_images": [other], "duration": 50}
    png_rule, gif_rule = Converted("PNG to JPEG", seen), Converted("GIF to JPEG", seen)
    webp_rule = Converted("WEBP to JPEG", seen)
    yield _file("PNG named .jpg", f"{cage}/is-png.jpg", saved(seen, "PNG"), png_rule)
    yield _file("JPEG named .png", f"{cage}/is-jpeg.png", plain(10), Kept())
    yield _file("ending in capitals", f"{cage}/CAPITAL.JPG", plain(11), Kept())
    yield _file("WebP", f"{cage}/photo.webp", saved(seen, "WEBP", lossless=True), webp_rule)
    yield _file(
        "animated WebP", f"{cage}/film.webp", saved(image, "WEBP", lossless=True, **animation), webp_rule
    )
    yield _file("animated GIF", f"{cage}/film.gif", saved(image, "GIF", **animation), gif_rule)
    yield _file("BMP", f"{cage}/photo.bmp", saved(seen, "BMP"), Converted("BMP to JPEG", seen))
    yield _file("TIFF", f"{cage}/photo.tif", saved(seen, "TIFF"), Converted("TIFF to JPEG", seen))
    yield _file("progressive JPEG", f"{cage}/progressive.jpg", plain(12, progressive=True), Kept())
    yield _file(
        "two pictures in one JPEG (MPO)", f"{cage}/stereo.jpg", saved(image, "MPO", **animation), Kept()
    )
    pair = picture(32, 16, (RED, BLUE, RED, BLUE))
    rare = Converted("rare JPEG coding", pair)
    # Pillow-SIMD uses the system's libjpeg-turbo, which may be one that cannot read them
    reads_lossless = int((features.version("libjpeg_turbo") or "0").partition(".")[0]) >= 3
    for fault, name, text, fate in (
        ("arithmetic-coded JPEG", "arithmetic.jpg", _ARITHMETIC, rare),
        ("lossless JPEG", "lossless.jpg", _LOSSLESS, rare if reads_lossless else Refused("damaged")),
    ):
        yield _file(fault, f"{cage}/{name}", base64.b85decode(text), fate)


def _colours() -> Iterator[Animal]:
    cage, seen = "train/Colours/model", picture()
    image = Image.fromarray(seen)
    grey = np.asarray(image.convert("L").convert("RGB"))
    cmyk, png_rule = Converted("CMYK to RGB", seen), Converted("PNG to JPEG", seen)
    adobe = saved(image.convert("CMYK"))
    yield _file("CMYK JPEG of Adobe", f"{cage}/adobe.jpg", adobe, cmyk)
    yield _file("CMYK JPEG without a marker", f"{cage}/cmyk.jpg", _without_adobe(adobe), cmyk)
    yield _file("grey JPEG", f"{cage}/grey.jpg", saved(image.convert("L")), Converted("L to RGB", grey))
    yield _file("palette PNG", f"{cage}/palette.png", saved(image.quantize(4), "PNG"), png_rule)
    yield from _transparent(cage, image)
    yield from _deep(cage)


def _without_adobe(data: bytes) -> bytes:
    """The same samples without Adobe's marker: Pillow, OpenCV and Skia take them for inverted too."""
    place = data.index(b"\xff\xee")
    return data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]


def _transparent(cage: str, image: Image.Image) -> Iterator[Animal]:
    on_white = Converted("PNG to JPEG", picture(colours=(RED, GREEN, BLUE, WHITE)))
    alpha = image.copy()
    opacity = Image.new("L", image.size, 255)
    opacity.paste(0, (WIDTH // 2, HEIGHT // 2, WIDTH, HEIGHT))
    alpha.putalpha(opacity)
    yield _file("RGBA", f"{cage}/alpha.png", saved(alpha, "PNG"), on_white)
    palette = Image.new("P", image.size)
    palette.putpalette([*RED, *GREEN, *BLUE, *YELLOW])
    palette.putdata(picture(colours=((0,) * 3, (1,) * 3, (2,) * 3, (3,) * 3))[:, :, 0].ravel().tolist())
    data = saved(palette, "PNG", transparency=3)
    yield _file("palette with transparency", f"{cage}/palette-alpha.png", data, on_white)


def _deep(cage: str) -> Iterator[Animal]:
    levels = picture(colours=((0,) * 3, (64,) * 3, (128,) * 3, (255,) * 3))
    sixteen, unit = levels[:, :, 0].astype(np.uint16) * 257, (levels[:, :, 0] / 255).astype(np.float32)
    png_rule, tiff_rule = Converted("PNG to JPEG", levels), Converted("TIFF to JPEG", levels)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture().astype(np.uint16) * 257)
    colour = png(WIDTH, HEIGHT, 16, 2, rows)
    yield _file("16-bit grey PNG", f"{cage}/16.png", saved(Image.fromarray(sixteen), "PNG"), png_rule)
    yield _file("16-bit colour PNG", f"{cage}/48.png", colour, Converted("PNG to JPEG", picture()))
    yield _file("16-bit TIFF", f"{cage}/16.tif", saved(Image.fromarray(sixteen), "TIFF"), tiff_rule)
    yield _file("float TIFF from 0 to 1", f"{cage}/unit.tif", saved(Image.fromarray(unit), "TIFF"), tiff_rule)
    byte = Image.fromarray(unit * 255)
    yield _file("float TIFF from 0 to 255", f"{cage}/byte.tif", saved(byte, "TIFF"), tiff_rule)


def _rotations() -> Iterator[Animal]:
    for orientation in range(1, 9):
        data, seen = oriented(orientation, picture()), upright(orientation, picture())
        fate = Converted("EXIF rotation", seen) if orientation > 1 else Kept()
        yield _file(f"EXIF orientation {orientation}", f"train/Turned/exif/{orientation}.jpg", data, fate)


def _tags() -> Iterator[Animal]:
    cage = "train/Tags/exif"

    def gps(fault: str, name: str, data: bytes) -> Animal:
        fate = Converted("GPS removed", decoded(data), exactly=True)
        return _file(fault, f"{cage}/{name}", data, fate)

    yield gps("GPS in EXIF", "gps.jpg", plain(20, exif=gps_exif()))
    yield gps("GPS in big-endian EXIF", "gps-big.jpg", plain(21, exif=gps_exif(">")))
    yield gps("GPS in XMP", "gps-xmp.jpg", with_segment(plain(22), 0xE1, gps_xmp()))
    yield gps("GPS in a progressive JPEG", "gps-slow.jpg", plain(23, exif=gps_exif(), progressive=True))
    yield gps("GPS, and bytes after the end", "gps-tail.jpg", plain(24, exif=gps_exif()) + b"52.52N 13.40E")
    pair = {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT), "white")]}
    data = saved(Image.fromarray(picture()), "MPO", exif=gps_exif(), **pair)
    yield gps("GPS in the first of two pictures", "gps-stereo.jpg", data)
    turned = saved(picture(), exif=gps_exif(Orientation=6))
    yield _file(
        "GPS in a rotated JPEG",
        f"{cage}/gps-turned.jpg",
        turned,
        Converted("EXIF rotation, GPS removed", upright(6, picture())),
    )
    yield _file("EXIF without GPS", f"{cage}/camera.jpg", plain(25, exif=_camera()), Kept())
    yield _file("broken EXIF", f"{cage}/broken.jpg", plain(26, exif=b"Exif\0\0II*\0" + b"\xff" * 20), Kept())
    looping = b"Exif\0\0II*\0" + struct.pack(
        "<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8
    )  # its camera part is itself
    yield _file("EXIF that points at itself", f"{cage}/looping.jpg", plain(27, exif=looping), Kept())
    profile = with_segment(plain(28), 0xE2, ICC + b"\1\1" + bytes(64))
    yield _file("broken colour profile", f"{cage}/profile.jpg", profile, Kept())


def _camera() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    return exif


def _appended() -> Iterator[Animal]:
    cage = "train/Appended/bytes"
    yield _file("bytes after the end", f"{cage}/tail.jpg", plain(30) + bytes(range(256)), Kept())
    pickled = pickle.dumps({"a": "pickle"})
    yield _file("pickle appended", f"{cage}/pickle.jpg", plain(31) + pickled, Kept())
    yield _file("shell script appended", f"{cage}/shell.jpg", plain(32) + b"\n#!/bin/sh\nexit 1\n", Kept())
    comment = with_segment(plain(33), 0xFE, b"<script>alert(1)</script>; rm -rf ~")
    yield _file("script in a comment", f"{cage}/comment.jpg", comment, Kept())


def _names() -> Iterator[Animal]:
    names = {
        "dots": "many.dots.in.it.jpg",
        "two endings": "photo.png.jpg",
        "blanks": " leading and  trailing .jpg",
        "brackets": "[bold]red[red] (1) {2}.jpg",
        "a newline": "line\nbreak.jpg",
        "control characters": "tab\tand\x1b[31mescape.jpg",
        "text that turns round": "\u202egpj.evil.jpg",
        "quotes": "quote'\"`$(exit 1).jpg",
        "markup": "<img src=x onerror=alert(1)>.jpg",
        "a backslash": "back\\slash\\..\\up.jpg",
        "percent signs": "%s%n %2e%2e%2f.jpg",
        "a minus in front": "-rf.jpg",
        "an option": "--out=x.jpg",
        "NFC": unicodedata.normalize("NFC", "Bl\u00e4tter.jpg"),
        "NFD": unicodedata.normalize("NFD", "Bl\u00e4tter.jpg"),
        "an emoji": "\N{HERB}.jpg",
        "255 bytes": "n" * 251 + ".jpg",
        "bytes that are not UTF-8": os.fsdecode(b"latin\xe9\xff.jpg"),
    }
    for number, (what, name) in enumerate(names.items(), 40):
        yield _file(f"name with {what}", f"train/Names/any/{name}", plain(number), Kept())
    hidden = Ignored("hidden")
    yield _file("name with a dot in front", "train/Names/any/.hidden.jpg", plain(70), Kept())
    yield _file(".DS_Store", "train/Names/any/.DS_Store", b"\0\0\0\1Bud1", hidden)
    yield _file("AppleDouble twin of a photo", "train/Names/any/._photo.jpg", b"\0\5\x16\7", hidden)
    yield _file("Thumbs.db", "train/Names/any/Thumbs.db", b"\xd0\xcf\x11\xe0", Ignored(".db ending"))
    yield _file("text", "train/Names/any/notes.txt", b"notes", Ignored(".txt ending"))
    yield _file("no ending", "train/Names/any/README", b"read me", Ignored("no ending"))
    yield _file("table of labels", "train/labels.csv", b"a,b\n", Ignored(".csv ending"))


def _classes() -> Iterator[Animal]:
    one, other = (unicodedata.normalize(form, "Apfelb\u00e4ume") for form in ("NFC", "NFD"))
    yield _file("class in NFC", f"train/{one}/x/1.jpg", plain(80), Kept())
    yield _file("the same class in NFD", f"val/{other}/x/2.jpg", plain(81), Kept())
    yield _file("class only in val", "val/Only/val/1.jpg", plain(82), Kept())
    yield _file("class of one photo", "train/Lone/one/1.jpg", plain(83), Kept())
    yield _file("class of refused photos", "train/Lone/refused/1.jpg", b"", Refused("empty"))
    long = "c" * 255
    yield _file("class of 255 bytes", f"train/{long}/-[red]\n<b>/1.jpg", plain(84), Kept())
    not_utf8 = os.fsdecode(b"caf\xe9")
    yield _file("class that is not UTF-8", f"train/{not_utf8}/x/1.jpg", plain(85), Kept())
    yield Animal("empty class", "train/Lone/empty", Path.mkdir, *[Ignored("empty class folder")] * 2)
    misplaced = Refused("misplaced")
    yield _file("photo beside the splits", "loose.jpg", plain(86), misplaced)
    yield _file("photo beside the species", "train/loose.jpg", plain(87), misplaced)
    yield _file("photo beside the diseases", "train/Lone/loose.jpg", plain(88), misplaced)


def _copies() -> Iterator[Animal]:
    twin, conflict, leak = plain(90), plain(91), plain(92)
    for number in (1, 2):
        yield _file(f"copy in the class, {number}", f"train/Copies/a/twin{number}.jpg", twin, Kept())
    for label in ("a", "b"):
        path = f"train/Copies/{label}/conflict.jpg"
        yield _file(f"copy in another class, {label}", path, conflict, Refused("label conflict"))
    yield _file("copy in a later split", "train/Copies/a/leak.jpg", leak, Refused("leak"))
    yield _file("original of the leak", "val/Copies/a/leak.jpg", leak, Kept())
    yield _file("class that keeps a photo", "train/Copies/b/own.jpg", plain(93), Kept())


def _no_files() -> Iterator[Animal]:
    cage = "train/Special/kind"

    def special(fault: str, name: str, make: Callable[[Path], None]) -> Animal:
        return Animal(fault, f"{cage}/{name}", make, *[Refused("not a regular file")] * 2)

    def outside(place: Path) -> None:
        target = place.parents[4] / "outside" / "secret.jpg"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(plain(95))
        place.symlink_to(target)

    yield _file("photo among special files", f"{cage}/photo.jpg", plain(94), Kept())
    yield special("link out of the tree", "outside.jpg", outside)
    yield special("link to a folder", "folder", lambda place: place.symlink_to(place.parent.parent))
    yield special("loop of links", "loop.jpg", lambda place: place.symlink_to(place.name))
    yield special("link to nowhere", "nowhere.jpg", lambda place: place.symlink_to("nowhere"))
    yield special("FIFO", "fifo.jpg", lambda place: os.mkfifo(place))
    yield special("socket", "socket.jpg", _bind)
    yield special("device", "null.jpg", lambda place: os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 3)))


def _bind(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:  # the path of a socket has room for 107 bytes only
            end.bind(f"/proc/self/fd/{here}/{place.name}")
        finally:
            os.close(here)
