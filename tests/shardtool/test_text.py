"""Numbers read as a person would write them, and the words need no terminal."""

from __future__ import annotations

import subprocess
import sys

import pytest

from shardtool.text import counted, plain, size_text, time_text


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards"), (1024, "1,024 shards")]
)
def test_a_count_agrees_with_its_noun(count: int, words: str) -> None:
    assert counted(count, "shard") == words


def test_a_noun_may_bring_its_plural() -> None:
    assert [counted(count, "class", "classes") for count in (1, 3)] == ["1 class", "3 classes"]


@pytest.mark.parametrize(
    ("count", "words"), [(999, "999 B"), (71_234_000_000, "71.2 GB"), (2.5e15, "2500.0 TB")]
)
def test_a_size_has_the_largest_unit_that_leaves_a_whole_number(count: float, words: str) -> None:
    assert size_text(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(4.21, "4.2 s"), (720, "12 min"), (11_100, "3 h 05")])
def test_a_duration_has_the_unit_that_a_person_would_take(seconds: float, words: str) -> None:
    assert time_text(seconds) == words


def test_plain_text_has_no_control_and_no_direction_characters() -> None:
    assert plain("a\nb\u202ec\x1bd\udce9") == "a\ufffdb\ufffdc\ufffdd\ufffd"


def test_a_library_that_packs_loads_no_terminal() -> None:
    code = "import sys, shardtool.pack, shardtool.verify; print({'rich', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
