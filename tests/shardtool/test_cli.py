"""The command line as a person meets it: exit statuses, one-line errors, JSON, harmless names."""

from __future__ import annotations

import html.parser
import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from shardtool.cli.app import parse_size, parse_split
from shardtool.errors import UsageError
from shardtool.terminal import clean
from tests.kinds import Grow, Jpeg, Shardtool

ROOT = Path(__file__).resolve().parent.parent.parent
IMG = "<img src=x onerror=alert(1)>"
EVIL = [
    IMG,
    "[bold red]loud[blink]",
    "\x1b[31mred\x1b]0;title\x07",
    "abc\u202etxt.exe",
    "nul\x01\r\nforged: line",
]
HARMLESS_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "div", "span"),
    *(
        "h1",
        "h2",
        "h3",
        "p",
        "a",
        "b",
        "i",
        "br",
        "wbr",
        "bdi",
        "code",
        "small",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "img", "figcaption"),
    *("svg", "path", "rect", "line", "text", "g"),
}


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr, which is the error; people read one line, not ten."""
    assert done.stdout == ""
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_clean_pack_is_status_0_and_a_second_one_too(
    specimens: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    first = shardtool("pack", specimens, "--out", tmp_path / "out", "--workers", 2, "--json")
    assert first.returncode == 0
    value = json.loads(first.stdout)
    assert value["splits"]["train"]["samples"] == 36
    assert value["splits"]["val"]["samples"] == 18
    assert (value["species"], value["classes"]) == (3, 9)
    assert value["written_shards"] == 2
    assert value["refusals"] == []
    second = shardtool("pack", specimens, "--out", tmp_path / "out", "--workers", 1)
    assert second.returncode == 0
    assert "0 shards written, 2 were up to date" in second.stderr
    info = json.loads(shardtool("info", tmp_path / "out", "--json").stdout)
    assert info["digest"] == value["digest"]
    other = shardtool("pack", specimens, "--out", tmp_path / "out", "--seed", 1)
    assert other.returncode == 8
    assert "seed 0 -> 1" in error_line(other)


def test_refused_photos_are_status_3_and_named(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, shardtool: Shardtool
) -> None:
    tree = grow(
        tmp_path / "tree",
        {
            "train/A/x/leak.jpg": jpeg(1),
            "val/A/x/1.jpg": jpeg(1),
            "train/A/x/page.jpg": b"<html>",
            "train/A/x/good.jpg": jpeg(2),
        },
    )
    done = shardtool("pack", tree, "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 3
    assert "train/A/x/leak.jpg: leak, same bytes as val/A/x/1.jpg" in done.stderr
    assert "train/A/x/page.jpg: not an image" in done.stderr
    again = shardtool("pack", tree, "--out", tmp_path / "out", "--workers", 1, "--json")
    assert again.returncode == 3
    assert json.loads(again.stdout)["refused"] == {"leak": 1, "not an image": 1}
    strict = shardtool("pack", tree, "--out", tmp_path / "strict", "--workers", 1, "--strict")
    assert strict.returncode == 1
    assert "page.jpg" in error_line(strict)


def test_wrong_use_is_status_2_with_one_line(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, shardtool: Shardtool
) -> None:
    tree = grow(tmp_path / "tree", {"train/A/x/1.jpg": jpeg(1)})
    foreign = grow(tmp_path / "foreign", {"thesis.txt": b"mine"})
    twins = grow(tmp_path / "twins", {"train/A/x/1.jpg": jpeg(1), "train/a/x/1.jpg": jpeg(2)})
    for arguments, words in (
        ((tree, "--out", tree / "out"), "inside the source"),
        ((tree, "--out", foreign), "not made by shardtool"),
        ((tmp_path / "nowhere", "--out", tmp_path / "out"), "no such folder"),
        ((tree, "--out", tmp_path / "out", "--shard-size", "inf"), "not a size"),
        ((twins, "--out", tmp_path / "out2"), "'A' and 'a'"),
    ):
        done = shardtool("pack", *arguments, "--workers", 1)
        assert done.returncode == 2
        assert words in error_line(done)


def test_an_error_is_an_object_under_json(tmp_path: Path, shardtool: Shardtool) -> None:
    done = shardtool("info", tmp_path, "--json")
    assert done.returncode == 2
    value = json.loads(done.stdout)
    assert value["status"] == 2
    assert value["error"] == "UsageError"
    assert value["where"] == str(tmp_path)
    assert value["cure"]


def test_an_unknown_option_is_status_2(shardtool: Shardtool) -> None:
    assert shardtool("pack", "--nope").returncode == 2


def test_every_command_shows_an_example(shardtool: Shardtool) -> None:
    for command in ("pack", "verify", "info", "specimens"):
        done = shardtool(command, "-h")
        assert done.returncode == 0
        assert f"Example: shardtool {command}" in done.stdout


def test_an_output_that_cannot_be_made_is_status_1_with_one_line(
    specimens: Path, tmp_path: Path, grow: Grow, shardtool: Shardtool
) -> None:
    grow(tmp_path, {"file": b"x"})
    done = shardtool("pack", specimens, "--out", tmp_path / "file" / "out", "--workers", 1)
    assert done.returncode in (1, 2)
    assert "file" in error_line(done)


def test_a_failed_write_is_status_1_and_leaves_no_half_shard(
    specimens: Path, tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        command("pack", specimens, "--out", out, "--workers", 1),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 1
    assert "File too large" in error_line(done)
    assert [path.name for path in out.rglob("*") if path.is_file()] == [".lock"]


def test_an_unknown_address_is_status_2_with_one_line(shardtool: Shardtool) -> None:
    done = shardtool("info", "nosuchscheme://x/y")
    assert done.returncode == 2
    assert "nosuchscheme" in error_line(done)


def test_specimens_of_another_plan_are_status_2_with_one_line(tmp_path: Path, shardtool: Shardtool) -> None:
    plan = ("--species", 1, "--diseases", 1, "--images", 2, "--size", 32, "--workers", 1)
    assert shardtool("specimens", tmp_path / "drawn", *plan).returncode == 0
    done = shardtool("specimens", tmp_path / "drawn", *plan, "--seed", 1)
    assert done.returncode == 2
    assert "another plan" in error_line(done)


# --- Names that want to do something -----------------------------------------------------------


class Tags(html.parser.HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_class_names_do_nothing_on_the_terminal_and_in_the_report(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, shardtool: Shardtool
) -> None:
    names = [*EVIL, os.fsdecode(b"caf\xe9\xff")]
    files = {f"train/{name}/{name}/{name}.jpg": jpeg(i) for i, name in enumerate(names)}
    bad = {f"train/{name}/{name}/bad{name}.jpg": b"\x1b[31m<script>[red]" for name in names}
    done = shardtool("pack", grow(tmp_path / "tree", files | bad), "--out", tmp_path / "out", "--workers", 1)
    assert done.returncode == 3
    for character in ("\x1b", "\x07", "\x01", "\r", "\u202e"):
        assert character not in done.stderr
    assert "[bold red]loud[blink]" in done.stderr
    assert not any(line.startswith("forged") for line in done.stderr.splitlines())
    report = (tmp_path / "out/report.html").read_text()
    tags = Tags()
    tags.feed(report)
    assert {tag for tag, _ in tags.seen} <= HARMLESS_TAGS
    assert all((attributes["href"] or "").startswith("#") for tag, attributes in tags.seen if tag == "a")
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in tags.seen if tag == "img")
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert "default-src 'none'" in report
    assert "\x1b" not in json.dumps(json.loads((tmp_path / "out/report.json").read_text()))
    assert shardtool("verify", tmp_path / "out", "--workers", 1).returncode == 0


@pytest.mark.parametrize(
    "text", ["\x1b[0m", "a\x00b", "x\u202ey", "\ud800", "\u200b", "a\nb", "\x9b31m", "\u2028"]
)
def test_control_and_direction_characters_are_replaced(text: str) -> None:
    assert "\N{REPLACEMENT CHARACTER}" in clean(text)
    assert not set(clean(text)) & set("\x1b\x00\u202e\ud800\u200b\n\x9b\u2028")


@pytest.mark.parametrize("text", ["[red]", "[/]", "a[b]c", "\\[x]", "tail\\", "[link=file:///etc]x"])
def test_markup_is_printed_as_it_stands(text: str) -> None:
    from rich.text import Text

    assert Text.from_markup(f"[green]{clean(text)}[/] after").plain == f"{text} after"


# --- Values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GB", 10**9), ("64 MB", 64 * 10**6), ("64mb", 64 * 10**6), ("1.5kB", 1500), ("10485760", 10_485_760)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "1XB", "1GiB", "one", "nan", "inf", "1e999GB", "1 2 MB", "0x10"])
def test_what_is_no_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_shares_add_up_to_one() -> None:
    assert parse_split("0.9/0.1") == pytest.approx(0.1)
    assert parse_split("1/0") == 0


@pytest.mark.parametrize(
    "text", ["0.9", "0.9/0.2", "-0.1/1.1", "a/b", "", "0.8/0.1/0.1", "nan/nan", "inf/-inf"]
)
def test_other_shares_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        parse_split(text)


def test_a_dry_run_plans_to_the_byte_and_writes_nothing(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, shardtool: Shardtool
) -> None:
    tree = grow(
        tmp_path / "tree",
        {
            "train/A/x/1.jpg": jpeg(1),
            "train/A/y/2.jpg": jpeg(2),
            "val/A/x/3.jpg": jpeg(1),
            "val/A/y/4.jpg": b"",
        },
    )
    out = tmp_path / "out"
    planned = shardtool("pack", tree, "--out", out, "--workers", 1, "--dry-run", "--json")
    assert not out.exists()
    packed = shardtool("pack", tree, "--out", out, "--workers", 1, "--json")
    assert planned.returncode == packed.returncode == 3
    plan, done = json.loads(planned.stdout), json.loads(packed.stdout)
    assert plan["splits"] == done["splits"]
    assert plan["refusals"] == done["refusals"]
    assert done["splits"]["train"]["bytes"] == (out / "train/shard-000000.tar").stat().st_size
    for_people = shardtool("pack", tree, "--out", tmp_path / "none", "--workers", 1, "--dry-run")
    assert "nothing was written" in for_people.stderr
    assert not (tmp_path / "none").exists()


def test_a_dry_run_says_which_shards_a_change_rewrites(
    specimens_copy: Path, packed_copy: Path, jpeg: Jpeg, shardtool: Shardtool
) -> None:
    sorted(specimens_copy.glob("train/*/*/*.jpg"))[11].write_bytes(jpeg(1, 40, 40))
    line = ("pack", specimens_copy, "--out", packed_copy, "--workers", 1, "--shard-size", "40000", "--json")
    planned = json.loads(shardtool(*line, "--dry-run").stdout)["to_write"]
    written = json.loads(shardtool(*line).stdout)
    assert len(planned["shards"]) == 1
    assert planned["shards"] == written["written"]
    assert planned["bytes"] == (packed_copy / f"{planned['shards'][0]}.tar").stat().st_size
    assert planned["seconds"] > 0


def test_a_dry_run_refuses_what_a_pack_refuses(
    specimens: Path, packed_copy: Path, shardtool: Shardtool
) -> None:
    for arguments, status in ((("--seed", 1), 8), (("--out", specimens / "out"), 2)):
        line = ("pack", specimens, "--out", packed_copy, "--shard-size", "40000", "--workers", 1, *arguments)
        assert shardtool(*line).returncode == shardtool(*line, "--dry-run").returncode == status


@pytest.mark.parametrize(
    "options",
    [
        ("--near-duplicates", "--check", "header"),
        ("--strict", "--max-refused", "3"),
        ("--cluster", "tcp://127.0.0.1:9", "--workers", 1000),
        ("--max-refused", "-1"),
        ("--max-refused", "101%"),
        ("--max-refused", "some"),
        ("--max-side", "3"),
        ("--quality", "0"),
    ],
)
def test_options_without_effect_or_sense_are_status_2(
    options: tuple[object, ...], specimens: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    done = shardtool("pack", specimens, "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    assert "--" in error_line(done)


def test_an_interrupted_pack_says_what_it_found(
    specimens: Path, packed_copy: Path, shardtool: Shardtool
) -> None:
    (packed_copy / "dataset.json").unlink()
    (packed_copy / "train/.tmp-1-shard-000000.tar").write_bytes(b"half")
    (packed_copy / "train/shard-000000.parquet").unlink()
    done = shardtool("pack", specimens, "--out", packed_copy, "--shard-size", "40000", "--workers", 1)
    shards = len(list(packed_copy.glob("*/*.tar")))
    assert f"resuming: {shards - 1} of {shards} shards verified, 1 partial discarded" in done.stderr
    assert "written anew: train/shard-000000\n" in done.stderr


def test_in_a_locale_without_utf_8_paths_are_told_as_in_any_other(
    tmp_path: Path, grow: Grow, jpeg: Jpeg, shardtool: Shardtool
) -> None:
    tree = grow(
        tmp_path / "tree", {"train/Caf\u00e9/x/\u00f6.jpg": jpeg(1), "train/Caf\u00e9/x/\u00fc.jpg": b""}
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shardtool("pack", tree, "--out", tmp_path / "out", "--workers", 1, "--json", **plain)
    assert [refusal["source"] for refusal in json.loads(done.stdout)["refusals"]] == [
        "train/Caf\u00e9/x/\u00fc.jpg"
    ]
    for photo in ("train/Caf\u00e9/x/\u00fc.jpg", "train/Caf\u00e9/x/\u00f6.jpg"):
        found = shardtool("explain", photo, "--shards", tmp_path / "out", "--json", **plain)
        assert photo in str(json.loads(found.stdout))


@pytest.mark.parametrize(
    "wrong", [("--workers", "0"), ("--max-side", "abc"), ("--no-such-option",), ("--seed", "-1")]
)
def test_a_command_line_that_is_wrong_is_an_object_under_json(
    wrong: tuple[str, ...], specimens: Path, tmp_path: Path, shardtool: Shardtool
) -> None:
    done = shardtool("pack", specimens, "--out", tmp_path / "out", "--json", *wrong)
    assert done.returncode == 2
    assert json.loads(done.stdout)["status"] == 2
    assert wrong[0] in json.loads(done.stdout)["what"]


@pytest.mark.parametrize("text", ['{"format": 1, "options": null}', "[" * 100_000])
def test_a_dataset_json_that_somebody_edited_is_told_in_one_line_and_mended(
    text: str, specimens: Path, packed_copy: Path, shardtool: Shardtool
) -> None:
    (packed_copy / "dataset.json").write_text(text)
    assert "damaged" in error_line(shardtool("info", packed_copy))
    done = shardtool("pack", specimens, "--out", packed_copy, "--shard-size", "40000", "--workers", 1)
    assert done.returncode == 0
    assert shardtool("info", packed_copy).returncode == 0
