"""Delivering runs from outside the process that records them."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_tracking import discovery, retention
from otel_tracking.cursor import Cursor
from otel_tracking.dead_letters import DeadLetters
from otel_tracking.errors import ConfigurationError, TrackerNotInstalled
from otel_tracking.followers import Follower
from otel_tracking.journal.ownership import is_written
from otel_tracking.journal.reader import PointCounter
from otel_tracking.pace import Budget
from otel_tracking.records import Receipt, RunStatus, TrackerReceipt
from otel_tracking.runs import RunOnDisk, ended_at, merged, receipt
from otel_tracking.sidecar import Report

_POLL: Final = 0.2


@dataclass(frozen=True, slots=True)
class _Delivery:
    """One rank's records on their way into one tracker."""

    follower: Follower
    journal: Path
    rank: int
    points: PointCounter


class Delivery:
    """Carries a run into its trackers, all at once, on threads of its own.

    Attributes:
        errors: By tracker: why it gets nothing.
    """

    def __init__(
        self, run: RunOnDisk, trackers: Collection[str] | None = None, *, resend: bool = False
    ) -> None:
        """Nothing is delivered yet.

        Args:
            run: Any run.
            trackers: The only ones to deliver to; None is all that the run has.
            resend: Give trackers once more what they refused.
        """
        self._run = run
        self._resend = resend
        self._trackers = trackers
        self.errors: dict[str, dict[str, int]] = {}
        self._deliveries: dict[Path, _Delivery] = {}
        self._refused: dict[Path, Report] = {}
        self._hurry = contextlib.ExitStack()
        self._hurried = False

    def start(self, *, recorded_too: bool = False) -> None:
        """Begin with what is not under way; again after a process has gone on with the run.

        Args:
            recorded_too: Also with what a process still records.
        """
        for path, cursor in self._run.cursors():
            journal = self._run.journal(cursor)
            under_way = self._deliveries.get(path)
            if path in self._refused or (self._trackers is not None and cursor.tracker not in self._trackers):
                continue
            if under_way is not None and not under_way.follower.finished:
                continue  # it is at work, or has failed for good
            nothing_left = cursor.done_with(journal) and not (self._resend and DeadLetters(path).load())
            if nothing_left or not (recorded_too or ended_at(journal) is not None):
                continue
            self._start(path, cursor, journal)

    def _start(self, path: Path, cursor: Cursor, journal: Path) -> None:
        try:
            make = discovery.load(cursor.tracker)
        except TrackerNotInstalled as error:
            self._refuse(path, cursor, f"not installed: {error.reason}")
            return
        except ConfigurationError as error:  # of the program's own, maybe; its points stay pending
            self._refuse(path, cursor, str(error))
            return
        for name, value in make.environment.items():
            os.environ.setdefault(name, value)
        info = self._run.info(cursor)
        follower = Follower(
            make, info, journal, cursor, path, Budget(1.0), helps_out=True, resend=self._resend
        )
        if path in self._deliveries:
            self._deliveries[path].points.close()
        self._deliveries[path] = _Delivery(follower, journal, info.rank.rank, PointCounter(journal))
        threading.Thread(target=follower.run, name=f"otel-tracking-{follower.name}", daemon=True).start()

    def _refuse(self, path: Path, cursor: Cursor, reason: str) -> None:
        self.errors[cursor.tracker] = {reason: 1}
        self._refused[path] = Report("failed", stuck=True, errors={reason: 1})

    def end(self, status: RunStatus) -> bool:
        """Have what no process records any more delivered to its end; whether that is everything.

        Args:
            status: How the run ended, if its journal does not say.
        """
        left = [d for d in self._deliveries.values() if not d.follower.ending]
        ends = {journal: ended_at(journal) for journal in {d.journal for d in left}}
        for delivery in left:
            segment = ends[delivery.journal]
            if segment is not None:
                delivery.follower.end(status, segment)
        return None not in ends.values()

    def hurry(self, hurry: bool) -> None:
        """Whether somebody waits."""
        if hurry and not self._hurried:
            for delivery in self._deliveries.values():
                self._hurry.enter_context(delivery.follower.hurried())
        elif self._hurried and not hurry:
            self._hurry.close()
        self._hurried = hurry

    def wait(self, seconds: float) -> bool:
        """Whether all is done, after that many seconds at most."""
        deadline = time.monotonic() + seconds
        followers = [delivery.follower for delivery in self._deliveries.values()]
        return all(follower.done.wait(max(0.0, deadline - time.monotonic())) for follower in followers)

    def stuck(self) -> bool:
        """Whether nothing that is left gets on."""
        left = [d.follower for d in self._deliveries.values() if not d.follower.done.is_set()]
        return all(follower.stuck() for follower in left)

    def progress(self) -> Mapping[tuple[str, int], TrackerReceipt]:
        """By tracker and rank: how far it is."""
        return {
            (d.follower.name, d.rank): d.follower.receipt(d.points.count) for d in self._deliveries.values()
        }

    def reports(self) -> Mapping[str, Report]:
        """By the stem of the cursor's name: how each is."""
        reports = {path: _report(delivery.follower) for path, delivery in self._deliveries.items()}
        return {path.stem: report for path, report in {**self._refused, **reports}.items()}

    def close(self) -> None:
        """Leave what is not done where it is, and remove what needs not be kept any more."""
        for journal in {delivery.journal for delivery in self._deliveries.values()}:
            retention.apply(journal, self._run.keep, ended=not is_written(journal))
        self._hurry.close()
        for delivery in self._deliveries.values():
            if not delivery.follower.done.is_set():
                delivery.follower.abandon()
            delivery.points.close()
            errors = delivery.follower.receipt(int).errors
            name = delivery.follower.name
            self.errors[name] = merged(self.errors.get(name, {}), errors)


def _report(follower: Follower) -> Report:
    receipt = follower.receipt(int)
    stuck = follower.done.is_set() or follower.stuck()  # what is done gets no further
    return Report(receipt.state, follower.reached(), stuck, receipt.errors, receipt.renamed)


def deliver(
    run: RunOnDisk,
    status: RunStatus,
    timeout: float,
    *,
    patience: float = 0.0,
    trackers: Collection[str] | None = None,
    follow: bool = False,
    resend: bool = False,
    on_progress: Callable[[Mapping[tuple[str, int], TrackerReceipt]], None] | None = None,
) -> Receipt:
    """Carry what is left of a run into its trackers, and close it there.

    A rank whose process still records is left alone, unless it is to be followed.

    Args:
        run: Any run.
        status: How it ended, if its journal does not say.
        timeout: Seconds, for all trackers together, from when no process records the run any more.
        patience: Seconds after which trackers are given up that get nowhere, beyond each one's own.
        trackers: The only ones to deliver to; None is all that the run has.
        follow: Deliver also what is still being recorded, until its process ends.
        resend: Give trackers once more what they refused.
        on_progress: Called several times a second with how far each tracker and rank is.
    """
    delivery = Delivery(run, trackers, resend=resend)
    delivery.start(recorded_too=follow)
    try:
        while not delivery.end(status) and not delivery.wait(_POLL):
            if on_progress:
                on_progress(delivery.progress())
        delivery.hurry(True)
        moved = time.monotonic()
        deadline = moved + timeout
        while not delivery.wait(_POLL) and time.monotonic() < deadline:
            if not delivery.stuck():
                moved = time.monotonic()
            elif time.monotonic() - moved > patience:
                break
            if on_progress:
                on_progress(delivery.progress())
        if on_progress:
            on_progress(delivery.progress())
    finally:
        delivery.close()
    return receipt(run, delivery.errors)
