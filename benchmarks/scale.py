"""How far the index in memory and the order of an epoch carry: seconds, bytes, skew between ranks.

Everything is simulated: sidecars of photos of about 80 KB beside shards that are holes in a disk, arrays of
sizes, ranks that are slices. Each figure comes from a process of its own.

Example: python -m benchmarks.scale --json scale.json
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from shardtool import columns, terminal
from shardtool.text import counted, size_text
from train.machine import hardware, versions
from train.order import BLOCK_BYTES, EpochOrder, blocks, epoch_order, repeats

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

SHARD_PHOTOS = 25_000  # about 2 GB
SPECIES, DISEASES = 320, 100
MEAN_BYTES, SPREAD_BYTES = 80_000, 20_000  # of a photo
RANK_PHOTOS = 256  # of a batch
NODE_RANKS = 8  # share the page cache of a machine
LOOKED_AT = 20  # steps, or windows, from all over an epoch


# ---- measuring ----------------------------------------------------------------------------------


def _memory(name: str) -> int:
    """A line of /proc/self/status, in bytes; 0 on systems without it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def _measured(into: dict[str, Any], name: str) -> Iterator[None]:
    """Seconds of a block, by the clock and of the processor (less, where others keep it busy), the memory
    that it needed at most, and the private memory that stays after it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, private = _memory("VmRSS"), _memory("RssAnon")
    start, busy = time.perf_counter(), time.process_time()
    yield
    into[name] = {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - busy, 3),
        "peak_bytes": max(_memory("VmHWM") - before, 0),
        "private_bytes": max(_memory("RssAnon") - private, 0),
    }


def _alone(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """What `work` returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        return executor.submit(work, *arguments).result()


# ---- from a packed split to the first batch ------------------------------------------------------


def starts(photos: int, scratch: Path) -> dict[str, Any]:
    """The first start on a split of so many photos, the second one, and what a rank beside it needs."""
    with tempfile.TemporaryDirectory(prefix="scale-", dir=scratch) as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        split = simulate_split(Path(folder), photos)
        first, second = _alone(start, split), _alone(start, split)
        kept = sum(path.stat().st_size for path in Path(folder, "cache").rglob(f"*{columns.ENDING}"))
        del os.environ["XDG_CACHE_HOME"]
    return {"photos": photos, "index_file_bytes": kept, "first": first, "second": second}


