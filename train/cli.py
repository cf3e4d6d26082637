"""train-hier: shards -> a hierarchical model.

Heavy modules are imported inside the commands, so that --help is instant.
"""

from __future__ import annotations

import posixpath
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardtool import __version__, terminal
from shardtool.errors import InputRefused, UsageError
from shardtool.text import plain

if TYPE_CHECKING:
    from shardtool.index import Split
    from train.checkpoint import Checkpoint
    from train.metrics import Scores
    from train.predict import NotAPhoto, Prediction
    from train.recipe import Recipe

app = typer.Typer(
    name="train-hier",
    help="Train one Swin with a species head and a disease head for each species, from shards.\n\n"
    "Example: train-hier --shards data/shards/train --recipe small\n\n"
    "The same command goes on where it was stopped. --debug shows the traceback of an error.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=terminal.HELP_OPTIONS,
)

Shards = Annotated[str, typer.Option(help="Packed split, local or remote: data/shards/train.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="swin_tiny, small, or a .toml file (see train/recipes).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a setting: --set optimizer.batch=128."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
CheckpointPath = Annotated[Path, typer.Argument(help="A .pt file, or a run folder for its best.")]
CPUS = terminal.cpus()


@app.callback()
def train(
    context: typer.Context,
    shards: Shards = "data/shards/train",
    val: Annotated[str, typer.Option(help="Validation split; by default val beside the train split.")] = "",
    recipe: RecipeName = "swin_tiny",
    out: Annotated[
        Path | None, typer.Option(help="Run folder; by default runs/RECIPE.", show_default=False)
    ] = None,
    workers: Workers = CPUS,
    device: Device = "auto",
    overrides: Overrides = None,
    pretrained: Annotated[bool, typer.Option(help="Start from timm's weights if the recipe says so.")] = True,
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print it.")] = False,
) -> None:
    """Train (without a sub-command), evaluate, predict, plan."""
    if version:
        typer.echo(f"train-hier {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    spec = _recipe(recipe, overrides, pretrained)
    _train(spec, shards, val, out or Path("runs") / spec.name, workers, device)


@app.command()
def evaluate(
    checkpoint: CheckpointPath,
    shards: Shards = "data/shards/val",
    workers: Workers = CPUS,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a checkpoint on a packed split: every metric with its definition and interval.

    Example: train-hier evaluate runs/small --shards data/shards/val --json
    """
    from shardtool.index import open_split
    from train.checkpoint import Checkpoint, find_checkpoint
    from train.metrics import scores_json

    found = Checkpoint.load(find_checkpoint(checkpoint))
    scores = _evaluate(found, open_split(shards), workers, device, quiet=as_json)
    if as_json:
        terminal.emit(scores_json(scores, found.taxonomy))
    else:
        _show_scores(scores)


@app.command()
def predict(
    checkpoint: CheckpointPath,
    photos: Annotated[list[Path], typer.Argument(help="Photos to look at.")],
    top: Annotated[int, typer.Option(min=1, help="Guesses to show.")] = 3,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Name the species and the disease on photos.

    Example: train-hier predict runs/small leaf.jpg --top 3
    """
    from train.checkpoint import Checkpoint, find_checkpoint
    from train.device import choose_device
    from train.predict import NotAPhoto
    from train.predict import predict as answer

    found = Checkpoint.load(find_checkpoint(checkpoint))
    where = choose_device(device)
    model = found.build_model().to(where)
    size = int(found.recipe["model"]["image_size"])
    answers = list(answer(model, found.taxonomy, photos, size, top, where))
    if as_json:
        terminal.emit([_answer_json(item) for item in answers])
    for item in answers:
        if not as_json:
            _show_answer(item)
    failed = sum(isinstance(item, NotAPhoto) for item in answers)
    if failed:
        kind = UsageError if failed == len(answers) else InputRefused
        terminal.finish(kind(f"{failed} of {len(answers)} paths could not be read as photos"))


@app.command()
def plan(
    shards: Shards = "data/shards/train",
    recipe: RecipeName = "swin_tiny",
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """What a training would do: stages, what trains, steps, and the effect of the 3x/5x rule.

    Example: train-hier plan --shards data/shards/train --recipe swin_tiny
    """
    from shardtool.index import open_split
    from train.plan import plan_json, show_plan

    spec, split = _recipe(recipe, overrides, pretrained=True), open_split(shards)
    if as_json:
        terminal.emit(plan_json(spec, split))
    else:
        show_plan(spec, split)


def _recipe(name: str, overrides: Sequence[str] | None, pretrained: bool) -> Recipe:
    from train.recipe import load_recipe

    extra = [] if pretrained else ["model.pretrained=false"]
    return load_recipe(name, [*(overrides or []), *extra])


def _train(spec: Recipe, shards: str, val: str, out: Path, workers: int, device: str) -> None:
    from shardtool.index import open_split
    from train.compat import import_torchvision
    from train.device import choose_device
    from train.loop import Run
    from train.loop import train as run_training

    split = open_split(shards)
    val_split = open_split(val or posixpath.join(posixpath.dirname(shards.rstrip("/")), "val"))
    if note := import_torchvision():
        terminal.say(f"[dim]{note}[/]")
    run = Run(spec, split, val_split, out, choose_device(device), workers)
    scores = run_training(run)
    _show_scores(scores)
    terminal.say(f"next: train-hier predict {terminal.clean(out)} PHOTO")


def _evaluate(found: Checkpoint, split: Split, workers: int, device: str, quiet: bool) -> Scores:
    from train.augment import EvalTransform
    from train.data import Loader
    from train.device import autocast, choose_device, choose_precision
    from train.evaluate import evaluate as ask
    from train.metrics import score
    from train.recipe import parse_recipe

    if found.taxonomy.digest != split.taxonomy.digest:
        raise UsageError(
            "the checkpoint and the shards have other classes: "
            + (found.taxonomy.difference(split.taxonomy) or "another order"),
            where=split.folder,
            cure="evaluate on shards packed with the classes of its training",
        )
    recipe = parse_recipe(found.recipe, "checkpoint")
    where = choose_device(device)
    loader = Loader(split, EvalTransform(recipe.model.image_size), workers, where)
    show = terminal.progress_unless(quiet)
    with show("evaluating photos", len(split)) as advance:
        evaluated = ask(
            found.build_model().to(where),
            loader,
            recipe.optimizer.micro_batch or recipe.optimizer.batch,
            where,
            autocast(where, choose_precision(where, recipe.optimizer)),
            recipe.loss,
            advance,
        )
    return score(evaluated.predictions, split.taxonomy, found.train_counts)


def _show_scores(scores: Scores) -> None:
    from train.metrics import METRICS

    colours = {"pass": "green", "fail": "red", "inconclusive": "yellow", "n/a": "dim"}
    table = terminal.table("", "metric", "value", "95 % interval", "target", "verdict")
    for name, result in scores.metrics.items():
        target = METRICS[name].target
        known = result.low is not None and result.high is not None
        table.add_row(
            name,
            f"{result.value:.1%}" if result.value is not None else "n/a",
            f"{result.low:.1%} – {result.high:.1%}" if known else "",
            f"{target:.0%}" if target else "",
            f"[{colours[result.verdict]}]{result.verdict}[/]",
        )
    terminal.console.print(table)
    for name, definition in METRICS.items():
        classes = scores.metrics[name].classes
        counted = f" ({classes} classes)" if classes is not None else ""
        terminal.say(f"[dim]{name}: {definition.text}{counted}[/]")
    terminal.say(f"{scores.photos:,} photos")


def _answer_json(item: Prediction | NotAPhoto) -> dict[str, object]:
    from train.predict import NotAPhoto

    if isinstance(item, NotAPhoto):
        return {"photo": item.photo, "error": item.reason}
    return {
        "photo": item.photo,
        "species": [vars(guess) for guess in item.species],
        "diseases": [vars(guess) for guess in item.diseases],
    }


def _show_answer(item: Prediction | NotAPhoto) -> None:
    from train.predict import NotAPhoto

    if isinstance(item, NotAPhoto):
        terminal.say(f"[red]{terminal.clean(item.photo)}[/]: {terminal.clean(item.reason)}")
        return
    parts = [
        ", ".join(f"{plain(guess.name)} {guess.probability:.0%}" for guess in guesses)
        for guesses in (item.species, item.diseases)
    ]
    sys.stdout.write(f"{plain(item.photo)}: {parts[0]} | {parts[1]}\n")


def main() -> None:
    """Entry point of the `train-hier` command."""
    terminal.run(app)
