"""Damage of every kind is found, named, and told by the exit status."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardtool import tar
from shardtool.errors import UsageError
from shardtool.executor import processes
from shardtool.index import read_sidecar
from shardtool.pack import PackOptions, pack
from shardtool.verify import Verified, spread, verify, verify_sample
from tests.kinds import Shardtool


def flip(path: Path, offset: int, mask: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= mask
    path.write_bytes(data)


def rows(folder: Path, shard: str) -> list[dict[str, object]]:
    return read_sidecar((folder / f"{shard}.parquet").read_bytes(), shard).to_pylist()


def places(verified: Verified) -> list[str]:
    return [finding.where for finding in verified.findings]


def test_a_packed_dataset_is_clean(packed: Path) -> None:
    for deep in (False, True):
        verified = verify(packed, deep)
        assert verified.findings == ()
        assert verified.samples == 54
        assert verified.shards == len(list(packed.glob("*/*.tar")))
        assert verified.bytes == sum(path.stat().st_size for path in packed.glob("*/*.tar"))


def test_processes_find_the_same_as_one_process(packed_copy: Path) -> None:
    flip(packed_copy / "train/shard-000001.tar", 700)
    alone = verify(packed_copy)
    with processes(2) as executor:
        assert verify(packed_copy, executor=executor, workers=2) == alone
    assert len(alone.findings) == 1


def test_a_flipped_bit_in_a_photo_names_shard_key_and_offset(packed_copy: Path) -> None:
    sample = rows(packed_copy, "train/shard-000001")[2]
    flip(packed_copy / "train/shard-000001.tar", int(str(sample["offset"])) + 100, 0x40)
    where = f"train/shard-000001.tar, key {sample['key']}, offset {sample['offset']}"
    assert places(verify(packed_copy)) == [where]


def test_a_flipped_bit_in_a_header_names_shard_and_offset(packed_copy: Path) -> None:
    flip(packed_copy / "val/shard-000000.tar", 3)
    assert places(verify(packed_copy)) == ["val/shard-000000.tar at 0"]


@pytest.mark.parametrize("ending", [".cls", ".json"])
def test_a_flipped_bit_in_a_label_is_found(packed_copy: Path, ending: str) -> None:
    path = packed_copy / "train/shard-000000.tar"
    with tarfile.open(path) as file:
        label = next(member for member in file if member.name.endswith(ending))
    flip(path, label.offset_data)
    for deep in (False, True):
        [where] = places(verify(packed_copy, deep))
        assert where.startswith("train/shard-000000.tar")
    [finding] = verify(packed_copy, deep=True).findings
    assert ending in finding.what


def test_a_padding_byte_and_a_final_zero_are_not_too_small_to_be_found(packed_copy: Path) -> None:
    sample = rows(packed_copy, "train/shard-000000")[0]
    padding = int(str(sample["offset"])) + int(str(sample["size"]))
    assert padding % tar.BLOCK
    flip(packed_copy / "train/shard-000000.tar", padding)
    flip(packed_copy / "val/shard-000000.tar", -1)
    found = places(verify(packed_copy))
    assert [re.split("[ ,]", place)[0] for place in found] == [
        "train/shard-000000.tar",
        "val/shard-000000.tar",
    ]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_of_any_file_is_found(packed: Path, tmp_path: Path, data: st.DataObject) -> None:
    # Parquet and tar only: the reports are for people, dataset.json has its own test
    folder = tmp_path / "any"
    shutil.copytree(packed, folder, dirs_exist_ok=True)
    path = data.draw(st.sampled_from(sorted(folder.glob("*/shard-*"))))
    flip(path, data.draw(st.integers(0, path.stat().st_size - 1)), 1 << data.draw(st.integers(0, 7)))
    verified = verify(folder)
    assert verified.findings
    assert all(place.startswith(f"{path.parent.name}/{path.stem}") for place in places(verified))


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 10_240])
def test_a_cut_shard_is_found(packed_copy: Path, keep: int) -> None:
    os.truncate(packed_copy / "train/shard-000000.tar", keep)
    [finding] = verify(packed_copy).findings
    assert finding.where == "train/shard-000000.tar"
    assert f"has {keep} bytes" in finding.what


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_a_missing_file_is_found(packed_copy: Path, ending: str) -> None:
    (packed_copy / f"train/shard-000002.{ending}").unlink()
    [finding] = verify(packed_copy).findings
    assert finding.where.startswith("train/shard-000002")
    assert "No such file" in finding.what


def test_an_extra_shard_is_found(packed_copy: Path) -> None:
    shutil.copy(packed_copy / "train/shard-000000.tar", packed_copy / "train/shard-000099.tar")
    assert places(verify(packed_copy)) == ["train/shard-000099.tar"]


def test_a_split_that_is_not_listed_is_found(packed_copy: Path) -> None:
    shutil.copytree(packed_copy / "val", packed_copy / "test")
    assert places(verify(packed_copy)) != []


def swap(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def test_swapped_shards_are_found_with_and_without_their_sidecars(packed_copy: Path) -> None:
    train = packed_copy / "train"
    swap(train / "shard-000000.tar", train / "shard-000001.tar")
    found = verify(packed_copy).findings
    assert {finding.where.split(",")[0] for finding in found} == {
        "train/shard-000000.tar",
        "train/shard-000001.tar",
    }
    swap(train / "shard-000000.parquet", train / "shard-000001.parquet")
    assert set(places(verify(packed_copy))) == {"train/shard-000000.parquet", "train/shard-000001.parquet"}


def test_a_shard_of_another_generation_is_found(
    packed_copy: Path, specimens: Path, packing: PackOptions, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    pack(specimens, other, PackOptions(packing.shard_size, seed=1))
    for ending in ("tar", "parquet"):
        shutil.copy(other / f"val/shard-000000.{ending}", packed_copy / "val")
    assert {place.split(".")[0] for place in places(verify(packed_copy))} == {"val/shard-000000"}


def test_a_key_that_two_photos_have_is_named_with_both_shards(packed_copy: Path) -> None:
    """Somebody else's packer may have made it: the second shard is the first under another name."""
    path = packed_copy / "dataset.json"
    value = json.loads(path.read_text())
    shards = value["splits"]["train"]["shards"]
    for ending in ("tar", "parquet"):
        shutil.copy(
            packed_copy / f"train/shard-000000.{ending}", packed_copy / f"train/shard-000001.{ending}"
        )
    shards[1] = {**shards[0], "name": "shard-000001"}
    path.write_text(json.dumps(value))
    found = [finding for finding in verify(packed_copy).findings if finding.where.startswith("train/")]
    keys = [row["key"] for row in rows(packed_copy, "train/shard-000000")]
    assert [finding.where for finding in found] == [f"train/shard-000001.tar, key {key}" for key in keys]
    assert {finding.what for finding in found} == {"key is also in train/shard-000000.tar"}


