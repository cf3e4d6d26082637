"""The embedded data set: drawn leaves of any number of species and diseases.

A plan says which photos there are; `draw` makes one of them; `write_specimens` puts them on disk
as ``OUT/{train,val}/<Species>/<Disease>/<name>.jpg``. A photo's bytes depend on the seed, the
split, the species, the disease, the image's index and the size alone, so any number of processes
writes the same tree, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shardtool.executor import ordered, processes
from shardtool.files import atomic
from shardtool.specimens.canvas import Colour
from shardtool.specimens.leaves import leaf
from shardtool.specimens.lesions import Disease
from shardtool.specimens.scene import photograph

SPLITS = ("train", "val")
JPEG_QUALITY = 90
BATCH = 32  # photos per task: large against the cost of a task, small against a progress bar

STEMS = """
    Silver Marsh Fox Dew Moon Ember Bramble Hollow Amber Frost Willow Thistle Raven Meadow Copper
    Velvet Swan Briar Heather Otter Saffron Wren Juniper Cloud Tansy
"""
ENDINGS = """
    wort thorn leaf bane fern root berry cress dock mint vine bell sorrel weed apple nettle clover
    laurel mallow vetch
"""

# Diseases count through the kinds first, then the tints, then the forms: the first ten all differ
# in kind, and a name describes what is to be seen.
KINDS = {
    "Leaf_Spot": "spot",
    "Leaf_Rust": "rust",
    "Powdery_Mildew": "mildew",
    "Late_Blight": "blight",
    "Mosaic_Virus": "mosaic",
    "Ring_Spot": "ring",
    "Leaf_Scorch": "scorch",
    "Leaf_Miner": "miner",
    "Chlorosis": "chlorosis",
    "Vein_Streak": "streak",
}
# No tint is near the usual colour of any kind (browns, orange, white and yellow).
TINTS: dict[str, Colour | None] = {
    "": None,
    "Black_": (24, 20, 22),
    "Grey_": (136, 140, 146),
    "Red_": (196, 30, 36),
    "Purple_": (112, 36, 128),
    "Blue_": (44, 92, 168),
}
FORMS = {  # size and density, as shares of the usual
    "": (1.0, 1.0),
    "Fine_": (0.6, 1.7),
    "Coarse_": (1.7, 0.7),
    "Sparse_": (1.0, 0.45),
    "Severe_": (1.3, 1.8),
}
SPECIES_LIMIT = len(STEMS.split()) * len(ENDINGS.split())
DISEASE_LIMIT = 1 + len(KINDS) * len(TINTS) * len(FORMS)


# --- Plan --------------------------------------------------------------------------------------


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")


@dataclass(frozen=True)
class SpecimenPlan:
    """What to draw: `images` training photos per class, `size` pixels square.

    Raises ValueError for a value out of its range.
    """

    species: int
    diseases: int  # with "Healthy"
    images: int
    size: int
    seed: int
    long_tail: bool = False
    val_share: float = 0.2

    def __post_init__(self) -> None:
        _require("species", self.species, 1, SPECIES_LIMIT)
        _require("diseases", self.diseases, 1, DISEASE_LIMIT)
        _require("images", self.images, 1, 100_000)
        _require("size", self.size, 16, 2048)
        _require("seed", self.seed, 0, 2**32 - 1)
        _require("val_share", self.val_share, 0, 1)


@dataclass(frozen=True)
class Specimen:
    """One photo of a plan."""

    split: str
    species: int
    disease: int
    image: int

    @property
    def path(self) -> Path:
        """Where the photo lies below the output folder."""
        folder = Path(self.split, species_name(self.species), disease_name(self.disease))
        return folder / f"{self.split}_{self.image:05d}.jpg"


def species_name(index: int) -> str:
    """A species' name, such as "Silverwort"; ValueError where there is none."""
    _require("species index", index, 0, SPECIES_LIMIT - 1)
    stems, endings = STEMS.split(), ENDINGS.split()
    turn, stem = divmod(index, len(stems))
    return stems[stem] + endings[(stem + turn) % len(endings)]


def disease_name(index: int) -> str:
    """A disease's name, such as "Black_Leaf_Spot"; 0 is "Healthy"; ValueError where there is none.

    The names are the same for all species.
    """
    if index == 0:
        return "Healthy"
    kind, tint, form = _traits(index)
    return form + tint + kind


def _traits(index: int) -> tuple[str, str, str]:
    """The keys into KINDS, TINTS and FORMS of a disease other than 0."""
    _require("disease index", index, 0, DISEASE_LIMIT - 1)
    rest, kind = divmod(index - 1, len(KINDS))
    form, tint = divmod(rest, len(TINTS))
    return list(KINDS)[kind], list(TINTS)[tint], list(FORMS)[form]


