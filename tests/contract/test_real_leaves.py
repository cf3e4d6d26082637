"""Photos as found in the wild: odd names, copies inside and between the splits, nine crops."""

from __future__ import annotations

import json
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shardtool.index import open_split
from shardtool.verify import verify

LEAKS = 39


@pytest.fixture(scope="module")
def outcome(
    real_leaves: Path,
    tmp_path_factory: pytest.TempPathFactory,
    shardtool: Callable[..., subprocess.CompletedProcess[str]],
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("leaves") / "shards"
    return out, shardtool("pack", real_leaves, "--out", out, "--shard-size", "32MB", "--workers", 2, "--json")


Outcome = tuple[Path, subprocess.CompletedProcess[str]]


def test_all_photos_are_packed_but_those_that_leak(outcome: Outcome, real_leaves: Path) -> None:
    _, done = outcome
    assert done.returncode == 3
    value = json.loads(done.stdout)
    assert {name: split["samples"] for name, split in value["splits"].items()} == {"train": 9786, "val": 1478}
    assert value["refused"] == {"leak": LEAKS}
    assert (value["species"], value["classes"]) == (9, 28)
    for refusal in value["refusals"]:
        twin = refusal["detail"].removeprefix("same bytes as ")
        assert refusal["source"].startswith("train/")
        assert twin.startswith("val/")
        assert (real_leaves / refusal["source"]).read_bytes() == (real_leaves / twin).read_bytes()


def test_every_byte_is_where_the_sidecars_say(outcome: Outcome) -> None:
    verified = verify(outcome[0])
    assert verified.findings == ()
    assert verified.samples == 9786 + 1478


def test_webdataset_reads_all_of_them(outcome: Outcome) -> None:
    wds = pytest.importorskip("webdataset")
    for name in ("train", "val"):
        split = open_split(str(outcome[0] / name))
        addresses = [f"{split.folder}/{shard}.tar" for shard in split.shards]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = wds.WebDataset(addresses, shardshuffle=False)
            keys, labels = zip(*((s["__key__"], int(s["cls"])) for s in samples), strict=True)
        assert len(set(keys)) == len(split)
        assert Counter(labels) == Counter(split.species.tolist())


def test_every_shard_holds_the_species_in_proportion(outcome: Outcome) -> None:
    split = open_split(str(outcome[0] / "train"))
    whole = Counter(split.species.tolist())
    for shard in range(len(split.shards)):
        inside = split.species[split.shard == shard]
        counts = Counter(inside.tolist())
        for species, count in whole.items():
            expected = count * len(inside) / len(split)
            assert abs(counts[species] - expected) < 5 * expected**0.5 + 5
