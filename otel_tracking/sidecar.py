"""A run's sidecar, seen from the process that records: one process that delivers, so that this one need not.

What the two know of each other lies in the run's directory: the journals and the cursors, whether the
sidecar's lock is held, and what the sidecar says of each tracker in `sidecar.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from otel_tracking.cursor import Cursor
from otel_tracking.errors import NotStarted, Retry
from otel_tracking.journal.locking import is_locked
from otel_tracking.records import RunInfo, TrackerReceipt
from otel_tracking.tracker import Tracker

LOCK: Final = "sidecar.lock"
"""Held by the sidecar while it works."""
REPORT: Final = "sidecar.json"
HURRY: Final = "sidecar.hurry"
"""There while somebody waits for delivery."""
LOG: Final = "sidecar.log"

_POLL: Final = 0.05
SITE: Final = str(Path(__file__).parent / "launcher" / "site")
"""What `otel-tracking run` puts on PYTHONPATH, so that programs are recorded."""
_NOT_INHERITED: Final = (
    "OTEL_PYTHON_LOGGER_PROVIDER",
    "OTEL_PYTHON_METER_PROVIDER",
    "OTEL_PYTHON_TRACER_PROVIDER",
)
"""What would have the sidecar record itself."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the sidecar says of one rank's tracker."""

    state: str = "starting"
    reached: int = 0
    """Everything recorded before that position is stored."""
    stuck: bool = False
    """Whether it gets nowhere."""
    errors: Mapping[str, int] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)


class Sidecar:
    """The sidecar of a run, for one rank's trackers."""

    def __init__(self, run_directory: Path, journal: Path, cursors: Sequence[Path]) -> None:
        """Nothing is started yet.

        Args:
            run_directory: The run's.
            journal: This rank's.
            cursors: Of this rank's trackers.
        """
        self._directory = run_directory
        self._journal = journal
        self._cursors = cursors
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start one; if the run has one already, it leaves again.

        Raises:
            OSError: The process can't be made.
        """
        environ = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        paths = environ.get("PYTHONPATH", "").split(os.pathsep)
        environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path and path != SITE)
        with (self._directory / LOG).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "otel_tracking.sidecar_process", str(self._directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,  # a Ctrl-C, or the end of a terminal, is not meant for it
            )

    def flush(self, position: int, deadline: float) -> bool:
        """Wait until everything before a position is stored; False at the deadline (of `time.monotonic`)."""
        with self._hurried():
            while not all(report.reached >= position for report in self._reports()):
                if time.monotonic() > deadline or not self._alive():
                    return False
                time.sleep(_POLL)
        return True

    def wait_for_end(self, deadline: float, *, patient: bool) -> None:
        """Wait until the run is closed in every tracker.

        Args:
            deadline: Of `time.monotonic`.
            patient: Wait until then also for trackers that get nowhere.
        """
        with self._hurried():
            while time.monotonic() < deadline and self._alive():
                left = [path for path in self._cursors if not self._done(path)]
                reports = read_reports(self._directory)
                if not left or (not patient and all(reports.get(p.stem, Report()).stuck for p in left)):
                    return
                time.sleep(_POLL)

    def _done(self, path: Path) -> bool:
        cursor = Cursor.load(path)
        return cursor is not None and cursor.done_with(self._journal)

    def receipt(self, cursor_path: Path, recorded: Callable[[], int]) -> TrackerReceipt:
        """What became of the points for one tracker, by what the sidecar saved last.

        Args:
            cursor_path: Of the tracker.
            recorded: Counts the points in the journal; called after the delivered ones were looked up.
        """
        report = read_reports(self._directory).get(cursor_path.stem, Report())
        cursor = Cursor.load(cursor_path)
        assert cursor is not None, "the session wrote it before there was a sidecar"
        # The sidecar saves a cursor that has reached the end a moment before it says so.
        state = "finished" if cursor.done_with(self._journal) else report.state
        return cursor.receipt(recorded(), errors=report.errors, state=state, renamed=dict(report.renamed))

    def _reports(self) -> list[Report]:
        reports = read_reports(self._directory)
        return [reports.get(path.stem, Report()) for path in self._cursors]

    def _alive(self) -> bool:
        """Whether this run has a sidecar: the one that was started here, or another that was there before."""
        return (self._process is not None and self._process.poll() is None) or is_running(self._directory)

    @contextlib.contextmanager
    def _hurried(self) -> Iterator[None]:
        hurry = self._directory / HURRY
        try:
            hurry.touch()
            yield
        finally:
            hurry.unlink(missing_ok=True)


def is_running(run_directory: Path) -> bool:
    """Whether a run has a sidecar now."""
    return is_locked(run_directory / LOCK)


def wait_for_sidecar(run_directory: Path, timeout: float) -> None:
    """Wait until a run's sidecar has left, or nothing that it delivers gets on; seconds at most."""
    deadline = time.monotonic() + timeout
    while is_running(run_directory) and time.monotonic() < deadline:
        reports = read_reports(run_directory).values()
        if reports and all(report.stuck or report.state == "finished" for report in reports):
            return
        time.sleep(_POLL)


def read_reports(run_directory: Path) -> dict[str, Report]:
    """What the sidecar said last, by the stem of the cursor's name; empty if it has said nothing yet."""
    try:
        content: dict[str, Any] = json.loads((run_directory / REPORT).read_text(encoding="utf-8"))
        return {name: Report(**report) for name, report in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def attach(tracker: Tracker, name: str, info: RunInfo, cursor: Path, deadline: float) -> None:
    """Have a tracker, for native use here, join the run that the sidecar delivers.

    Args:
        tracker: Which has not been started.
        name: Its name.
        info: Of the run.
        cursor: The file in which the sidecar notes how to get into it.
        deadline: Of `time.monotonic`.

    Raises:
        ConfigurationError: The tracker allows no second process.
        NotStarted: The sidecar has not started it by then.
    """
    while True:
        noted = Cursor.load(cursor)
        known = replace(info, state=noted.state, position=noted.position) if noted else info
        try:
            tracker.attach(known)
        except Retry as error:
            if time.monotonic() > deadline:
                raise NotStarted(f"{name!r} has not started in the sidecar: {error}") from error
            time.sleep(_POLL)
        else:
            return