def _disease(index: int) -> Disease | None:
    if index == 0:
        return None
    kind, tint, form = _traits(index)
    return Disease(KINDS[kind], TINTS[tint], *FORMS[form])


def class_images(plan: SpecimenPlan) -> dict[tuple[int, int], tuple[int, int]]:
    """The number of training and validation photos of each (species, disease)."""
    classes = [(s, d) for s in range(plan.species) for d in range(plan.diseases)]
    train = _tail(plan, len(classes)) if plan.long_tail else [plan.images] * len(classes)
    return {
        key: (count, max(2, round(count * plan.val_share))) for key, count in zip(classes, train, strict=True)
    }


def _tail(plan: SpecimenPlan, classes: int) -> list[int]:
    """Counts that fall geometrically from `plan.images`, dealt to the classes by the seed."""
    least = min(plan.images, max(4, plan.images // 50))
    counts = np.rint(np.geomspace(plan.images, least, classes)).astype(int)
    dealt: list[int] = np.random.default_rng(plan.seed).permutation(counts).tolist()
    return dealt


def jobs(plan: SpecimenPlan) -> Iterator[Specimen]:
    """All photos of the plan, a species and a disease at a time."""
    for (species, disease), counts in class_images(plan).items():
        for split, count in zip(SPLITS, counts, strict=True):
            for image in range(count):
                yield Specimen(split, species, disease, image)


def draw(seed: int, split: str, species: int, disease: int, image: int, size: int) -> NDArray[np.uint8]:
    """One photo as an RGB array (size, size, 3).

    Raises ValueError for an unknown split or disease and for negative numbers.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), species, disease, image])
    return photograph(leaf(seed, species), _disease(disease), rng, size)


# --- Disk --------------------------------------------------------------------------------------


def write_specimens(
    plan: SpecimenPlan,
    out: Path,
    workers: int = 1,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the plan's photos below `out` and return how many were not there yet.

    `progress` is called in this process, with the number of photos written since its last call.
    Raises ValueError where `workers` is less than 1 or `out` holds the photos of another plan.
    """
    _require("workers", workers, 1, 1024)
    _claim(plan, out)
    work = partial(_write_batch_beside_others if workers > 1 else _write_batch, plan, out)
    written = 0
    with processes(workers) as executor:
        for count in ordered(executor, work, _batches(jobs(plan)), in_flight=4 * workers):
            written += count
            if progress:
                progress(count)
    return written


def _claim(plan: SpecimenPlan, out: Path) -> None:
    """Note the plan in the folder, or make sure that it is the one that began it.

    Photos are kept by name; without this a second run with another seed or size would mix two
    data sets.
    """
    note, text = out / "specimens.json", json.dumps(asdict(plan))
    if not note.exists():
        _replace(note, text.encode())
    elif note.read_text() != text:
        raise ValueError(f"{out} holds specimens of another plan: {note.read_text()}")


def _batches(specimens: Iterator[Specimen]) -> Iterator[list[Specimen]]:
    while batch := list(islice(specimens, BATCH)):
        yield batch


def _write_batch(plan: SpecimenPlan, out: Path, batch: list[Specimen]) -> int:
    missing = [specimen for specimen in batch if not _complete(out / specimen.path)]
    for specimen in missing:
        _replace(out / specimen.path, _jpeg(plan, specimen))
    return len(missing)


def _write_batch_beside_others(plan: SpecimenPlan, out: Path, batch: list[Specimen]) -> int:
    # Changes no photo: it keeps the workers' OpenCV threads from contending for the cores.
    cv2.setNumThreads(1)
    return _write_batch(plan, out, batch)


def _jpeg(plan: SpecimenPlan, specimen: Specimen) -> bytes:
    photo = draw(plan.seed, size=plan.size, **asdict(specimen))
    bgr = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done  # OpenCV has no way to fail on a valid uint8 picture in memory
    return data.tobytes()


def _complete(path: Path) -> bool:
    """Whether the file ends as a JPEG does: a crash of the machine can leave a shorter one."""
    try:
        with path.open("rb") as file:
            file.seek(-2, os.SEEK_END)
            return file.read() == b"\xff\xd9"
    except OSError:
        return False


def _replace(path: Path, data: bytes) -> None:
    """Write the file in one step; the temporary name is fixed so that a rerun takes it up.

    There is no fsync, which would take longer than the drawing: `_complete` finds what it misses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path, synced=False, temporary=path.with_name(f".{path.name}.part")) as file:
        file.write(data)
