"""Photos to measure with: cut to a usual size from a few large ones."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import terminal
from shardtool.errors import UsageError
from shardtool.text import counted

if TYPE_CHECKING:
    from PIL import Image


def make_photos(
    source: Annotated[Path, typer.Argument(help="Folder of large JPEGs.")],
    out: Annotated[Path, typer.Argument(help="Folder of the tree to be made.")],
    count: Annotated[int, typer.Option(min=1, help="Photos to cut.")] = 1500,
    size: Annotated[int, typer.Option(min=1000, help="Bytes of a photo, about.")] = 80_000,
) -> None:
    """Cut photos of a usual size from large ones, for --photos.

    Example: python -m benchmarks.packing make-photos photos cut --count 1500
    """
    check_folders(source)
    cut_photos(source, out, count, size)
    terminal.say(f"{counted(count, 'photo')} in {terminal.clean(out)}")


def check_folders(*folders: Path) -> None:
    """Raises UsageError now, not after minutes of measuring."""
    for folder in folders:
        if not folder.is_dir():
            raise UsageError("no such folder", where=folder)


def cut_photos(source: Path, out: Path, count: int, size: int) -> None:
    """Cut `count` different JPEGs of about `size` bytes from the photos in `source`, into class folders.

    The same photos give the same JPEGs, with the same version of Pillow. Raises UsageError.
    """
    cut_each(source, out, count, lambda image, number: _cut(image, number, size))


def cut_each(source: Path, out: Path, count: int, cut: Callable[[Image.Image, int], bytes]) -> None:
    """Write `count` JPEGs into class folders: `cut` makes number n of them from one of the photos in
    `source`. Raises UsageError."""
    from PIL import Image

    photos = sorted(source.glob("*.jpg"))
    if not photos:
        raise UsageError("no .jpg files", where=source)
    for first, path in enumerate(photos):
        with Image.open(path) as photo:
            image = photo.convert("RGB")
        for number in range(first, count, len(photos)):
            target = out / class_folder(number) / f"{number:05d}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(cut(image, number))


def class_folder(number: int) -> str:
    """split/species/disease of a cut photo: 10 species x 5 diseases, every tenth of a class in val."""
    split = "val" if number // 50 % 10 == 9 else "train"
    return f"{split}/Species_{number % 10}/Disease_{number // 10 % 5}"


def _cut(image: Image.Image, number: int, size: int) -> bytes:
    """A random quarter of the image or more, as a JPEG of about `size` bytes."""
    import numpy as np

    random = np.random.default_rng(number)
    width, height = (round(side * random.uniform(0.5, 0.9)) for side in image.size)
    left, top = int(random.integers(image.width - width + 1)), int(random.integers(image.height - height + 1))
    part = image.crop((left, top, left + width, top + height))
    scale = 0.5
    for _ in range(3):  # bytes grow with the area, roughly: each try comes closer
        jpeg = _jpeg(part, scale)
        scale *= (size / len(jpeg)) ** 0.5
    return jpeg


def _jpeg(image: Image.Image, scale: float) -> bytes:
    width, height = (max(round(side * scale), 16) for side in image.size)
    return as_jpeg(image.resize((width, height)))


def as_jpeg(image: Image.Image) -> bytes:
    """At the quality of all made photos."""
    out = BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()
