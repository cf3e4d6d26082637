"""The plan of very many photos that exist only as the table of a scan: its seconds and its memory."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from benchmarks.machine import peak_memory
from shardtool import terminal
from shardtool.text import counted, size_text

if TYPE_CHECKING:
    import pyarrow as pa

    from shardtool.taxonomy import Taxonomy

SPECIES, DISEASES = 320, 100


def plan_simulated(count: int) -> list[dict[str, Any]]:
    """Seconds and peak memory of planning `count` photos, of a tree with split folders and one without.

    Each in a process of its own, whose memory counts in full, the simulated photos included.
    """
    context = multiprocessing.get_context("spawn")
    results = []
    for given in (True, False):
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            results.append(executor.submit(_plan_simulated, count, given).result())
        seconds, peak = results[-1]["seconds"], size_text(results[-1]["peak_bytes"])
        splits = "given" if given else "made"
        terminal.say(f"plan of {counted(count, 'simulated photo')}, splits {splits}: {seconds:.1f} s, {peak}")
    return results


def _plan_simulated(count: int, given: bool) -> dict[str, Any]:
    photos, taxonomy = simulated_photos(count, given)
    start = time.monotonic()
    shards = plan_photos(photos, taxonomy)
    seconds = time.monotonic() - start
    return {
        "photos": photos.num_rows,
        "classes": taxonomy.rows,
        "splits": "given" if given else "made",
        "shards": shards,
        "seconds": round(seconds, 3),
        "photos_table_bytes": photos.nbytes,
        "peak_bytes": peak_memory(os.getpid()),
    }


def simulated_photos(count: int, given: bool) -> tuple[pa.Table, Taxonomy]:
    """What a scan of `count` photos of about 80 KB would find (schema `shardtool.scan.PHOTOS`).

    `given`: in train and val folders, 9 to 1; else the splits are to be made.
    """
    import numpy as np
    import pyarrow as pa

    from shardtool.taxonomy import Taxonomy

    names = [(_species(s), _disease(d)) for s in range(SPECIES) for d in range(DISEASES)]
    random = np.random.default_rng(0)
    parts = [("train/", 0, 0.9), ("val/", 1, 0.1)] if given else [("", -1, 1.0)]
    shares = np.repeat([share / SPECIES for _, _, share in parts], SPECIES)
    bounds = np.round(np.concatenate([[0], np.cumsum(shares)]) * count).astype(np.int64)
    groups = itertools.product(parts, range(SPECIES))
    chunks = [
        _simulated_species(random, folder, split, species, start, stop)
        for ((folder, split, _), species), (start, stop) in zip(
            groups, itertools.pairwise(bounds.tolist()), strict=True
        )
    ]
    return pa.concat_tables(chunks), Taxonomy.from_labels(names)


def _species(number: int) -> str:
    return f"Solanum_tuberosum_{number:03d}"


def _disease(number: int) -> str:
    return f"Late_blight_{number:03d}"


def _simulated_species(random: Any, folder: str, split: int, species: int, start: int, stop: int) -> pa.Table:
    """The photos with the numbers `start` to `stop`, disease by disease."""
    import numpy as np
    import pyarrow as pa

    from shardtool.scan import PHOTOS

    count = stop - start
    diseases = np.arange(count) * DISEASES // max(count, 1)
    digests = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), count, [None, pa.py_buffer(random.bytes(16 * count))]
    )
    return pa.table(
        {
            "source": _simulated_paths(f"{folder}{_species(species)}/", diseases, start),
            "split": np.full(count, split, np.int8),
            "row": (species * DISEASES + diseases).astype(np.int32),
            "size": random.normal(80_000, 20_000, count).clip(5_000).astype(np.int64),
            "width": np.full(count, 512, np.int32),
            "height": np.full(count, 384, np.int32),
            "crc32c": random.integers(0, 1 << 32, count, np.uint32),
            "digest": digests,
            "rule": pa.repeat("", count),
            "progressive": pa.repeat(False, count),
            "look": pa.repeat(b"", count),
        },
        schema=PHOTOS,
    )


def _simulated_paths(folder: str, diseases: Any, start: int) -> pa.Array:
    """Paths of about 60 bytes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from shardtool.scan import PHOTOS

    folders = pa.array([f"{folder}{_disease(number)}/IMG_" for number in range(DISEASES)])
    numbers = pc.cast(pa.array(np.arange(start, start + len(diseases))), pa.string())
    padded = pc.utf8_lpad(numbers, 10, "0")
    paths = pc.binary_join_element_wise(folders.take(pa.array(diseases)), padded, ".jpg", "")
    return paths.cast(PHOTOS.field("source").type)


def plan_photos(photos: pa.Table, taxonomy: Taxonomy) -> int:
    """Select and lay out photos (schema `shardtool.scan.PHOTOS`) that a scan found; returns the shards."""
    from shardtool import layout
    from shardtool.plan import VAL_SHARE, PackOptions
    from shardtool.scan import SPLITS, Scan
    from shardtool.select import select

    options = PackOptions()
    scan = select(Scan(taxonomy, photos, ()), VAL_SHARE, options.seed)
    layouts = layout.plan(scan.photos, taxonomy, SPLITS, options.seed, options.shard_size)
    return sum(map(len, layouts.values()))
