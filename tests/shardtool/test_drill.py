"""The drill sees every fault, tells when one is missed, and leaves the dataset as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shardtool.drill import FAULTS, drill
from shardtool.errors import DatasetError, UsageError
from shardtool.indexing import find_shards, index_shards
from shardtool.pack import PackOptions, pack
from tests.kinds import Shardtool


def test_every_fault_is_caught_and_the_dataset_only_read(
    packed: Path, digests: Callable[..., object]
) -> None:
    before = digests(packed)
    trials = drill(packed)
    assert [trial.fault for trial in trials] == list(FAULTS)
    assert [trial.fault for trial in trials if not trial.caught] == []
    assert digests(packed) == before


def test_damage_that_verify_cannot_see_is_missed(packed: Path) -> None:
    faults = {"nothing at all": lambda copy: None, "shard missing": FAULTS["shard missing"]}
    assert [trial.caught for trial in drill(packed, faults=faults)] == [False, True]


def test_two_halves_of_the_only_shard_will_do(specimens: Path, tmp_path: Path) -> None:
    pack(specimens, tmp_path / "out", PackOptions())
    assert len(list((tmp_path / "out/train").glob("*.tar"))) == 1
    assert all(trial.caught for trial in drill(tmp_path / "out"))


def test_a_large_shard_is_not_copied_whole(
    tmp_path: Path, grow: Callable[..., Path], jpeg: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from shardtool import drill as module

    photos = {f"train/A/x/{number}.jpg": jpeg(number, 64, 64) for number in range(30)}
    pack(grow(tmp_path / "tree", photos), tmp_path / "out")
    monkeypatch.setattr(module, "PIECE_BYTES", 20_000)
    sizes: list[int] = []
    trials = drill(
        tmp_path / "out", faults={"look": lambda copy: sizes.append(copy.path(copy.one).stat().st_size)}
    )
    assert len(trials) == 1
    assert 0 < sizes[0] <= 40_960 < (tmp_path / "out/train/shard-000000.tar").stat().st_size


def test_what_is_damaged_already_is_no_place_for_a_drill(packed_copy: Path) -> None:
    path = packed_copy / "train/shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"damaged already|CRC"):
        drill(packed_copy)


def test_one_photo_is_too_few_and_a_foreign_dataset_is_refused(
    tmp_path: Path, grow: Callable[..., Path], jpeg: Callable[..., bytes], packed: Path
) -> None:
    pack(grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1)}), tmp_path / "out")
    with pytest.raises(UsageError, match="two photos"):
        drill(tmp_path / "out")
    index_shards(find_shards(f"{packed}/train/shard-{{000000..000001}}.tar"), str(tmp_path / "index"))
    with pytest.raises(UsageError, match="foreign"):
        drill(tmp_path / "index")


def test_the_command_prints_a_table_and_ends_well(packed: Path, shardtool: Shardtool) -> None:
    done = shardtool("verify", packed, "--drill")
    assert done.returncode == 0
    assert "MISSED" not in done.stderr
    assert done.stderr.count("caught") >= len(FAULTS)
    value = json.loads(shardtool("verify", packed, "--drill", "--json").stdout)
    assert [trial["caught"] for trial in value["trials"]] == [True] * len(FAULTS)
    assert shardtool("verify", packed, "--drill", "--deep").returncode == 2
