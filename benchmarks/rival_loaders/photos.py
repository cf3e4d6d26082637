"""The photos that loaders are compared with: laid out of a packed split, or made in a camera's size."""

from __future__ import annotations

import contextlib
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.photos import as_jpeg, check_folders, cut_each
from shardtool import terminal
from shardtool.errors import UsageError
from shardtool.text import counted

if TYPE_CHECKING:
    from PIL import Image


def lay_out(shards: Path, files: Path) -> None:
    """The photos of a packed split as loose files SPECIES/KEY.jpg. Raises UsageError."""
    tars = sorted(shards.glob("*.tar"))
    if not tars:
        raise UsageError("no shards in this folder", where=shards, cure="copy them beside their sidecars")
    jpeg = b""
    for shard in tars:
        with tarfile.open(shard) as file:
            for member in file:
                key, _, ending = member.name.partition(".")
                payload = file.extractfile(member)
                assert payload is not None, member.name
                if ending == "jpg":
                    jpeg = payload.read()
                elif ending == "cls":  # it follows the photo
                    folder = files / payload.read().decode()
                    folder.mkdir(exist_ok=True)
                    (folder / f"{key}.jpg").write_bytes(jpeg)


def photos_of(shards: Path) -> dict[str, Any]:
    """How many photos, and their mean size."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    columns = ["size", "width", "height"]
    found = pa.concat_tables(
        [pq.read_table(path, columns=columns) for path in sorted(shards.glob("*.parquet"))]
    )
    means = {name: round(pc.mean(found.column(name)).as_py(), 1) for name in columns}
    return {
        "count": found.num_rows,
        "mean_bytes": means["size"],
        "mean_size": [means["width"], means["height"]],
    }


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, which takes its name when that is done; None if that was done before."""
    if folder.exists():
        yield None
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(folder)


def make_photos(
    source: Annotated[Path, typer.Argument(help="Folder of large JPEGs.")],
    out: Annotated[Path, typer.Argument(help="Folder for the photos and their shards.")],
    size: Annotated[str, typer.Option(help="Pixels of a photo.")] = "1024x768",
    count: Annotated[int, typer.Option(min=20, help="Photos to make.")] = 1500,
) -> None:
    """Cut photos of a camera's size from larger ones and pack them, for --shards OUT/shards/train.

    Example: python -m benchmarks.peers make-photos photos camera --size 1024x768
    """
    from shardtool.pack import PackOptions, pack

    check_folders(source)
    width, height = _size(size)
    cut_each(source, out / "photos", count, lambda image, number: _cut(image, number, width, height))
    pack(out / "photos", out / "shards", PackOptions(shard_size=32_000_000))
    terminal.say(f"{counted(count, 'photo')} of {width} × {height} in {terminal.clean(out)}")


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.split("x"))
    except ValueError:
        raise UsageError(f"--size {text}", cure="write --size 1024x768") from None
    return width, height


def _cut(image: Image.Image, number: int, width: int, height: int) -> bytes:
    """The largest part of this shape but for up to a fifth, from anywhere in the image."""
    import numpy as np

    random = np.random.default_rng(number)
    scale = min(image.width / width, image.height / height) * random.uniform(0.8, 1.0)
    wide, high = int(width * scale), int(height * scale)
    left, top = int(random.integers(image.width - wide + 1)), int(random.integers(image.height - high + 1))
    return as_jpeg(image.resize((width, height), box=(left, top, left + wide, top + high)))
