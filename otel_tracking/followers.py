"""A follower carries a journal into one tracker: in order, at its pace, until it is stored."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from otel_tracking.cursor import Cursor, lock_path
from otel_tracking.dead_letters import DeadLetters
from otel_tracking.errors import ConfigurationError, Retry
from otel_tracking.failures import Failures
from otel_tracking.feed import Feed, Item
from otel_tracking.giving import count, give
from otel_tracking.journal.locking import Lock
from otel_tracking.journal.recovery import last_segment
from otel_tracking.ledger import Ledger
from otel_tracking.pace import Budget, Progress, Quiet
from otel_tracking.records import Batch, Gone, RunInfo, RunStatus, TrackerReceipt, Written
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)
_RETRY_AFTER_MOST: Final = 3600.0  # the longest that a tracker's own `Retry(after)` is believed
_SAVE_INTERVAL: Final = 1.0
_FLUSH_INTERVAL: Final = 0.05
_LOCK_PAUSE: Final = 0.2


class Follower:
    """Feeds one tracker from one journal, on the thread that calls `run`.

    A tracker's exceptions end here: they are counted, and what it did not take is tried again.
    """

    def __init__(
        self,
        make_tracker: Callable[[], Tracker],
        run: RunInfo,
        journal: Path,
        cursor: Cursor,
        cursor_path: Path,
        budget: Budget,
        *,
        on_started: Callable[[], None] | None = None,
        helps_out: bool = False,
        resend: bool = False,
    ) -> None:
        """Make one; nothing happens before `run`.

        Args:
            make_tracker: Makes the tracker, again after each start that failed.
            run: What the tracker is told.
            journal: Directory of the journal.
            cursor: As it is on disk.
            cursor_path: Where.
            budget: What of the process's time it may take.
            on_started: Called when the tracker has started.
            helps_out: Leave if another process has done it all by the time that it lets go.
            resend: Give what was refused before once more, after everything else.
        """
        self.name = cursor.tracker
        self.tracker: Tracker | None = None
        self._make = make_tracker
        self._run_info = run
        self._journal = journal
        self._feed: Feed | None = None
        self._ledger = Ledger(cursor, DeadLetters(cursor_path), resend)
        self._path = cursor_path
        self._saved = 0.0
        self._budget = budget
        self._on_started = on_started or (lambda: None)
        self._helps_out = helps_out
        self._progress = Progress()
        self._failures = Failures()
        self._state = "starting"
        self._lock = threading.RLock()  # a signal handler may ask in the middle of another question
        self._wake = threading.Event()
        self.started = threading.Event()
        self.done = threading.Event()
        self._waiting = 0
        self._end: RunStatus | None = None
        self._last_segment = -1
        self.abandoned = False

    # Asked for by other threads

    @contextlib.contextmanager
    def hurried(self) -> Iterator[None]:
        """Someone waits: no pauses, no budget."""
        with self._lock:
            self._waiting += 1
        self._wake.set()
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def wait_for_tracker(self, timeout: float, *, failing: float) -> Tracker | None:
        """The tracker once it has started; None if it has not.

        Args:
            timeout: Seconds to wait.
            failing: Seconds to wait if it has raised meanwhile and is tried again, or does nothing.
        """
        begun, quiet, progress = time.monotonic(), Quiet(), self._progress
        with self.hurried():
            while not self.started.wait(0.02):
                idle = min(progress.idle(working_counts=True), quiet.seconds()) > failing
                if time.monotonic() - begun > (failing if idle or self._failures.reasons else timeout):
                    break
        return self.tracker

    def wait_for(self, position: int, deadline: float) -> bool:
        """Wait until all before a position is stored; False at the deadline (of `time.monotonic`)."""
        while self.reached() < position:
            left = deadline - time.monotonic()
            if left <= 0 or self.done.wait(min(0.01, left)):
                return self.reached() >= position
        return True

    def reached(self) -> int:
        """Everything recorded before this is stored."""
        with self._lock:
            feed = self._feed
            if feed is None:
                return 0
            # In this order: what is read meanwhile is not idle.
            position = feed.position
            return position if feed.idle and not self._ledger.waiting else self._ledger.cursor.position

    def end(self, status: RunStatus, segment: int | None = None) -> None:
        """Deliver what is left, close the run with that status, and leave. The first call holds.

        Args:
            status: How the run ended, if its journal does not say.
            segment: The last one of the journal that belongs to what ends; None is the last there is.
        """
        if self._end is None:
            self._last_segment = last_segment(self._journal) if segment is None else segment
            self._end = status
            if self.started.is_set():
                self._progress.made()  # it may have rested, or had nothing to do
        self._wake.set()

    def leave(self) -> None:
        """This thread uses the tracker's own objects no more."""
        try:
            if self.tracker is not None:
                self.tracker.leave()
        except Exception as error:  # noqa: BLE001 - of the tracker's package; the run has to end all the same
            self._failed(error, self._state)

    @property
    def ending(self) -> bool:
        """Whether `end` has been called."""
        return self._end is not None

    @property
    def finished(self) -> bool:
        """Whether all was delivered, and the run closed in the tracker."""
        return self.done.is_set() and self._state == "finished"

    def abandon(self) -> None:
        """No one waits any more: leave after the call that is under way."""
        self.abandoned = True
        self._wake.set()

    def stuck(self) -> bool:
        """Whether it makes no progress: for longer than the tracker's patience no call has succeeded.

        Before the first failure a call's work counts as progress: starts take seconds.
        """
        patience = Tracker.patience if self.tracker is None else self.tracker.patience
        return self._progress.idle(working_counts=not self._failures.in_a_row) > patience

    def receipt(self, recorded: Callable[[], int]) -> TrackerReceipt:
        """What became of the points.

        Args:
            recorded: Counts the points in the journal; called after the delivered ones were counted.
        """
        with self._lock:
            cursor = self._ledger.cursor.counts()
            errors, state = dict(self._failures.reasons), self._state
        return cursor.receipt(recorded(), errors=errors, state=state, renamed=self._renamed())

    def _renamed(self) -> Mapping[str, str]:
        if self._feed is None or self.tracker is None:
            return {}
        escape = self.tracker.names.escape
        return {s.tag: new for s in list(self._feed.series) if (new := escape(s.tag)) != s.tag}

    # On the follower's own thread

    def run(self) -> None:
        """Follow until `end` or `abandon`. Never raises."""
        self._progress.watch()
        lock = None
        try:
            lock = self._lock_cursor()
            if lock is not None and self._start():
                self._follow()
                self._finish()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a defect of ours, or of the tracker's
            self._failed(error, "failed")
            _LOG.exception("delivery to %s has stopped; the journal is kept", self.name)
        finally:
            self._progress.unwatch()
            if lock is not None:
                lock.release()
            if self._feed is not None:
                self._feed.close()
            self.done.set()
            self.started.set()

    def _lock_cursor(self) -> Lock | None:
        """Become the one that delivers this, and look how far it has come; None if that can't be."""
        while not self.abandoned:
            try:
                lock = Lock(lock_path(self._path))
            except BlockingIOError:
                self._state = "waiting for another process that delivers it"
                if self._helps_out:
                    self._progress.made()  # that one's
                self._sleep(_LOCK_PAUSE)
                continue
            try:
                known = Cursor.load(self._path)
            except BaseException:
                lock.release()
                raise
            if known is not None:
                known.run = self._ledger.cursor.run
                with self._lock:
                    self._ledger.cursor = known
                    self._state = "starting"
                self._run_info = replace(self._run_info, state=known.state, position=known.position)
                if self._helps_out and not self._ledger.resend and known.done_with(self._journal):
                    self._state = "finished"
                    lock.release()
                    return None
            return lock
        return None

    def _start(self) -> bool:
        while not self.abandoned:
            try:
                tracker = self._make()
                position = tracker.start(self._run_info)
            except ConfigurationError as error:
                self._failed(error, "failed")
                _LOG.error("%s gets nothing: %s", self.name, error)
                return False
            except Exception as error:  # noqa: BLE001 - whatever an SDK raises is the tracker's failure, not ours
                self._failed(error, "starting")
                self._rest_after_failure(None)
                continue
            self._resume(tracker, position)
            return True
        return False

    def _resume(self, tracker: Tracker, position: int) -> None:
        feed = Feed(
            self._journal,
            tracker=self.name,
            max_points=tracker.pacing.max_points,
            spans=tracker.takes_spans,
        )
        with self._lock:
            feed.start_after(position, counted=0 if position == 0 else self._ledger.cursor.position)
            self._ledger.begin(position)
            self._progress.made()
            self.tracker, self._feed = tracker, feed
            self._failures.in_a_row = 0
            self._state = "running"
        feed.peek()
        self._count_skipped()
        self._save(force=True)
        self._on_started()
        self.started.set()

    def _count_skipped(self) -> None:
        assert self._feed is not None
        with self._lock:
            self._ledger.skipped(self._feed.skipped)

    def _follow(self) -> None:
        assert self._feed is not None
        assert self.tracker is not None
        interval = self.tracker.pacing.interval
        while not self.abandoned:
            cpu = time.thread_time()
            ending = self._end is not None  # before the look: nothing is recorded after the end
            item = self._feed.peek()
            self._count_skipped()
            worked = item is not None and self._give(item)
            if item is None and ending:
                if not self._ledger.resend:
                    return
                self._feed.add(self._ledger.items_to_resend(self._last_segment, self._journal))
            if item is not None and not worked and self._failures.open:
                continue  # nothing else is asked of it
            self._confirm(flush=item is None and self._hurried)
            self._save()
            if item is not None and not worked:
                continue  # it rested already
            if self._hurried:
                if item is None:
                    self._sleep(_FLUSH_INTERVAL)
                continue
            pause = self._budget.pause(time.thread_time() - cpu)
            self._sleep(max(pause, interval) if item is None else pause)

    @property
    def _hurried(self) -> bool:
        return self._waiting > 0 or self._end is not None

    def _give(self, item: Item) -> bool:
        assert self._feed is not None
        assert self.tracker is not None
        if isinstance(item, Gone):
            with self._lock:
                self._ledger.damaged(item, self._feed.skipped)
                self._feed.take()
            return True
        try:
            if not self.tracker.exactly_once:
                with self._lock:
                    self._ledger.gives(item, self._path)
            written = give(self.tracker, item)
        except Retry as error:
            self._failed(error, "retrying")
            self._rest_after_failure(error.after)
            return False
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is the tracker's failure, not ours
            self._failed(error, "retrying")
            if isinstance(item, Batch) or not self._failures.hopeless(error):
                self._rest_after_failure(None)
                return False
            reason = f"{type(error).__name__}: {error!s:.200}"
            written = Written(0, rejected={reason: range(count(item))})
        self._check(written, count(item))
        self._progress.made()
        with self._lock:
            self._failures.in_a_row = 0
            self._state = "running"
            self._ledger.took(item, written)
            self._feed.take()
        return True

    def _check(self, written: Written, given: int) -> None:
        if not isinstance(written, Written) or written.accepted + written.refused != given:
            raise TypeError(
                f"{self.name} was given {given} and must account for each, but returned {written!r:.200}"
            )

    def _confirm(self, *, flush: bool) -> None:
        if not self._ledger.waiting:
            return
        assert self.tracker is not None
        try:
            position = self.tracker.confirm(flush=flush)
        except Exception as error:  # noqa: BLE001 - as in `_give`; nothing is confirmed then
            self._failed(error, "retrying")
            return
        with self._lock:
            if self._ledger.confirm(position):
                self._progress.made()

    def _finish(self) -> None:
        """Close the run in the tracker; some store only then what they took."""
        assert self._feed is not None
        assert self.tracker is not None
        self._confirm(flush=True)
        status = self._end or RunStatus.RUNNING
        if self._feed.status is not RunStatus.RUNNING:  # what the journal says comes from the run itself
            status = self._feed.status
        self.tracker.failure = self._feed.failure if status is RunStatus.FAILED else None
        try:
            self.tracker.finish(status)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as in `_give`
            self._failed(error, "failed")
            self._save(force=True)
            return
        self._confirm(flush=True)
        while self._ledger.waiting and not self.abandoned:
            self._sleep(_FLUSH_INTERVAL)
            self._confirm(flush=True)
        with self._lock:
            if not self._ledger.waiting and not self.abandoned:
                self._state = "finished"
                self._ledger.cursor.finished = status.value
                self._ledger.cursor.segment = self._last_segment
        self._save(force=True)

    def _save(self, *, force: bool = False) -> None:
        """Write the cursor, not more often than need be: what is sent twice is told apart at the start."""
        now = time.monotonic()
        due = self._ledger.unsaved and (self._hurried or now - self._saved >= _SAVE_INTERVAL)
        if not (force or due):
            return
        assert self.tracker is not None
        self._saved = now
        try:
            state = self.tracker.state()
            with self._lock:
                self._ledger.save(self._path, state)
        except Exception as error:  # noqa: BLE001 - as in `_give`; also a state that is no JSON, and a full disk
            self._failed(error, self._state)

    def _failed(self, error: BaseException | str, state: str) -> None:
        with self._lock:
            new = self._failures.add(error)
            self._state = "unavailable" if state == "retrying" and self._failures.open else state
        if new:
            _LOG.warning("%s: %s. Nothing is lost: the journal keeps it.", self.name, new)

    def _rest_after_failure(self, after: float | None) -> None:
        until = time.monotonic() + min(after or 0.0, _RETRY_AFTER_MOST)
        self._sleep(self._failures.pause(hurried=self._hurried))
        while not self.abandoned and (left := until - time.monotonic()) > 0:  # asked for, whoever waits
            self._sleep(left)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._wake.wait(seconds)
        self._wake.clear()
