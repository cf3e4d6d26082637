"""Utilisation is named with its source, or is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from train.utilisation import Sampler, Usage, find_source

CUDA = torch.device("cuda")


def card(drm: Path, name: str, text: str) -> Path:
    file = drm / name / "device" / "gpu_busy_percent"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return file


@pytest.fixture
def without_vendor_library() -> None:
    """torch.cuda.utilization() fails as it does where nothing is installed to ask."""
    try:
        torch.cuda.utilization()
    except Exception:
        return
    pytest.skip("this machine's vendor library answers")


@pytest.mark.usefixtures("without_vendor_library")
def test_the_kernels_file_is_read_where_the_vendors_library_is_missing(tmp_path: Path) -> None:
    file = card(tmp_path, "card1", "87\n")
    source = find_source(CUDA, tmp_path)
    assert source.name == str(file)
    assert source.read is not None
    assert source.read() == 87


@pytest.mark.usefixtures("without_vendor_library")
@pytest.mark.parametrize("cards", [[], ["12", "34"], ["n/a"]])
def test_no_card_several_cards_and_no_number_are_unknown(tmp_path: Path, cards: list[str]) -> None:
    for number, text in enumerate(cards):
        card(tmp_path, f"card{number}", text)
    assert find_source(CUDA, tmp_path).read is None


def test_a_training_on_the_cpu_asks_no_gpu() -> None:
    with Sampler(torch.device("cpu")) as sampler:
        pass
    assert sampler.usage == Usage(None, None, "no GPU is used", 0)
    assert sampler.usage.text() == "unknown (no GPU is used)"


def test_a_known_utilisation_is_told_with_its_source() -> None:
    assert Usage(87.4, 1, "NVML", 42).text() == "87 % (NVML, 42 readings)"
    assert Usage().text() == "unknown"
