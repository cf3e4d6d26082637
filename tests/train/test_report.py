"""The page tells what the log and the evaluation hold, opens anywhere, and no name on it does anything."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from shardtool.errors import UsageError
from shardtool.index import Split
from shardtool.taxonomy import Taxonomy
from tests.browser import Page, browser, find_chromium
from train.calibration import Outputs
from train.cli import app
from train.evaluate import Evaluated
from train.logbook import Logbook
from train.metrics import Predictions
from train.report import REPORT, RESULTS, report_page, save_results, write_report
from train.report.curves import POINTS, steps_of
from train.report.photos import thumbnails
from train.report.runlog import lost_steps, read_log
from train.results import results

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "\"'><script>alert(1)</script>",
    "\u202egnp.evil",
    "N" * 200,
    "two\nlines",
    "</style></title></script></svg>",
)
Event = dict[str, Any]


# ---- what a run leaves ----------------------------------------------------------------------------------


def taxonomy_of(species: int, diseases: int = 2, names: tuple[str, ...] = ()) -> Taxonomy:
    known = [*names, *(f"species {number:03}" for number in range(species - len(names)))]
    hostile = [f"{name} {number}" for number, name in enumerate((names or ("disease",)) * diseases)]
    return Taxonomy.from_labels([(one, hostile[number]) for one in known for number in range(diseases)])


def evaluated(taxonomy: Taxonomy, photos: int = 400, seed: int = 0) -> Evaluated:
    """A network that is right now and then, about photos of every class."""
    draw = np.random.default_rng(seed)
    kinds, most = len(taxonomy.species), int(taxonomy.sizes.max())
    species = np.arange(photos) % kinds
    disease = draw.integers(taxonomy.sizes[species])
    logits = draw.normal(size=(photos, kinds))
    logits[np.arange(photos), species] += 2.5
    own = np.where(
        np.arange(most) < taxonomy.sizes[species][:, None], draw.normal(size=(photos, most)), -np.inf
    )
    beam = np.argsort(-logits, axis=1)[:, :2]
    heads = np.where(
        np.arange(most) < taxonomy.sizes[beam][:, :, None], draw.normal(size=(photos, 2, most)), -np.inf
    )
    seen = Predictions(
        species, disease, beam[:, 0], own.argmax(1), np.ones(photos, dtype=bool), heads[:, 0].argmax(1)
    )
    samples, none = np.arange(photos), np.zeros(0, dtype=np.int64)
    return Evaluated(seen, {"species": 0.5, "disease": 0.7}, samples, none, Outputs(logits, own, beam, heads))


def results_of(taxonomy: Taxonomy, photos: int = 400) -> dict[str, Any]:
    counts = np.full(taxonomy.rows, 50)
    value = results(evaluated(taxonomy, photos), taxonomy, counts, [])
    return {**json.loads(json.dumps(value)), "checkpoint": "last.pt", "thumbnails": {}}


def window(step: int, **more: Any) -> Event:
    return {
        "event": "steps",
        "time": 100.0 + step,
        "step": step,
        "steps": 50,
        "photos": 500,
        "seconds": 5.0,
        "photos_a_second": 100.0,
        "data_wait_share": 0.25,
        "device_busy_share": 0.7,
        "train": {"species": 2 / step, "gradient norm": 1.0},
        "lr": {"backbone": 1e-4, "species_head": 1e-3},
        **more,
    }


def epoch(step: int, stage: str = "full", number: int = 1) -> Event:
    metrics = {"species_top1": 0.9, "disease_top1": 0.8, "cascade": 0.7, "tail_macro_f1": None}
    return window(step, event="epoch", stage=stage, epoch=number, metrics=metrics, val_loss=0.4)


def start(step: int, time: float = 100.0) -> Event:
    recipe = {
        "name": "small",
        "optimizer": {"batch": 64, "betas": [0.9, 0.999]},
        "stages": [{"name": "full"}],
    }
    versions = {"torch": "9.9"}
    return {
        "event": "run",
        "time": time,
        "step": step,
        "device": "a CPU",
        "recipe": recipe,
        "versions": versions,
    }


EVENTS = [
    start(0),
    {"event": "stage", "time": 100.0, "stage": "full", "number": 1, "step": 0, "protocol": ["lr 1"]},
    window(50),
    {"event": "replaced", "time": 151.0, "sample": 3, "substitute": 4, "where": "a.tar: 3", "reason": "cut"},
    window(100),
    {"event": "skipped", "time": 201.0, "step": 101, "photos": ["Tomato/Blight, a.tar: 9"]},
    window(150),
    start(100, time=300.0),
    {"event": "stage", "time": 300.0, "stage": "full", "number": 1, "step": 100},
    window(130, time=330.0),
    epoch(140),
    {"event": "finished", "time": 350.0},
]


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def section(page: str, title: str) -> str:
    found = re.search(rf'<section id="{title}">(.*?)</section>', page, re.DOTALL)
    assert found, title
    return found[1]


def text(markup: str) -> str:
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", markup)).split())


# ---- the log in order -----------------------------------------------------------------------------------


def test_steps_that_a_resume_does_again_count_once() -> None:
    log = read_log(EVENTS)
    assert [window["step"] for window in log.windows] == [50, 100, 130]
    assert [(one.first_step, one.last_step) for one in log.sessions] == [(0, 150), (100, 140)]
    assert [one.ended for one in log.sessions] == ["killed, or still running", "finished"]
    assert lost_steps(log.sessions) == [50, 0]
    assert log.seconds == 150 + 50
    assert [(stage.number, stage.step) for stage in log.stages] == [(1, 0)]


def test_a_log_of_nothing_is_empty() -> None:
    log = read_log([])
    assert (log.sessions, log.windows, log.seconds) == ([], [], 0)


@pytest.mark.parametrize("high", [0.003, 0.9, 1, 7, 154, 410_000])
def test_an_axis_has_a_few_round_ticks(high: float) -> None:
    ticks = steps_of(0, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] == 0
    assert high * 0.5 < ticks[-1] <= high * 1.000001


# ---- what is said ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    return results_of(taxonomy_of(6))


@pytest.fixture(scope="module")
def page(told: dict[str, Any]) -> str:
    return report_page("run", EVENTS, told)


def test_every_item_of_the_verification_list_has_its_verdict_and_figure(
    page: str, told: dict[str, Any]
) -> None:
    said = text(section(page, "verification")).lower()
    assert len(told["verification"]) == 7
    for entry in told["verification"]:
        item, figure, verdict = (entry[name].lower() for name in ("item", "figure", "verdict"))
        assert re.search(rf"{re.escape(verdict)} {re.escape(item)} .*{re.escape(figure)}", said), item


def test_every_metric_has_value_interval_target_and_definition(page: str, told: dict[str, Any]) -> None:
    said = text(section(page, "metrics"))
    for name, definition in told["definitions"].items():
        assert f"{name.replace('_', ' ')} {definition}" in said
    low, high = told["intervals"]["species_top1"]
    value, verdict = told["metrics"]["species_top1"], told["verdicts"]["species_top1"]
    assert re.search(rf"{value:.1%} . {verdict} ≥ 95% {low:.1%} – {high:.1%} 400 photos", said)


def test_each_cell_of_the_matrix_is_a_count_and_each_confused_pair_a_row(
    page: str, told: dict[str, Any]
) -> None:
    part = section(page, "confusion")
    cells = [
        attributes for tag, attributes in Elements(part).seen if tag == "rect" and "data-n" in attributes
    ]
    found = [[int(cell[name] or 0) for name in ("y", "x", "data-n")] for cell in cells]
    assert found == told["confusion"]["counts"]
    assert sum(count for _, _, count in found) == 400
    for pair in told["confusion"]["pairs"]:
        assert (
            f"{pair['truth']} {pair['answer']} {pair['count']} {pair['photos']} {pair['share']:.1%}"
            in text(part)
        )


def test_species_and_rare_classes_come_with_all_their_figures(page: str, told: dict[str, Any]) -> None:
    said = text(section(page, "species"))
    for entry in told["species"]:
        assert f"{entry['name']} {entry['diseases']} {entry['photos']} {entry['right']:.1%}" in said
    rare = text(section(page, "rare-classes"))
    assert "12 classes have at most 80 training photos" in rare
    worst = min(told["classes"], key=lambda entry: entry["f1"])
    assert rare.index(worst["species"]) == min(
        rare.index(one["name"]) for one in told["species"] if one["name"] in rare
    )


def test_mistakes_are_shown_with_both_answers_and_how_sure_it_was(page: str, told: dict[str, Any]) -> None:
    said = text(section(page, "mistakes"))
    for entry in told["wrong"]["confident"] + told["wrong"]["worst"]:
        truth, answer = (" / ".join(entry[side]) for side in ("truth", "answer"))
        assert f"{truth} taken for {answer} sure to {entry['probability']:.1%}" in said


def test_calibration_is_told_before_and_after(page: str, told: dict[str, Any]) -> None:
    said = text(section(page, "calibration"))
    for level in ("species", "disease", "answer"):
        found = told["calibration"][level]
        assert f"{found['photos']} {found['before']:.1%} {found['after']:.1%}" in said


def test_curves_are_drawn_of_losses_rates_metrics_speed_and_waiting(page: str) -> None:
    curves = section(page, "curves")
    titles = re.findall("<h3>(.*?)</h3>", curves)
    assert titles == [
        *("Loss", "Validation metrics", "Learning rate", "Gradient norm before clipping", "Speed"),
        "Where the time goes",
    ]
    assert "species, training: 0.04 at first, 0.01538 at last" in curves
    assert "species_head: 0.001 at first" in curves
    assert "waiting for data: 0.25 at first, 0.25 at last" in curves
    assert "device busy: 0.7 at first, 0.7 at last" in curves


def test_a_device_that_could_not_be_timed_has_no_curve_of_zeros() -> None:
    events = [start(0), window(50, device_busy_share=None), window(100, device_busy_share=None)]
    assert "device busy:" not in report_page("run", events, None)


def test_a_line_is_broken_where_a_stage_has_no_such_value() -> None:
    rates = [{"backbone": 1e-4}, {"backbone": 1e-4}, {"heads": 1e-3}, {"backbone": 1e-5}, {"backbone": 1e-5}]
    events = [start(0), *(window(50 * place, lr=rate) for place, rate in enumerate(rates, 1))]
    rate = re.search(r"<h3>Learning rate</h3>.*?<svg class=.*?</svg>", report_page("run", events, None))
    assert rate
    backbone, heads = re.findall(r'<path class="line l\d" d="([^"]*)"><title>', rate[0])
    assert re.sub(r"[\d. ]", "", backbone) == "MLML"
    assert re.sub(r"[\d. ]", "", heads) == "M"


def test_a_long_run_is_drawn_with_few_points() -> None:
    events = [start(0), *(window(50 * (number + 1)) for number in range(9000))]
    page = report_page("run", events, None)
    longest = max(path.count("L") for path in re.findall('<path class="line[^>]*d="([^"]*)"', page))
    assert POINTS / 2 < longest < POINTS
    assert len(page) < 200_000


def test_bad_photos_skipped_steps_and_interruptions_are_told(page: str) -> None:
    left_out = text(section(page, "photos-and-steps-left-out"))
    assert "1 photo could not be used" in left_out
    assert "a.tar: 3 cut" in left_out
    assert "101 step skipped: loss or gradient not finite" in left_out
    assert "Tomato/Blight, a.tar: 9" in left_out
    run = text(section(page, "run"))
    assert "1 resume, 50 logged steps done again" in run
    assert "killed, or still running 50" in run
    assert "1 full 0 lr 1" in run
    assert "torch 9.9" in run
    assert "optimizer.betas [0.9, 0.999]" in run
    assert "stages.0.name full" in run


def test_a_run_that_is_not_evaluated_says_how_to(tmp_path: Path) -> None:
    with Logbook(tmp_path) as log:
        log.event("run", step=0)
    page = write_report(tmp_path).read_text()
    assert "train-hier report RUN --shards" in text(section(page, "verification"))


def test_an_evaluation_without_a_log_has_a_page(tmp_path: Path, told: dict[str, Any]) -> None:
    (tmp_path / RESULTS).write_text(json.dumps(told))
    assert "There is no log" in write_report(tmp_path).read_text()


def test_an_evaluation_without_photos_has_a_page() -> None:
    page = report_page("run", EVENTS, results_of(taxonomy_of(3), photos=0))
    assert "No validation photos" in section(page, "confusion")


def test_what_is_no_run_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path)
    (tmp_path / RESULTS).write_text('{"cut')
    with pytest.raises(UsageError, match="not JSON"):
        write_report(tmp_path)
    (tmp_path / RESULTS).write_text("{}")
    with pytest.raises(UsageError, match="not an evaluation"):
        write_report(tmp_path)
    assert CliRunner().invoke(app, ["report", str(tmp_path / "none")]).exit_code != 0


# ---- thumbnails -----------------------------------------------------------------------------------------


def test_thumbnails_are_of_the_photos_that_are_named(tmp_path: Path, val_split: Split) -> None:
    few = evaluated(val_split.taxonomy, photos=9)
    counts = np.full(val_split.taxonomy.rows, 50)
    value = results(few, val_split.taxonomy, counts, [])
    named = {str(entry["sample"]) for kind in ("confident", "worst") for entry in value["wrong"][kind]}
    pictures = thumbnails(val_split, value)
    assert named
    assert set(pictures) == named
    sample = min(named)
    small = Image.open(io.BytesIO(base64.b64decode(pictures[sample]))).convert("RGB")
    whole = Image.open(io.BytesIO(val_split.read([int(sample)])[0])).convert("RGB")
    assert max(small.size) <= 96
    difference = np.asarray(small, float) - np.asarray(whole.resize(small.size), float)
    assert np.abs(difference).mean() < 12  # grey levels, of two ways to shrink and a JPEG
    save_results(tmp_path, value, val_split, "last.pt")
    assert write_report(tmp_path).read_text().count("data:image/jpeg;base64,") == sum(
        len(value["wrong"][kind]) for kind in ("confident", "worst")
    )


# ---- safe -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile_page() -> str:
    taxonomy = taxonomy_of(8, names=HOSTILE)
    events = [
        {**start(0), "device": HOSTILE[0]},
        {"event": "stage", "stage": HOSTILE[1], "number": 1, "step": 0},
        window(50, lr={HOSTILE[5]: 1e-3, HOSTILE[0]: 1e-4}),
        epoch(60, stage=HOSTILE[0]),
        {"event": "replaced", "sample": 1, "substitute": 2, "where": HOSTILE[0], "reason": HOSTILE[1]},
        {"event": "skipped", "step": 3, "photos": list(HOSTILE)},
    ]
    return report_page(HOSTILE[1], events, results_of(taxonomy))


def test_no_name_becomes_markup(hostile_page: str, page: str) -> None:
    hostile, tame = Elements(hostile_page), Elements(page)
    assert {tag for tag, _ in hostile.seen} <= {tag for tag, _ in tame.seen}
    assert sum(tag == "script" for tag, _ in hostile.seen) == 1
    for tag, attributes in hostile.seen:
        assert not any(name.startswith("on") or name == "style" for name in attributes), attributes
        assert tag != "img" or (attributes["src"] or "").startswith("data:image/jpeg;base64,")
        assert tag != "a" or (attributes["href"] or "").startswith("#")
    assert "\u202e" not in hostile_page
    assert "two\nlines" not in hostile_page


def test_only_the_style_and_script_of_the_page_are_let_in(hostile_page: str) -> None:
    for kind in ("style", "script"):
        found = re.findall(f"<{kind}>(.*?)</{kind}>", hostile_page, re.DOTALL)
        assert len(found) == 1
        allowed = base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{allowed}';" in hostile_page
    assert "default-src 'none'; img-src data:;" in hostile_page


# ---- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    program = find_chromium()
    if program is None:
        pytest.skip("needs chromium on the PATH")
    with browser(program, tmp_path_factory.mktemp("profile")) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 320 species, hostile ones among them, with 4,800 photos."""
    path = tmp_path_factory.mktemp("many") / REPORT
    path.write_text(report_page("run", EVENTS, results_of(taxonomy_of(320, 3, HOSTILE), 4800)))
    return path


