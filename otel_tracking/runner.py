"""Runs on disk: what they hold, and delivering what their own process did not."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otel_tracking import discovery
from otel_tracking.cursor import Cursor, journal_path
from otel_tracking.errors import ConfigurationError, JournalLocked, TrackerNotInstalled
from otel_tracking.followers import Budget, Follower
from otel_tracking.journal.reader import PointCounter
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.records import Receipt, RunStatus, TrackerReceipt
from otel_tracking.request import run_info


@dataclass(frozen=True, slots=True)
class RunOnDisk:
    """A run's directory."""

    directory: Path
    description: Mapping[str, Any]
    """What `run.json` says."""

    @property
    def run_id(self) -> str:
        """The run's identity."""
        return str(self.description["run_id"])

    def cursors(self) -> list[tuple[Path, Cursor]]:
        """Every rank's trackers."""
        paths = sorted((self.directory / "cursors").glob("*.json"))
        return [(path, cursor) for path in paths if (cursor := Cursor.load(path)) is not None]

    def journal(self, cursor: Cursor) -> Path:
        """The journal that a cursor is about."""
        return journal_path(self.directory, cursor.run["rank"]["rank"])


def find_runs(project_dir: Path, run_id: str | None = None) -> Iterator[RunOnDisk]:
    """The runs below a directory; those of an id are that run and the later ones of its process."""
    for path in sorted(project_dir.glob("*/*/run.json")):
        try:
            description = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # being written, or not ours
        found = str(description.get("run_id", "")) if isinstance(description, dict) else ""
        if found and (run_id is None or re.fullmatch(rf"{re.escape(run_id)}(-[0-9]+)?", found)):
            yield RunOnDisk(path.parent, description)


def deliver(run: RunOnDisk, status: RunStatus, timeout: float) -> Receipt:
    """Carry what is left of a run into its trackers, and close it there.

    A rank whose process still records is left alone.

    Args:
        run: A run whose process has ended.
        status: How it ended, if its journal does not say.
        timeout: Seconds, for all trackers together.
    """
    deadline = time.monotonic() + timeout
    followers: list[Follower] = []
    errors: dict[str, dict[str, int]] = {}
    for path, cursor in run.cursors():
        if cursor.finished or _is_recorded(run.journal(cursor)):
            continue
        try:
            make = discovery.load(cursor.tracker)
        except TrackerNotInstalled as error:
            errors[cursor.tracker] = {f"not installed: {error.reason}": 1}
            continue
        except ConfigurationError as error:  # of the program's own, maybe; its points stay pending
            errors[cursor.tracker] = {str(error): 1}
            continue
        info = run_info(cursor.run, cursor)
        follower = Follower(make, info, run.journal(cursor), cursor, path, Budget(1.0))
        followers.append(follower)
        follower.end(status)
        threading.Thread(target=follower.run, name=f"otel-tracking-{follower.name}", daemon=True).start()
    for follower in followers:
        follower.done.wait(max(0.0, deadline - time.monotonic()))
    for follower in followers:
        if not follower.done.is_set():
            follower.abandon()
    for follower in followers:
        errors[follower.name] = _merged(errors.get(follower.name, {}), follower.receipt(int).errors)
    return receipt(run, errors)


def receipt(run: RunOnDisk, errors: Mapping[str, Mapping[str, int]] | None = None) -> Receipt:
    """What was recorded and what became of it, by the cursors; ranks of one tracker added up."""
    counts: dict[Path, int] = {}
    trackers: dict[str, TrackerReceipt] = {}
    for _, cursor in run.cursors():
        journal = run.journal(cursor)
        if journal not in counts:
            counts[journal] = _points(journal)
        one = cursor.receipt(
            counts[journal],
            errors=(errors or {}).get(cursor.tracker, {}),
            state=cursor.finished or "unfinished",
        )
        trackers[cursor.tracker] = _sum(trackers[cursor.tracker], one) if cursor.tracker in trackers else one
    return Receipt(run.run_id, sum(counts.values()), {}, trackers)


def _sum(a: TrackerReceipt, b: TrackerReceipt) -> TrackerReceipt:
    return TrackerReceipt(
        tracker=a.tracker,
        recorded=a.recorded + b.recorded,
        delivered=a.delivered + b.delivered,
        pending=a.pending + b.pending,
        altered=_merged(a.altered, b.altered),
        dropped=_merged(a.dropped, b.dropped),
        not_stored=_merged(a.not_stored, b.not_stored),
        errors=_merged(a.errors, b.errors),
        renamed={**a.renamed, **b.renamed},
        state=a.state if a.state == b.state else f"{a.state}, {b.state}",
    )


def _merged(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    return {reason: a.get(reason, 0) + b.get(reason, 0) for reason in {**a, **b}}


def _points(journal: Path) -> int:
    counter = PointCounter(journal)
    try:
        return counter.count()
    finally:
        counter.close()


def _is_recorded(journal: Path) -> bool:
    """Whether a process writes that journal; if not, what a killed one left is repaired."""
    try:
        JournalWriter.repair(journal)
    except JournalLocked:
        return True
    return False