@pytest.mark.parametrize("name", ["species", "disease", "shard"])
def test_a_changed_dataset_json_is_found(packed_copy: Path, name: str) -> None:
    path = packed_copy / "dataset.json"
    value = json.loads(path.read_text())
    if name == "species":
        value["taxonomy"]["species"][0]["name"] = "Aaa"
    elif name == "disease":
        value["taxonomy"]["species"][0]["diseases"][0] = "Aaa"
    else:
        value["splits"]["train"]["shards"].pop()
    path.write_text(json.dumps(value))
    assert "dataset.json" in places(verify(packed_copy))


def test_exchanged_class_counts_are_found(packed_copy: Path) -> None:
    path = packed_copy / "dataset.json"
    value = json.loads(path.read_text())
    counts = value["splits"]["train"]["class_counts"]
    counts[0], counts[1] = counts[0] + 1, counts[1] - 1
    path.write_text(json.dumps(value))
    assert places(verify(packed_copy)) == ["dataset.json"]


def test_a_photo_that_was_trusted_and_does_not_decode_is_found_by_looking_deep(
    specimens_copy: Path, tmp_path: Path
) -> None:
    photo = sorted(specimens_copy.glob("train/*/*/*.jpg"))[1]
    photo.write_bytes(photo.read_bytes()[:-200])
    pack(specimens_copy, tmp_path / "out", PackOptions(check="header"))
    assert verify(tmp_path / "out").findings == ()
    [finding] = verify(tmp_path / "out", deep=True).findings
    assert "does not decode" in finding.what
    assert re.fullmatch(r"train/shard-000000\.tar, key [0-9a-f]{24}, offset \d+", finding.where)