def test_the_page_opens_from_disk_without_network_and_without_a_complaint(chromium: Page, many: Path) -> None:
    chromium.open(many)
    assert chromium.problems == []
    assert {url for url in chromium.requests if many.name in url} == set(chromium.requests) - {"about:blank"}
    assert chromium.evaluate("document.querySelectorAll('section').length") == 10


def test_nothing_is_wider_than_a_phone(chromium: Page, many: Path) -> None:
    chromium.open(many, width=390)
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_dark_and_print_have_their_own_colours(chromium: Page, many: Path) -> None:
    chromium.open(many)
    colour = "getComputedStyle(document.body).backgroundColor"
    chromium.media("", prefers_color_scheme="light")
    light = chromium.evaluate(colour)
    chromium.media("", prefers_color_scheme="dark")
    assert chromium.evaluate(colour) != light
    chromium.media("print", prefers_color_scheme="light")
    assert chromium.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"
    chromium.media("")


def test_a_click_on_a_title_sorts_by_number_and_a_second_one_turns_round(chromium: Page, many: Path) -> None:
    chromium.open(many)
    table = "document.querySelector('#species .sortable')"
    column = f"[...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[3].textContent))"
    chromium.evaluate(f"{table}.tHead.rows[0].cells[3].click()")
    rising = chromium.evaluate(column)
    chromium.evaluate(f"{table}.tHead.rows[0].cells[3].click()")
    assert len(set(rising)) > 5
    assert rising == sorted(rising)
    assert chromium.evaluate(column) == sorted(rising, reverse=True)


