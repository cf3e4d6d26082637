"""The verdict is a function of the measurements, and the table and the JSON leave none of them out."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.probes import PROBES, Measurement, On
from benchmarks.report import OVERHEAD, Setting, as_json, band, explanations, table, verdict
from shardtool.quality import ShuffleQuality
from train.utilisation import Usage

GPU = Setting(
    recipe="swin_tiny",
    shards="data/shards/train",
    photos=10_000,
    photo_bytes=50_000.0,
    workers=4,
    cores=16,
    device="cuda",
    batch=256,
    augmented=True,
    quick=False,
    mixing=ShuffleQuality(256, 96.5, 97.1),
)
ON: dict[str, On] = {
    "shard read": "one core",
    "decode": "one core",
    "augment": "one core",
    "loader": "workers",
    "model step": "device",
}
FED = {
    "disk, cold": 20_000.0,
    "disk, warm": 200_000.0,
    "shard read": 50_000.0,
    "decode": 1_000.0,
    "augment": 1_000.0,
    "loader": 1_900.0,
    "model step": 1_200.0,
}


def taken(rates: dict[str, float], wait: float | None = None) -> list[Measurement]:
    measurements = [
        Measurement(name, ON.get(name, "disk"), (rate * 0.9, rate, rate * 1.2), 1000, f"how {name} was taken")
        for name, rate in rates.items()
    ]
    if wait is not None:
        rate = min(rates.values())
        usage = Usage(source="no GPU is used")
        measurements += [Measurement("together", "all", (rate,), 1000, "fed", data_wait=wait, usage=usage)]
    return measurements


def test_a_device_that_is_fed_is_the_bottleneck_and_gets_its_own_knobs() -> None:
    found = verdict(taken(FED, wait=0.02), GPU)
    assert (found.bottleneck, found.cause) == ("model step", "")
    assert "busy 98% of the time (over 95 %: optimal)" in found.text
    assert "optimizer.batch, now 256" in found.text
    assert "about 3 workers would be enough" in found.text  # 475 images/s each, 1,200 eaten


def test_a_short_loader_is_told_how_many_workers_would_feed_the_device() -> None:
    rates = {**FED, "decode": 500.0, "loader": 1_300.0, "model step": 3_900.0}
    found = verdict(taken(rates, wait=0.66), GPU)
    assert (found.bottleneck, found.cause) == ("loader", "decode")
    assert "4 workers deliver 1,300 images/s where the model step eats 3,900" in found.text
    assert "busy 34% of the time (under 70 %: feed it more)" in found.text
    assert "about 12 workers on the 16 cores would deliver 3,900 images/s" in found.text


def test_more_workers_are_not_promised_to_deliver_more_than_the_cores_can() -> None:
    rates = {**FED, "decode": 500.0, "loader": 1_300.0, "model step": 10_400.0}
    found = verdict(taken(rates), GPU)
    assert "about 16 workers on the 16 cores would deliver 5,200 images/s, 50% of the need" in found.text


def test_where_all_cores_are_at_work_no_more_workers_are_asked_for() -> None:
    found = verdict(taken({**FED, "model step": 9_000.0}), replace(GPU, workers=8, cores=4))
    assert found.bottleneck == "loader"
    assert "all 4 cores are at work, so not more workers" in found.text


def test_when_augmentation_dominates_a_lighter_profile_is_the_knob() -> None:
    rates = {**FED, "decode": 3_000.0, "augment": 500.0, "loader": 1_500.0, "model step": 3_000.0}
    found = verdict(taken(rates), GPU)
    assert (found.bottleneck, found.cause) == ("loader", "augment")
    assert "Augmentation takes 75% of a photo's time" in found.text
    assert "augment.profile" in found.text
    assert "up to 6,000 images/s with none at all" in found.text


def test_when_decoding_dominates_the_augmentation_is_left_alone() -> None:
    rates = {**FED, "decode": 500.0, "augment": 3_000.0, "loader": 1_500.0, "model step": 3_000.0}
    found = verdict(taken(rates), GPU)
    assert (found.bottleneck, found.cause) == ("loader", "decode")
    assert "photos stored smaller" in found.text
    assert "profile" not in found.text


def test_no_lighter_profile_is_proposed_where_nothing_is_augmented() -> None:
    rates = {**FED, "decode": 3_000.0, "augment": 500.0, "loader": 1_500.0, "model step": 3_000.0}
    found = verdict(taken(rates), replace(GPU, augmented=False))
    assert found.cause == "augment"
    assert "profile" not in found.text


def test_a_loader_far_below_its_stages_is_blamed_on_overhead() -> None:
    found = verdict(taken({**FED, "loader": 500.0}), GPU)
    assert (found.bottleneck, found.cause) == ("loader", OVERHEAD)
    assert "look what else runs" in found.text


def test_a_cold_disk_is_short_even_if_the_page_cache_hides_it() -> None:
    found = verdict(taken({**FED, "disk, cold": 300.0}, wait=0.01), GPU)
    assert found.bottleneck == "disk, cold"
    assert "delivers 300 images/s where the model step eats 1,200" in found.text
    assert "busy 25% of the time at most" in found.text


def test_on_a_cpu_the_workers_and_the_step_are_said_to_share_the_cores() -> None:
    setting = replace(GPU, device="cpu", workers=2, cores=2)
    found = verdict(taken({**FED, "loader": 1_500.0, "model step": 750.0}), setting)
    assert found.bottleneck == "model step"
    assert "share the cores, about 500 images/s" in found.text
    assert "busy about 100% of the time (over 95 %: optimal)" in found.text  # nothing measured together


@pytest.mark.parametrize("wait", [None, 0.3])
@pytest.mark.parametrize("short", ["model step", "loader", "disk, cold"])
def test_a_verdict_has_two_sentences(short: str, wait: float | None) -> None:
    found = verdict(taken({**FED, short: 100.0}, wait), GPU)
    assert found.bottleneck == short
    assert len(re.findall(r"\.(?= [A-Z]|$)", found.text)) == 2


@pytest.mark.parametrize("missing", ["loader", "model step"])
def test_without_a_loader_or_a_step_there_is_no_verdict_but_the_reason(missing: str) -> None:
    measurements = taken({name: rate for name, rate in FED.items() if name != missing})
    measurements.append(Measurement(missing, "device", note="the device's memory is too small"))
    found = verdict(measurements, GPU)
    assert found.bottleneck == ""
    assert f"{missing} not measured (the device's memory is too small)" in found.text


@pytest.mark.parametrize(
    ("busy", "word"),
    [(0.96, "optimal"), (0.95, "good"), (0.9, "good"), (0.89, "fair"), (0.69, "feed it more")],
)
def test_the_bands_are_the_source_documents(busy: float, word: str) -> None:
    assert word in band(busy)


def shown(measurements: list[Measurement], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(measurements, verdict(measurements, GPU), GPU))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_row_for_every_measurement_on_eighty_columns() -> None:
    measurements = taken(FED, wait=0.02)
    assert [m.name for m in measurements] == list(PROBES)
    rows = {line.split("│")[1].strip(): line for line in shown(measurements).splitlines() if "│" in line}
    assert [name.removesuffix(" ◀") for name in rows] == list(PROBES)
    assert "200k" in rows["disk, warm"]
    assert "1,080 – 1,440" in rows["model step ◀"]


def test_the_bottleneck_and_the_largest_part_of_a_short_loader_are_marked() -> None:
    text = shown(taken({**FED, "augment": 400.0, "loader": 1_000.0}))
    assert re.findall(r"│ ([\w, ]+) [◀◁]", text) == ["augment", "loader"]


def test_a_stage_that_was_not_taken_is_in_the_table_with_its_reason_below() -> None:
    measurements = [
        Measurement("disk, cold", "disk", note="the page cache keeps the shards"),
        *taken(FED)[1:],
    ]
    assert "not taken" in shown(measurements)
    assert "disk, cold: not taken, the page cache keeps the shards" in explanations(measurements)


def test_an_unknown_utilisation_is_unknown_and_never_zero() -> None:
    measurements = taken(FED, wait=0.02)
    value = as_json(measurements, verdict(measurements, GPU), GPU, {}, {})
    assert value["measurements"][-1]["usage"]["percent"] == "unknown"
    assert explanations(measurements)[-1] == "device utilisation: unknown (no GPU is used)"


def test_the_json_holds_every_measurement_with_all_its_trials() -> None:
    measurements = taken(FED, wait=0.25)
    text = json.dumps(as_json(measurements, verdict(measurements, GPU), GPU, {"cores": 16}, {"torch": "2"}))
    value = json.loads(text)
    assert {m["name"]: m["trials"] for m in value["measurements"]} == {
        m.name: list(m.trials) for m in measurements
    }
    assert value["measurements"][3]["images_per_second"] == 1_000
    assert value["measurements"][-1]["device_busy"] == 0.75
    assert value["settings"]["workers"] == 4
    assert value["verdict"]["bottleneck"] == "model step"
    assert (value["hardware"], value["versions"]) == ({"cores": 16}, {"torch": "2"})
