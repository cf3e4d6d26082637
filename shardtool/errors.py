"""Everything that can go wrong, in one tree, with the exit status that the person's shell sees.

Every error says what happened, where (path, shard, key, offset) and one thing to do about it, on one
line. The command line prints that line and ends with `status`; `--debug` adds the traceback.
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """Exit statuses shared by all commands (docs/format.md lists them for people)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    SOME_REFUSED = 3
    VERIFY_FAILED = 4
    BUSY = 5
    NO_SPACE = 6
    SOURCE_CHANGED = 7
    RESUME_REFUSED = 8
    STOPPED_RESUMABLE = 75
    INTERRUPTED = 130


class UserError(Exception):
    """Base of all errors that a person can act on: `what` happened, `where`, and the `cure`."""

    status = Status.FAILED

    def __init__(self, what: str, *, where: object = "", cure: str = "") -> None:
        self.what, self.where, self.cure = what, str(where), cure
        place = f" ({self.where})" if self.where else ""
        advice = f": {cure}" if cure else ""
        super().__init__(f"{what}{place}{advice}")

    def as_dict(self) -> dict[str, object]:
        """The same message as an object, for `--json`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "cure": self.cure,
            "status": int(self.status),
        }


class UsageError(UserError):
    """The command cannot mean what it says: a path that is not there, an impossible option."""

    status = Status.USAGE


class InputRefused(UserError):
    """Some of the given inputs could not be used; the others were."""

    status = Status.SOME_REFUSED


class DatasetError(UserError):
    """A packed dataset is unfinished, or does not match its own dataset.json."""


class DamagedManifest(DatasetError):
    """dataset.json is cut or was edited by hand; packing again writes it anew."""


class CorruptSample(DatasetError):
    """The bytes of one sample are not the bytes that were packed."""


class VerificationFailed(UserError):
    """`verify` found damage; every finding is listed before this error."""

    status = Status.VERIFY_FAILED


class DestinationBusy(UserError):
    """Another process writes to the same destination."""

    status = Status.BUSY


class StorageError(UserError):
    """A storage that is reached over a network fails again and again."""


class NoSpace(UserError):
    """The destination cannot hold what would be written."""

    status = Status.NO_SPACE


class SourceChanged(UserError):
    """A source photo grew, vanished or changed between the scan and the write."""

    status = Status.SOURCE_CHANGED


class ResumeRefused(UserError):
    """What is already there was made from something else; the difference is in the message."""

    status = Status.RESUME_REFUSED


class Interrupted(UserError):
    """Ctrl-C: what is done stays, the same command goes on."""

    status = Status.INTERRUPTED


class TrainingError(UserError):
    """Training cannot go on: non-finite losses, a device that failed."""