def test_the_matrix_tells_the_cell_that_is_pointed_at_after_any_sorting(chromium: Page, many: Path) -> None:
    chromium.open(many)
    chromium.evaluate(
        "const order = document.querySelector('.order'), show = document.querySelector('.show');"
        "order.value = 'wrong'; order.dispatchEvent(new Event('change'));"
        "show.value = '10'; show.dispatchEvent(new Event('change'));"
    )
    shown = chromium.evaluate(
        "[...document.querySelectorAll('.matrix [data-n]')]"
        ".filter(one => one.getAttribute('visibility') !== 'hidden')"
        ".map(one => {const box = one.getBoundingClientRect();"
        "const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2};"
        "one.ownerSVGElement.dispatchEvent(new PointerEvent('pointermove', at));"
        "const said = document.querySelector('output').textContent;"
        "return [one.querySelector('title').textContent, said, box.width]"
        "})"
    )
    assert 10 <= len(shown) <= 100
    for title, said, width in shown:
        assert said == title
        assert width > 25  # CSS pixels: of 320 species ten fill the matrix


def test_the_matrix_can_be_walked_with_the_keys(chromium: Page, tmp_path: Path, told: dict[str, Any]) -> None:
    path = tmp_path / REPORT
    path.write_text(report_page("run", EVENTS, told))
    chromium.open(path)
    press = "document.querySelector('.matrix').dispatchEvent(new KeyboardEvent('keydown', {key: '%s'}));"
    chromium.evaluate(press % "ArrowRight" + press % "ArrowDown" + press % "ArrowDown")
    counts = {(truth, answer): count for truth, answer, count in told["confusion"]["counts"]}
    said = chromium.evaluate("document.querySelector('output').textContent")
    assert said.startswith(f"species 002 taken for species 001: {counts.get((2, 1), 0)} of ")
