"""The whole protocol, timed and scored by the commands that people use; for benchmarks/results.

Example: python -m benchmarks.protocol --shards data/shards --recipe small --json leaves-small.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from shardtool import terminal
from shardtool.errors import UserError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)


@app.command(context_settings=terminal.HELP_OPTIONS)
def protocol(
    shards: Annotated[Path, typer.Option(help="A packed dataset with train and val.")],
    json_file: Annotated[Path, typer.Option("--json", help="Where the results go.")],
    recipe: Annotated[str, typer.Option(help="small, swin_tiny or a .toml file.")] = "small",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")] = 2,
) -> None:
    """Train a recipe from nothing, score what came out, and write both with hardware and versions.

    Example: python -m benchmarks.protocol --shards data/shards --recipe small --json leaves-small.json
    """
    from shardtool.index import open_manifest
    from train.device import choose_device
    from train.machine import hardware, versions

    manifest = open_manifest(str(shards))
    with tempfile.TemporaryDirectory(prefix="protocol-") as folder:
        run = Path(folder, "run")
        train = ["--shards", f"{shards}/train", "--recipe", recipe, "--workers", str(workers)]
        seconds = _run(*train, "--out", str(run))[1]
        scores = _run("evaluate", str(run), "--shards", f"{shards}/val", "--workers", str(workers), "--json")
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    result = {
        "hardware": hardware(choose_device("auto")),
        "versions": versions(),
        "commands": [
            f"train-hier --shards data/shards/train --recipe {recipe} --workers {workers}",
            f"train-hier evaluate runs/{recipe} --shards data/shards/val --json",
        ],
        "data": {"digest": manifest.digest, "photos": {n: sum(c) for n, c in manifest.class_counts.items()}},
        "training": {"seconds": round(seconds, 1), "epochs": _epochs(events)},
        "evaluation": json.loads(scores[0]),
    }
    json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    terminal.say(f"{seconds:.0f} s of training; {terminal.clean(json_file)} is written")


def _run(*arguments: str) -> tuple[str, float]:
    """What `train-hier` with these arguments prints on stdout, and its seconds. Raises UserError."""
    command = [sys.executable, "-c", "from train.cli import main; main()", *arguments]
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"train-hier ended with status {done.returncode}", where=" ".join(arguments))
    return done.stdout, time.monotonic() - start


def _epochs(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each epoch: stage, speed, data wait and scores."""
    kept = ("stage", "epoch", "seconds", "photos_a_second", "data_wait_share", "val_loss", "metrics")
    return [{name: event[name] for name in kept} for event in events if event["event"] == "epoch"]


if __name__ == "__main__":
    terminal.run(app, as_json=False)