def start(folder: str) -> dict[str, Any]:
    """Open a split, make the order of an epoch, read the first batch."""
    from shardtool.index import open_split

    found: dict[str, Any] = {}
    with _measured(found, "open"):
        split = open_split(folder, check=False)  # holes have no checksums
    with _measured(found, "order"):
        place = blocks(split.shard, split.offset)
        order = epoch_order(repeats(split.row, []), place, 0, 0, RANK_PHOTOS)
    with _measured(found, "read"):
        split.read(order.step(0)[0])
    with _measured(found, "order_with_copies"):
        counts = split.class_counts
        tiers = [(int(np.quantile(counts, 0.2)), 3), (int(np.quantile(counts, 0.1)), 5)]
        order = epoch_order(repeats(split.row, tiers), place, 0, 1, RANK_PHOTOS)
    with _measured(found, "look_up_1000_batches"):
        for step in range(0, order.steps, max(order.steps // 1000, 1)):
            split.labels(order.step(step)[0])
    return {**found, "epoch_with_copies": len(order.samples)}


def simulate_split(folder: Path, photos: int) -> str:
    """A packed split of so many photos without their bytes; returns its folder."""
    from shardtool.index import DATASET_FILE, Manifest
    from shardtool.taxonomy import Taxonomy

    names = [(f"Solanum {s:03d}", f"Late blight {d:03d}") for s in range(SPECIES) for d in range(DISEASES)]
    taxonomy, random = Taxonomy.from_labels(names), np.random.default_rng(0)
    (folder / "train").mkdir(parents=True)
    bounds = np.linspace(0, photos, max(photos // SHARD_PHOTOS, 1) + 1).astype(int).tolist()
    made = [
        _simulate_shard(folder / "train", number, end - first, random)
        for number, (first, end) in enumerate(pairwise(bounds))
    ]
    counts = sum((np.bincount(rows, minlength=taxonomy.rows) for _, rows in made), np.zeros(1, np.int64))
    manifest = Manifest.of(taxonomy, {"train": tuple(entry for entry, _ in made)}, {"train": counts}, {})
    (folder / DATASET_FILE).write_text(json.dumps(manifest.to_json()))
    return str(folder / "train")


def _simulate_shard(folder: Path, number: int, count: int, random: np.random.Generator) -> tuple[Any, Any]:
    """A sidecar and a tar that is a hole; returns the entry of dataset.json and the rows of the photos."""
    import pyarrow as pa

    from shardtool.index import SIDECAR, ShardEntry, sidecar_bytes
    from shardtool.tar import BLOCK, padded

    size, row = _sizes(count, random), random.integers(0, SPECIES * DISEASES, count)
    strides = np.array([padded(each) for each in size.tolist()]) + 5 * BLOCK  # headers, labels
    ends, keys, name = np.cumsum(strides), random.bytes(12 * count).hex(), f"shard-{number:06d}"
    table = {
        "key": [keys[24 * place : 24 * place + 24] for place in range(count)],
        "offset": ends - strides + BLOCK,
        "size": size,
        "species_id": row // DISEASES,
        "disease_id": row % DISEASES,
        "width": np.full(count, 512),
        "height": np.full(count, 384),
        "crc32c": random.integers(0, 1 << 32, count),
        "source": [f"train/Solanum {r:05d}/IMG_{place:08d}.jpg".encode() for place, r in enumerate(row)],
    }
    data = sidecar_bytes(pa.table({c: pa.array(v).cast(SIDECAR.field(c).type) for c, v in table.items()}), "")
    (folder / f"{name}.parquet").write_bytes(data)
    with (folder / f"{name}.tar").open("wb") as file:
        file.truncate(int(ends[-1]))
    known = hashlib.sha256(data).hexdigest()
    return ShardEntry(name, count, int(ends[-1]), "", known), row


def _sizes(count: int, random: np.random.Generator) -> NDArray[np.int32]:
    """Bytes of photos."""
    drawn = random.standard_normal(count, dtype=np.float32) * SPREAD_BYTES + MEAN_BYTES
    return drawn.clip(MEAN_BYTES // 16).astype(np.int32)


# ---- arrays shared out to ranks -------------------------------------------------------------------


def shares(photos: int, ranks: int) -> dict[str, Any]:
    """The order of so many photos as an array, and what each rank gets of it."""
    found: dict[str, Any] = {"photos": photos, "ranks": ranks}
    size = _sizes(photos, np.random.default_rng(0))
    block = (np.cumsum(size, dtype=np.int64) // BLOCK_BYTES).astype(np.int32)
    repeat = np.ones(photos, dtype=np.uint8)
    with _measured(found, "order"):
        order = epoch_order(repeat, block, 0, 0, RANK_PHOTOS * ranks)
    found["order_bytes"] = order.samples.nbytes + order.copies.nbytes
    bounds = rank_bounds(len(order.samples), order.steps, ranks)
    found["photos_a_rank"] = _spread(np.diff(bounds, axis=1).sum(axis=0))
    found["bytes_a_rank"] = _spread(_sums(size, order, bounds).sum(axis=0))
    read = {"rank": 1, f"node of {NODE_RANKS} ranks": min(NODE_RANKS, ranks)}
    found["block_bytes_over_photo_bytes"] = {
        name: _read_along(size, block, order, together) for name, together in read.items()
    }
    return found


def rank_bounds(photos: int, steps: int, ranks: int) -> NDArray[np.int64]:
    """Where the part of each rank begins in the order, and last where the batch ends: int64
    [steps, ranks + 1], as EpochOrder.step has it."""
    ends = np.arange(steps + 1) * photos // steps
    begins, sizes = ends[:-1, None], np.diff(ends)[:, None]
    bounds: NDArray[np.int64] = begins + np.arange(ranks + 1) * sizes // ranks
    return bounds


def _sums(size: NDArray[np.int32], order: EpochOrder, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of each rank's part of each batch, int64 [steps, ranks]."""
    until = np.concatenate([[0], np.cumsum(size[order.samples], dtype=np.int64)])
    return np.diff(until[bounds], axis=1)


def _read_along(size: NDArray[np.int32], block: NDArray[np.int32], order: EpochOrder, together: int) -> float:
    """Bytes of the blocks that hold a batch's part of so many ranks, over the bytes of its photos: what is
    read if blocks are read whole, by ranks that share what they read."""
    groups = order.batch // RANK_PHOTOS // together
    read = wanted = 0
    for step in range(0, order.steps, max(order.steps // LOOKED_AT, 1)):
        for group in range(0, groups, max(groups // LOOKED_AT, 1)):
            samples, _ = order.step(step, group, groups)
            read += len(np.unique(block[samples])) * BLOCK_BYTES
            wanted += int(size[samples].sum())
    return round(read / max(wanted, 1), 2)


def _spread(values: NDArray[np.int64]) -> dict[str, float]:
    """Of all ranks; `skew` is how much more than the mean the largest has."""
    mean = float(values.mean())
    skew = round(float(values.max()) / mean - 1, 6)
    return {"min": int(values.min()), "mean": round(mean, 1), "max": int(values.max()), "skew": skew}


# ---- beyond arrays -------------------------------------------------------------------------------


def beyond(photos: int, shards: int, ranks: int, workers: int) -> dict[str, Any]:
    """An order made window by window, for photos whose order as an array has no place in each process."""
    from benchmarks.lazy import LazyOrder

    found: dict[str, Any] = {"photos": photos, "shards": shards, "ranks": ranks, "workers": workers}
    random = np.random.default_rng(0)
    number = max(photos * MEAN_BYTES // BLOCK_BYTES, 1)
    firsts = np.linspace(0, photos, number + 1).astype(np.int64)
    with _measured(found, "start"):
        order = LazyOrder(firsts, 0, 0)
        bounds = order.bounds
    looked_at = range(0, len(order), max(len(order) // LOOKED_AT, 1))
    with _measured(found, "windows"):
        made = sum(len(order.window(window)) for window in looked_at)
    seconds = found["windows"]["cpu_seconds"] / max(made, 1)
    steps = -(-photos // (RANK_PHOTOS * ranks))
    parts = np.diff(rank_bounds(photos, steps, ranks), axis=1).sum(axis=0)
    drawn = random.normal(MEAN_BYTES * parts, SPREAD_BYTES * np.sqrt(parts)).astype(np.int64)
    return {
        **found,
        "windows_an_epoch": len(bounds) - 1,
        "window_photos": int(np.diff(bounds).max()),
        "steps_an_epoch": steps,
        "windows_a_rank_and_step": 1 + -(-RANK_PHOTOS // int(np.diff(bounds).min())),
        "seconds_a_window": round(seconds * float(np.diff(bounds).mean()), 5),
        "photos_a_rank": _spread(parts),
        "bytes_a_rank": _spread(drawn),
        "bytes_a_worker": round(float(drawn.mean()) / max(workers, 1)),
        "array_bytes": photos * 5,
        "index_file_bytes": photos * 14,
    }


# ---- the command line ----------------------------------------------------------------------------


@app.command(context_settings=terminal.HELP_OPTIONS)
def scale(
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go.")] = Path("scale.json"),
    photos: Annotated[
        list[int] | None, typer.Option(min=1, help="Photos of a simulated split; can be repeated.")
    ] = None,
    orders: Annotated[
        list[int] | None, typer.Option(min=1, help="Photos of an order as an array; can be repeated.")
    ] = None,
    lazy: Annotated[int, typer.Option(min=1, help="Photos of the order without an array.")] = 1_000_000_000,
    shards: Annotated[int, typer.Option(min=1, help="Shards of these.")] = 100_000,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train.")] = 1024,
    workers: Annotated[int, typer.Option(min=1, help="Data workers of each.")] = 8,
) -> None:
    """Simulate starts, orders and ranks at scale, and write the figures with hardware and versions.

    Example: python -m benchmarks.scale --json scale.json
    """
    import torch

    result: dict[str, Any] = {
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "starts": [],
        "orders": [],
    }
    for count in photos or [1_750_000, 10_000_000]:
        result["starts"].append(starts(count, json_file.absolute().parent))
        _tell_start(result["starts"][-1])
    for count in orders or [1_000_000, 10_000_000, 100_000_000]:
        result["orders"].append(_alone(shares, count, ranks))
        _tell_order(result["orders"][-1])
    result["beyond"] = _alone(beyond, lazy, shards, ranks, workers)
    _tell_beyond(result["beyond"])
    json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    terminal.say(f"{terminal.clean(json_file)} is written")


def _tell_start(found: dict[str, Any]) -> None:
    for name in ("first", "second"):
        each = found[name]
        parts = ", ".join(f"{part} {each[part]['seconds']:.2f} s" for part in ("open", "order", "read"))
        private = size_text(each["open"]["private_bytes"])
        terminal.say(f"{counted(found['photos'], 'photo')}, {name} start: {parts}; {private} private")


def _tell_order(found: dict[str, Any]) -> None:
    order, along = found["order"], found["block_bytes_over_photo_bytes"]
    terminal.say(
        f"order of {counted(found['photos'], 'photo')}: {order['seconds']:.2f} s, "
        f"{size_text(found['order_bytes'])}, {size_text(order['peak_bytes'])} while it is made"
    )
    factors = ", ".join(f"{factor} times the photos of a {name}" for name, factor in along.items())
    skew = f"bytes skewed by {found['bytes_a_rank']['skew']:.2%}"
    terminal.say(f"{counted(found['ranks'], 'rank')} of it: {skew}; whole blocks are {factors}")


def _tell_beyond(found: dict[str, Any]) -> None:
    begun, photos = found["start"], counted(found["window_photos"], "photo")
    arrays, index = size_text(found["array_bytes"]), size_text(found["index_file_bytes"])
    terminal.say(
        f"{counted(found['photos'], 'photo')} by windows: {begun['seconds']:.1f} s and "
        f"{size_text(begun['private_bytes'])} to begin, {1000 * found['seconds_a_window']:.1f} ms a window "
        f"of {photos}; as arrays {arrays}, and an index of {index}"
    )


if __name__ == "__main__":
    terminal.run(app, as_json=False)
