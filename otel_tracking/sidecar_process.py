"""The sidecar: delivers a run while another process records it, and outlives that one until all is done.

Started by `otel_tracking.sidecar`, as `python -m otel_tracking.sidecar_process <run directory>`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from otel_tracking import settings
from otel_tracking.journal.locking import Lock
from otel_tracking.records import RunStatus
from otel_tracking.runner import Delivery
from otel_tracking.runs import RunOnDisk, ended_at, run_in
from otel_tracking.sidecar import HURRY, LOCK, REPORT, Report

_LOG: Final = logging.getLogger(__name__)
_NICE: Final = 19
_POLL: Final = 0.1
_LOCK_PATIENCE: Final = 1.0
"""Others look for a moment whether it is locked."""


def main(directory: Path) -> None:
    """Deliver a run to its end, unless another sidecar of it does."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with contextlib.suppress(OSError):
        os.nice(_NICE)  # before trackers start: what they start inherits it
    again = True
    while again:
        try:
            lock = Lock(directory / LOCK, patience=_LOCK_PATIENCE)
        except BlockingIOError:
            return  # it looks once more after having given up its lock
        try:
            run = run_in(directory)
            if run is None:
                raise SystemExit(f"{directory} is no run")
            _deliver(run)
        finally:
            lock.release()
        again = any(ended_at(run.journal(cursor)) is None for _, cursor in run.cursors())


def _deliver(run: RunOnDisk) -> None:
    delivery = Delivery(run)
    said = ""
    patience = settings.END_TIMEOUT.get()
    moved = time.monotonic()
    try:
        while True:
            delivery.start(recorded_too=True)
            over = delivery.end(RunStatus.KILLED)
            delivery.hurry(over or (run.directory / HURRY).exists())
            reports = delivery.reports()
            says = _as_json(reports)
            if says != said:
                said = says
                _write(run.directory / REPORT, says)
            if not delivery.stuck():
                moved = time.monotonic()
            if over and (delivery.wait(_POLL) or time.monotonic() - moved > patience):
                break
            time.sleep(_POLL)
    finally:
        delivery.close()
        _write(run.directory / REPORT, _as_json(delivery.reports()))


def _as_json(reports: Mapping[str, Report]) -> str:
    return json.dumps({name: asdict(report) for name, report in reports.items()})


def _write(path: Path, content: str) -> None:
    draft = path.with_suffix(".draft")
    try:
        draft.write_text(content, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        _LOG.warning("%s can't be written: %s", path, error)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
