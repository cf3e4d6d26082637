"""What a recipe would do to a packed split, before anything long is started."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardtool import terminal
from shardtool.index import Split
from train.order import repeats
from train.recipe import Recipe, Tier


def plan_json(recipe: Recipe, split: Split) -> dict[str, Any]:
    """Stages with their steps, and what each repeat rule does to the epoch."""
    stages = []
    for stage in recipe.stages:
        photos = int(repeats(split.row, _pairs(recipe.tiers(stage))).sum())
        stages.append(
            {
                "name": stage.name,
                "folder": stage.folder,
                "trains": stage.trains,
                "epochs": stage.epochs,
                "lr": stage.lr,
                "lr_end": stage.lr_end or stage.lr,
                "sampler": stage.sampler,
                "mixing": stage.mixing,
                "losses": list(stage.losses),
                "photos_an_epoch": photos,
                "steps_an_epoch": -(-photos // recipe.optimizer.batch),
            }
        )
    rules = {name: _effect(split, tiers) for name, tiers in recipe.samplers.items()}
    return {"recipe": recipe.name, "photos": len(split), "stages": stages, "samplers": rules}


def show_plan(recipe: Recipe, split: Split) -> None:
    """The same as two tables for people."""
    plan = plan_json(recipe, split)
    stages = terminal.table(
        f"{terminal.clean(recipe.name)} on {len(split):,} photos",
        *("stage", "trains", "epochs", "steps", "lr", "sampler", "mixing", "loss"),
    )
    for stage in plan["stages"]:
        rate = f"{stage['lr']:g}" + (f" → {stage['lr_end']:g}" if stage["lr_end"] != stage["lr"] else "")
        stages.add_row(
            terminal.clean(stage["name"]),
            stage["trains"],
            str(stage["epochs"]),
            f"{stage['epochs'] * stage['steps_an_epoch']:,}",
            rate,
            stage["sampler"],
            "on" if stage["mixing"] else "off",
            " + ".join(stage["losses"]),
        )
    terminal.console.print(stages)
    rules = terminal.table("", "sampler", "tier", "classes", "photos", "an epoch")
    for name, effect in plan["samplers"].items():
        for tier in effect["tiers"]:
            rules.add_row(
                name,
                tier["tier"],
                f"{tier['classes']:,}",
                f"{tier['photos']:,}",
                f"{tier['draws']:,}",
            )
        rules.add_row(name, "all", "", f"{len(split):,}", f"{effect['growth']:.2f} x the photos")
    terminal.console.print(rules)


def _effect(split: Split, tiers: tuple[Tier, ...]) -> dict[str, Any]:
    """How many classes and photos fall under each tier, and how much the epoch grows."""
    repeat = repeats(split.row, _pairs(tiers))
    rows = []
    for factor in sorted(set(repeat.tolist())):
        chosen = repeat == factor
        rows.append(
            {
                "tier": f"{factor}x",
                "classes": len(np.unique(split.row[chosen])),
                "photos": int(chosen.sum()),
                "draws": int(chosen.sum()) * factor,
            }
        )
    return {"tiers": rows, "growth": float(repeat.sum() / max(len(split), 1))}


def _pairs(tiers: tuple[Tier, ...]) -> list[tuple[int, int]]:
    return [(tier.below, tier.repeat) for tier in tiers]