def test_a_folder_without_dataset_json_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no dataset\.json"):
        verify(tmp_path)


def test_what_verify_finds_the_next_pack_mends(
    packed: Path, packed_copy: Path, specimens: Path, packing: PackOptions, digests: Callable[..., object]
) -> None:
    flip(packed_copy / "train/shard-000000.tar", 700)  # a photo
    flip(packed_copy / "train/shard-000001.tar", 3)  # a header
    flip(packed_copy / "train/shard-000002.tar", -1)  # the zeros at the end
    flip(packed_copy / "val/shard-000000.parquet", 50)
    (packed_copy / "val/shard-000001.parquet").unlink()
    done = pack(specimens, packed_copy, packing)
    assert len(done.written) == 5
    assert verify(packed_copy, deep=True).findings == ()
    assert digests(packed_copy) == digests(packed)


# --- A sample of the photos ---------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), max_size=8), st.floats(0.001, 1))
def test_a_sample_is_spread_evenly_over_all_shards(counts: list[int], share: float) -> None:
    chosen = spread(counts, share)
    starts = [sum(counts[:place]) for place in range(len(counts))]
    rows = [start + int(row) for start, inside in zip(starts, chosen, strict=True) for row in inside]
    assert all((inside < count).all() for inside, count in zip(chosen, counts, strict=True))
    assert rows == sorted(set(rows))
    assert len(rows) == min(sum(counts), max(1, round(share * sum(counts))))
    steps = [after - before for before, after in itertools.pairwise(rows)]
    assert not steps or max(steps) - min(steps) <= 1


def test_a_whole_sample_finds_what_a_full_verify_finds_in_photos(packed_copy: Path) -> None:
    flip(packed_copy / "train/shard-000001.tar", 700)
    assert places(verify_sample(str(packed_copy), 1)) == places(verify(packed_copy))
    assert verify_sample(str(packed_copy), 1).samples == 54


def test_a_sample_deep_finds_a_photo_that_does_not_decode(specimens_copy: Path, tmp_path: Path) -> None:
    for photo in specimens_copy.glob("val/*/*/*.jpg"):
        photo.write_bytes(photo.read_bytes()[:-200])
    pack(specimens_copy, tmp_path / "out", PackOptions(check="header"))
    assert verify_sample(str(tmp_path / "out"), 0.2).findings == ()
    deep = verify_sample(str(tmp_path / "out"), 0.2, deep=True)
    assert {finding.what.partition(":")[0] for finding in deep.findings} == {"does not decode"}
    assert len(deep.findings) == 4


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_a_sample_names_the_shard_that_is_missing(packed_copy: Path, ending: str) -> None:
    (packed_copy / f"train/shard-000001.{ending}").unlink()
    found = verify_sample(str(packed_copy), 1).findings
    assert any("shard-000001" in finding.where + finding.what for finding in found)


def test_the_exit_status_is_0_for_good_and_4_for_damage(packed_copy: Path, shardtool: Shardtool) -> None:
    good = shardtool("verify", packed_copy, "--workers", 1)
    assert (good.returncode, good.stdout) == (0, "")
    assert "good" in good.stderr
    flip(packed_copy / "train/shard-000000.tar", 700)
    bad = shardtool("verify", packed_copy, "--json", "--workers", 1)
    assert bad.returncode == 4
    [finding] = json.loads(bad.stdout)["findings"]
    assert finding["where"].startswith("train/shard-000000.tar, key ")
    assert finding["where"] in bad.stderr
