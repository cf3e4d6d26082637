"""train-hier: shards -> a hierarchical model.

Heavy modules are imported inside the commands, so that --help is instant.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from shardtool import __version__, terminal
from shardtool.errors import InputRefused, UsageError
from shardtool.text import plain

if TYPE_CHECKING:
    from shardtool.index import Split
    from train.calibration import Temperatures
    from train.checkpoint import Checkpoint
    from train.evaluate import Evaluated
    from train.loop import Saving
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

Shards = Annotated[
    str, typer.Option(help="Packed split, local or remote (data/shards/train); or tars without an index.")
]
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
TemperaturesFile = Annotated[
    Path | None,
    typer.Option(
        "--temperatures", help="What evaluate --json printed: its temperatures in place of the checkpoint's."
    ),
]
CPUS = terminal.cpus()


class Where(NamedTuple):
    """Photos to train on, to validate on ("": beside them), and the run's folder."""

    shards: str
    val: str
    out: Path


class Habits(NamedTuple):
    """How a run is kept: when it saves, what it does with other classes, who else is told."""

    saving: Saving
    remap: bool
    wandb: str


_SCORES_CURE = "give what train-hier evaluate --json printed"


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
    save_minutes: Annotated[float, typer.Option(min=0, help="Between two saves inside an epoch.")] = 10.0,
    save_steps: Annotated[int, typer.Option(min=0, help="The same in steps, 0: by time alone.")] = 0,
    keep: Annotated[int, typer.Option(min=1, help="How many checkpoints to go on from.")] = 2,
    remap: Annotated[bool, typer.Option(help="Go on with other classes, mapped by name.")] = False,
    wandb: Annotated[str, typer.Option(metavar="PROJECT", help="Show curves in Weights & Biases, too.")] = "",
    version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print it.")] = False,
) -> None:
    """Train (without a sub-command), evaluate, predict, plan."""
    if version:
        typer.echo(f"train-hier {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is not None:
        return
    from train.loop import Saving

    spec = _recipe(recipe, overrides, pretrained)
    habits = Habits(Saving(save_minutes * 60, save_steps, keep), remap, wandb)
    _train(spec, Where(shards, val, out or Path("runs") / spec.name), workers, device, habits)


@app.command()
def evaluate(
    checkpoint: CheckpointPath,
    shards: Shards = "data/shards/val",
    workers: Workers = CPUS,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a checkpoint on a packed split: every metric with its definition and interval, calibration,
    confused species, classes, the verification list. Writes nothing.

    Example: train-hier evaluate runs/small --shards data/shards/val --json >scores.json
    """
    from shardtool.index import open_split
    from train.checkpoint import Checkpoint, find_checkpoint
    from train.logbook import read_events
    from train.metrics import score
    from train.results import results
    from train.tables import show_results, show_scores

    path = find_checkpoint(checkpoint)
    found = Checkpoint.load(path)
    evaluated = _evaluate(found, open_split(shards), workers, device, quiet=as_json)
    value = results(evaluated, found.taxonomy, found.train_counts, read_events(path))
    if as_json:
        terminal.emit(value)
    else:
        show_scores(score(evaluated.predictions, found.taxonomy, found.train_counts))
        show_results(value)


@app.command()
def predict(
    checkpoint: CheckpointPath,
    photos: Annotated[list[Path], typer.Argument(help="Photos, folders, patterns such as 'a/**/*.jpg'.")],
    top: Annotated[int, typer.Option(min=1, help="Guesses to show.")] = 3,
    beam: Annotated[
        int, typer.Option(min=1, help="Species whose diseases are weighed; 1 settles the species first.")
    ] = 3,
    sure: Annotated[
        float, typer.Option(min=0, max=1, help="Probability below which an answer is not sure.")
    ] = 0.5,
    temperatures: TemperaturesFile = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read and decode.")] = CPUS,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Name the species and the disease on photos.

    The answer is the pair of the highest probability, P(species) × P(disease | species).

    Example: train-hier predict runs/small leaf.jpg --top 3
    """
    from train.checkpoint import Checkpoint, find_checkpoint
    from train.device import choose_device
    from train.predict import BATCH, NotAPhoto, Rule, find_photos
    from train.predict import predict as answer

    found = Checkpoint.load(find_checkpoint(checkpoint))
    where = choose_device(device)
    model = found.build_model().to(where)
    size = int(found.recipe["model"]["image_size"])
    rule = Rule(beam, top, sure, _temperatures(found, temperatures))
    paths = find_photos(photos)
    show = terminal.progress_unless(as_json or len(paths) <= BATCH)
    with show("looking at photos", len(paths)) as advance:
        # all of them first: on a terminal the bar would swallow what is written to stdout
        answers = list(answer(model, found.taxonomy, paths, size, where, rule, workers, advance))
    if as_json:
        terminal.emit([_answer_json(item) for item in answers])
    for item in answers:
        if not as_json:
            _show_answer(item)
    failed = sum(isinstance(item, NotAPhoto) for item in answers)
    if failed:
        kind = UsageError if failed == len(answers) else InputRefused
        terminal.finish(kind(f"{failed:,} of {len(answers):,} paths could not be read as photos"))


@app.command()
def export(
    checkpoint: CheckpointPath,
    to: Annotated[Path, typer.Option(help="Folder to write to.", show_default=False)],
    shards: Annotated[
        str, typer.Option(help="Packed split whose photos the ONNX form is checked on.")
    ] = "data/shards/val",
    onnx: Annotated[bool, typer.Option("--onnx/--no-onnx", help="Write the ONNX form, too.")] = True,
    temperatures: TemperaturesFile = None,
    as_json: Json = False,
) -> None:
    """Write a checkpoint in portable forms: safetensors, one linear layer a species, ONNX, labels.json.

    Example: train-hier export runs/small --to exported --shards data/shards/val
    """
    from shardtool.index import open_split
    from train.checkpoint import Checkpoint, find_checkpoint
    from train.export import TOLERANCE, some_photos
    from train.export import export as write

    found = Checkpoint.load(find_checkpoint(checkpoint))
    calibrated = _temperatures(found, temperatures)
    size = int(found.recipe["model"]["image_size"])
    check = write(found, calibrated, to, some_photos(open_split(shards), size) if onnx else None)
    if as_json:
        terminal.emit({"folder": str(to), "onnx": vars(check) if check else None})
        return
    terminal.say(f"exported to {terminal.clean(to)}")
    if check:
        terminal.say(
            f"ONNX against torch on {check.photos} photos: logits differ by {check.difference:.1e} at most "
            f"(allowed {TOLERANCE:g}), opset {check.opset}"
        )


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    shards: Annotated[
        str, typer.Option(help="Packed split to evaluate the run on first.", show_default=False)
    ] = "",
    workers: Workers = CPUS,
    device: Device = "auto",
) -> None:
    """Write report.html into a run folder: what was reached, what is confused, how the training went.

    Example: train-hier report runs/small --shards data/shards/val
    """
    from train.report import write_report

    if not run.is_dir():
        raise UsageError("no such run folder", where=run)
    if shards:
        _evaluate_run(run, shards, workers, device)
    terminal.say(f"wrote {terminal.clean(write_report(run))}")


@app.command()
def plan(
    shards: Shards = "data/shards/train",
    val: Annotated[str, typer.Option(help="Validation split; by default val beside the train split.")] = "",
    recipe: RecipeName = "swin_tiny",
    overrides: Overrides = None,
    measured: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Try each kind of stage on this machine.")
    ] = True,
    steps: Annotated[int, typer.Option(min=1, help="To measure of each kind.")] = 20,
    workers: Workers = CPUS,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """What a training would do (stages, what trains, steps, the effect of the 3x/5x rule), and the time,
    memory and disk that it would take at the rate measured now. Writes nothing.

    Example: train-hier plan --shards data/shards/train --recipe swin_tiny --steps 20
    """
    from shardtool.index import open_split
    from train.plan import plan_json, show_estimate, show_plan

    spec = _recipe(recipe, overrides, pretrained=True)
    value = plan_json(spec, open_split(shards))
    if not as_json:
        show_plan(value)
    if measured:
        value["estimate"] = _estimate(spec, Where(shards, val, Path()), value, steps, workers, device)
    if as_json:
        terminal.emit(value)
    elif measured:
        show_estimate(value["estimate"])


def _estimate(
    spec: Recipe, where: Where, value: dict[str, Any], steps: int, workers: int, device: str
) -> dict[str, Any]:
    """What a training would take: measured with the photos themselves."""
    from train.device import choose_device
    from train.machine import hardware
    from train.plan import estimate, measure
    from train.source import open_source

    chosen = choose_device(device)
    source, val, _ = open_source(spec, where.shards, where.val, workers, chosen, (0, 1), index="")
    with contextlib.closing(source):
        found = measure(spec, source, val, chosen, workers, steps)
    return {**estimate(spec, value, found, len(val)), "hardware": hardware(chosen)}


def _recipe(name: str, overrides: Sequence[str] | None, pretrained: bool) -> Recipe:
    from train.recipe import load_recipe

    extra = [] if pretrained else ["model.pretrained=false"]
    return load_recipe(name, [*(overrides or []), *extra])


def _train(spec: Recipe, where: Where, workers: int, device: str, habits: Habits) -> None:
    from train.compat import import_torchvision
    from train.device import choose_device
    from train.loop import Run
    from train.loop import train as run_training
    from train.ranks import joined, local_device
    from train.source import open_source
    from train.tables import show_scores

    note = import_torchvision()
    chosen = choose_device(local_device(device))
    with joined(chosen) as ranks:
        source, val, lost = open_source(
            spec,
            *(where.shards, where.val, workers, chosen, (ranks.rank, ranks.count)),
            index=f"{where.out}/index-{ranks.rank}",
            progress=terminal.progress_unless(not ranks.is_first),
        )
        for line in filter(None, (note, lost) if ranks.is_first else ()):
            terminal.say(f"[dim]{terminal.clean(line)}[/]")
        scores = run_training(Run(spec, source, val, where.out, chosen, workers, ranks, *habits))
        if ranks.is_first:
            show_scores(scores)
            terminal.say(f"next: train-hier predict {terminal.clean(where.out)} PHOTO")


def _evaluate_run(run: Path, shards: str, workers: int, device: str) -> None:
    """Evaluate a run's best checkpoint and keep the results in its folder."""
    from shardtool.index import open_split
    from train.checkpoint import Checkpoint, find_checkpoint
    from train.logbook import read_events
    from train.report import save_results
    from train.results import results

    path, split = find_checkpoint(run), open_split(shards)
    found = Checkpoint.load(path)
    evaluated = _evaluate(found, split, workers, device, quiet=False)
    value = results(evaluated, found.taxonomy, found.train_counts, read_events(run))
    save_results(run, value, split, path.relative_to(run).as_posix())


def _evaluate(found: Checkpoint, split: Split, workers: int, device: str, quiet: bool) -> Evaluated:
    from train.augment import EvalTransform
    from train.data import Loader
    from train.device import autocast, choose_device, choose_precision
    from train.evaluate import evaluate as ask
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
    show = terminal.progress_unless(quiet)
    with (
        Loader(split, EvalTransform(recipe.model.image_size), workers, where) as loader,
        show("evaluating photos", len(split)) as advance,
    ):
        return ask(
            found.build_model().to(where),
            loader,
            recipe.optimizer.micro_batch or recipe.optimizer.batch,
            where,
            autocast(where, choose_precision(where, recipe.optimizer)),
            recipe.loss,
            advance,
            outputs=True,
        )


def _temperatures(found: Checkpoint, file: Path | None) -> Temperatures:
    """Those of the file, else those of the checkpoint, else none."""
    import json

    from train.calibration import Temperatures

    if file is None:
        if not found.temperatures:
            terminal.say(
                "[dim]the checkpoint is not calibrated: probabilities are raw (see --temperatures)[/]"
            )
        return Temperatures(**found.temperatures)
    try:
        return Temperatures.from_json(json.loads(file.read_bytes())["temperatures"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError("no temperatures in this file", where=file, cure=_SCORES_CURE) from error


def _answer_json(item: Prediction | NotAPhoto) -> dict[str, object]:
    from train.predict import NotAPhoto

    if isinstance(item, NotAPhoto):
        return {"photo": item.photo, "error": item.reason}
    species, disease = item.answer
    return {
        "photo": item.photo,
        "answer": {"species": species, "disease": disease, "probability": item.probability},
        "sure": item.sure,
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
    doubt = "" if item.sure else "not sure, "
    answer = f"{doubt}{plain(item.answer[0])}, {plain(item.answer[1])} {item.probability:.0%}"
    sys.stdout.write(f"{plain(item.photo)}: {answer} | {parts[0]} | {parts[1]}\n")


def main() -> None:
    """Entry point of the `train-hier` command."""
    terminal.run(app)


if __name__ == "__main__":  # torchrun -m train.cli
    main()
