"""Prepare or time one loader; a JSON object in, a JSON object as the last line of stdout.

Run by benchmarks.peers, in the environment that has the loader.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from benchmarks.rival_loaders.clock import Span, time_batches
from benchmarks.rival_loaders.job import Job


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked: {"job": fields of Job, "span": fields of Span, or null to prepare}."""
    job = Job(**request["job"])
    module = importlib.import_module(f"benchmarks.rival_loaders.{job.loader}")
    if request["span"] is None:
        module.prepare(job)
        return {}
    pin(job.workers)
    return time_batches(module.batches(job), job, Span(**request["span"]))


def pin(workers: int) -> None:
    """As many cores as workers, so that threads beside them are no gain."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: max(workers, 1)])


if __name__ == "__main__":
    answer = main(json.loads(sys.argv[1]))
    print(json.dumps(answer), flush=True)
    os._exit(0)  # some loaders wait for their threads for ever
