"""Where curves are shown while a run goes on: TensorBoard, and Weights & Biases for those who ask for it.

Both are imported when a training starts, so that nothing else pays for them. They raise what they like.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

SETUP_SECONDS = 30.0  # without a network Weights & Biases would wait longer


class Board(Protocol):
    """Shows numbers by name over the steps of a run."""

    @property
    def name(self) -> str: ...

    def show(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in a folder, written at once and by the caller.

    torch's SummaryWriter writes from a thread, where a full disk ends in a traceback on the screen.
    """

    name = "TensorBoard"

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("events.out.tfevents.*")))
        # the readers take the files of a folder in the order of their names
        path = folder / f"events.out.tfevents.{int(time.time()):010d}.{number:06d}"
        self._event, self._summary = Event, Summary
        self._writer = RecordWriter(path.open("xb"))
        self._write(file_version="brain.Event:2")
        if number:
            # whoever reads drops the points of earlier files from this step on
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))
        self._writer.flush()

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        points = [self._summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._write(step=step, summary=self._summary(value=points))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, **content: Any) -> None:
        event = self._event(wall_time=time.time(), **content)
        self._writer.write(event.SerializeToString())


class WeightsAndBiases:
    """One run of a project; a run folder that is trained further goes on in the same one."""

    name = "Weights & Biases"

    def __init__(self, folder: Path, project: str, settings: Mapping[str, Any]) -> None:
        try:
            wandb = importlib.import_module("wandb")
        except ModuleNotFoundError:
            raise RuntimeError("it is not installed (pip install 'plant-disease-trainer[wandb]')") from None
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=_run_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(
                console="off", silent=True, init_timeout=SETUP_SECONDS, login_timeout=SETUP_SECONDS
            ),
        )
        # a continued run repeats some steps, and its own counter could not go back
        self._run.define_metric("*", step_metric="step")

    def show(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        self._run.finish()


def _run_id(folder: Path) -> str:
    """Kept in the folder, so that a copy elsewhere is the same run."""
    file = folder / "wandb-id"
    if not file.exists():
        fresh = hashlib.sha256(f"{folder.resolve()} {time.time_ns()}".encode())
        file.write_text(fresh.hexdigest()[:16], encoding="ascii")
    return file.read_text(encoding="ascii").strip()
