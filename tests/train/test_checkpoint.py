from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shardtool.taxonomy import Taxonomy
from train.checkpoint import Checkpoint, Damaged, Position, load_last, resume_name, save_last
from train.recipe import Recipe


@pytest.fixture
def checkpoint(tiny: Recipe, ragged: Taxonomy) -> Checkpoint:
    weights = {"a": torch.arange(2000, dtype=torch.float32)}
    return Checkpoint(weights, tiny.as_dict(), ragged, np.arange(6), "digest", Position(), "one")


def at(checkpoint: Checkpoint, step: int) -> Checkpoint:
    return replace(checkpoint, position=Position(0, 0, step))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def test_sha256sum_agrees_with_the_digest_beside_a_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "one.pt")
    checkpoint.save(tmp_path / "one.pt")
    subprocess.run(["sha256sum", "--strict", "-c", "one.pt.sha256"], cwd=tmp_path, check=True)


def test_a_bit_flipped_in_a_tensor_is_noticed_which_torch_does_not(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "one.pt"
    checkpoint.save(path)
    flip_a_bit(path)
    torch.load(path, weights_only=True)
    with pytest.raises(Damaged, match="sha256 differs"):
        Checkpoint.load(path)


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty])
def test_a_damaged_newest_checkpoint_is_kept_aside_and_the_one_before_used(
    checkpoint: Checkpoint, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for step in range(5):
        save_last(tmp_path, at(checkpoint, step), keep=3)
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["last-1.pt", "last-2.pt", "last.pt"]
    damage(tmp_path / "last.pt")
    found, notes = load_last(tmp_path)
    assert found is not None
    assert found.position.step == 3
    assert notes == ["last.pt is damaged (sha256 differs), kept as damaged-last.pt"]
    assert (tmp_path / "damaged-last.pt").exists()
    save_last(tmp_path, at(checkpoint, 4), keep=3)  # there is no last.pt now
    found, notes = load_last(tmp_path)
    assert found is not None
    assert (found.position.step, notes) == (4, [])


def test_where_no_checkpoint_is_whole_that_is_an_error_and_none_at_all_is_a_start(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    assert load_last(tmp_path) == (None, [])
    for step in range(2):
        save_last(tmp_path, at(checkpoint, step), keep=2)
    for age in range(2):
        empty(tmp_path / resume_name(age))
    with pytest.raises(Damaged, match=r"last\.pt.*last-1\.pt"):
        load_last(tmp_path)


class Killed(BaseException):
    pass


def test_a_save_that_is_cut_off_anywhere_leaves_a_checkpoint_that_loads(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace
    for deadline in range(1, 100):
        folder = tmp_path / str(deadline)
        folder.mkdir()
        for step in range(3):
            save_last(folder, at(checkpoint, step), keep=2)
        calls = 0

        def fail(source: str | Path, target: str | Path, deadline: int = deadline) -> None:
            nonlocal calls
            calls += 1
            if calls == deadline:
                raise Killed
            real(source, target)

        monkeypatch.setattr(os, "replace", fail)
        try:
            for step in (3, 4):
                save_last(folder, at(checkpoint, step), keep=2)
        except Killed:
            pass
        else:
            assert deadline > 10
            return
        finally:
            monkeypatch.setattr(os, "replace", real)
        found, notes = load_last(folder)
        assert found is not None
        assert notes == []
        assert found.position.step >= 2
    raise AssertionError("a save has fewer renames than that")


def test_another_label_space_is_mapped_by_name_and_keeps_what_was_learned(
    checkpoint: Checkpoint, ragged: Taxonomy
) -> None:
    heads = {
        "backbone.x": torch.ones(3),
        "species_head.weight": torch.arange(6.0).view(3, 2),
        "species_head.bias": torch.arange(3.0),
        "disease_heads.weight": torch.arange(12.0).view(6, 2),
        "disease_heads.bias": torch.arange(6.0),
    }
    # B is gone, A has lost "x", C has "new", D is new
    other = Taxonomy(("A", "C", "D"), (("h", "y"), ("h", "new", "z"), ("h",)))
    old = replace(checkpoint, model=heads, ema=heads, best={"species_only": 1.0}, position=Position(2, 3, 4))
    new = old.remapped(other)
    assert (new.position, new.optimizer, new.best) == (Position(2, 3, 0), None, {})
    assert torch.equal(new.model["backbone.x"], heads["backbone.x"])
    assert new.model["species_head.bias"].tolist() == [0, 2, 0]
    assert new.model["disease_heads.bias"].tolist() == [0, 2, 4, 0, 5, 0]
    weight = new.model["disease_heads.weight"]
    assert torch.equal(weight[[0, 1, 2, 4]], heads["disease_heads.weight"][[0, 2, 4, 5]])
    assert 0 < weight[[3, 5]].abs().max() < 0.1
    assert torch.equal(new.ema["species_head.weight"][:2], heads["species_head.weight"][[0, 2]])
