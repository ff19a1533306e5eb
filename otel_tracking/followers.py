"""A follower carries a journal into one tracker: in order, at its pace, until it is stored."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_tracking.cursor import Cursor
from otel_tracking.errors import ConfigurationError, Retry
from otel_tracking.feed import Feed, Item
from otel_tracking.records import Batch, RunInfo, RunStatus, Text, TrackerReceipt, Written
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)
_BACKOFF_FIRST: Final = 0.2
_BACKOFF_MOST: Final = 30.0
_BACKOFF_WAITED_FOR: Final = 1.0
"""The longest pause between tries while someone waits."""
_RETRY_AFTER_MOST: Final = 3600.0
"""The longest that a tracker's own `Retry(after)` is believed."""
_MAX_REASONS: Final = 50
_SAVE_INTERVAL: Final = 1.0
_FLUSH_INTERVAL: Final = 0.05


class Budget:
    """How much of the trainer's GIL all followers together may take, as CPU seconds a second.

    Each has an equal share of it. What does not fit waits in the journal.
    """

    def __init__(self, fraction: float = 0.05, followers: int = 1) -> None:
        self._share = fraction / max(followers, 1)

    def pause(self, cpu: float) -> float:
        """Seconds to rest after having used that much CPU time."""
        return cpu / self._share - cpu if self._share < 1 else 0.0


@dataclass(frozen=True, slots=True)
class _Given:
    """Something the tracker took and has not confirmed."""

    end: int
    points: bool
    written: Written


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
    ) -> None:
        self.name = cursor.tracker
        self.tracker: Tracker | None = None
        self._make = make_tracker
        self._run_info = run
        self._journal = journal
        self._feed: Feed | None = None
        self._cursor = cursor
        self._path = cursor_path
        self._saved = 0.0
        self._unsaved = False
        self._budget = budget
        self._on_started = on_started or _nothing
        self._given: deque[_Given] = deque()
        self._counted = 0
        self._errors: dict[str, int] = {}
        self._state = "starting"
        self._lock = threading.RLock()  # a signal handler may ask in the middle of another question
        self._wake = threading.Event()
        self.started = threading.Event()
        self.done = threading.Event()
        self._waiting = 0
        self._end: RunStatus | None = None
        self.abandoned = False
        self._failures = 0

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
            failing: Seconds to wait if it has raised meanwhile and is tried again.
        """
        begun = time.monotonic()
        with self.hurried():
            while not self.started.wait(0.02):
                waited = time.monotonic() - begun
                if waited > timeout or (self._errors and waited > failing):
                    break
        return self.tracker

    def wait_for(self, position: int, deadline: float) -> bool:
        """Wait until all before a position is stored; False at the deadline (of `time.monotonic`)."""
        while not self._reached(position):
            left = deadline - time.monotonic()
            if left <= 0 or self.done.wait(min(0.01, left)):
                return self._reached(position)
        return True

    def _reached(self, position: int) -> bool:
        with self._lock:
            feed = self._feed
            # Definitions and notes between the last item and the end need no confirmation.
            return feed is not None and not self._given and feed.position >= position and feed.idle

    def end(self, status: RunStatus) -> None:
        """Deliver what is left, close the run with that status, and leave. The first status holds."""
        self._end = self._end or status
        self._wake.set()

    def abandon(self) -> None:
        """No one waits any more: leave after the call that is under way."""
        self.abandoned = True
        self._wake.set()

    def receipt(self, recorded: Callable[[], int]) -> TrackerReceipt:
        """What became of the points.

        Args:
            recorded: Counts the points in the journal; called after the delivered ones were counted.
        """
        with self._lock:
            cursor = self._cursor.counts()
            errors, state = dict(self._errors), self._state
        return cursor.receipt(recorded(), errors=errors, state=state, renamed=self._renamed())

    def _renamed(self) -> Mapping[str, str]:
        if self._feed is None or self.tracker is None:
            return {}
        escape = self.tracker.names.escape
        return {s.tag: new for s in list(self._feed.series) if (new := escape(s.tag)) != s.tag}

    # On the follower's own thread

    def run(self) -> None:
        """Follow until `end` or `abandon`. Never raises."""
        try:
            if self._start():
                self._follow()
                self._finish()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a defect of ours, or of the tracker's
            self._failed(error, "failed")
            _LOG.exception("delivery to %s has stopped; the journal is kept", self.name)
        finally:
            if self._feed is not None:
                self._feed.close()
            self.done.set()
            self.started.set()

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
        feed = Feed(self._journal, tracker=self.name, max_points=tracker.pacing.max_points)
        with self._lock:
            cursor = self._cursor
            if position == 0:  # a store that holds nothing yet
                cursor.delivered, cursor.altered, cursor.dropped, cursor.not_stored = 0, {}, {}, {}
                cursor.position = 0
            feed.start_after(position, counted=cursor.position)
            cursor.position = max(cursor.position, position)
            self._counted = cursor.position
            cursor.finished = ""
            self.tracker, self._feed = tracker, feed
            self._failures = 0
            self._state = "running"
        feed.peek()
        self._count_skipped()
        self._save(force=True)
        self._on_started()
        self.started.set()

    def _count_skipped(self) -> None:
        assert self._feed is not None
        with self._lock:
            if self._feed.skipped:
                refused = sum(self._cursor.dropped.values())
                self._cursor.delivered = max(self._cursor.delivered, self._feed.skipped - refused)

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
                return
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
        try:
            if isinstance(item, Batch):
                written = self.tracker.write(item)
            elif isinstance(item, Text):
                written = self.tracker.write_text(item)
            else:
                written = self.tracker.write_config(item)
        except Retry as error:
            self._failed(error, "retrying")
            self._rest_after_failure(error.after)
            return False
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises is the tracker's failure, not ours
            self._failed(error, "retrying")
            self._rest_after_failure(None)
            return False
        points = isinstance(item, Batch)
        self._check(written, len(item) if isinstance(item, Batch) else 1)
        end = int(item.positions[-1]) if isinstance(item, Batch) else item.position
        with self._lock:
            self._failures = 0
            self._state = "running"
            self._given.append(_Given(end, points, written))
            self._feed.take()
        return True

    def _check(self, written: Written, given: int) -> None:
        if not isinstance(written, Written) or written.accepted + sum(written.rejected.values()) != given:
            raise TypeError(
                f"{self.name} was given {given} and must account for each, but returned {written!r:.200}"
            )

    def _confirm(self, *, flush: bool) -> None:
        if not self._given:
            return
        assert self.tracker is not None
        try:
            position = self.tracker.confirm(flush=flush)
        except Exception as error:  # noqa: BLE001 - as in `_give`; nothing is confirmed then
            self._failed(error, "retrying")
            return
        with self._lock:
            while self._given and self._given[0].end <= position:
                self._credit(self._given.popleft())
                self._unsaved = True

    def _credit(self, given: _Given) -> None:
        cursor = self._cursor
        if given.end <= self._counted:
            return  # it was looked at again; it counts as what it was then
        cursor.position = given.end
        if given.points:
            cursor.delivered += given.written.accepted
            _add(cursor.dropped, given.written.rejected)
            _add(cursor.altered, given.written.altered)
        else:
            _add(cursor.not_stored, given.written.rejected)
            _add(cursor.not_stored, given.written.altered)

    def _finish(self) -> None:
        """Close the run in the tracker; some store only then what they took."""
        assert self._feed is not None
        assert self.tracker is not None
        self._confirm(flush=True)
        status = self._end or RunStatus.RUNNING
        if self._feed.status is not RunStatus.RUNNING:  # what the journal says comes from the run itself
            status = self._feed.status
        try:
            self.tracker.finish(status)
        except Exception as error:  # noqa: BLE001 - as in `_give`
            self._failed(error, "failed")
            self._save(force=True)
            return
        self._confirm(flush=True)
        while self._given and not self.abandoned:
            self._sleep(_FLUSH_INTERVAL)
            self._confirm(flush=True)
        with self._lock:
            if not self._given and not self.abandoned:
                self._state = "finished"
                self._cursor.finished = status.value
        self._save(force=True)

    def _save(self, *, force: bool = False) -> None:
        """Write the cursor, not more often than need be: what is sent twice is told apart at the start."""
        now = time.monotonic()
        due = self._unsaved and (self._hurried or now - self._saved >= _SAVE_INTERVAL)
        if not (force or due):
            return
        assert self.tracker is not None
        self._saved = now
        try:
            state = self.tracker.state()
            with self._lock:
                self._cursor.state = state
                self._cursor.save(self._path)
            self._unsaved = False
        except Exception as error:  # noqa: BLE001 - as in `_give`; also a state that is no JSON, and a full disk
            self._failed(error, self._state)

    def _failed(self, error: BaseException, state: str) -> None:
        reason = f"{type(error).__name__}: {error}"[:300]
        with self._lock:
            self._state = state
            self._failures += 1
            if reason not in self._errors and len(self._errors) >= _MAX_REASONS:
                reason = "other errors"
            first = reason not in self._errors
            self._errors[reason] = self._errors.get(reason, 0) + 1
        if first:
            _LOG.warning("%s: %s. Nothing is lost: the journal keeps it.", self.name, reason)

    def _rest_after_failure(self, after: float | None) -> None:
        until = time.monotonic() + min(after or 0.0, _RETRY_AFTER_MOST)
        pause = min(_BACKOFF_MOST, _BACKOFF_FIRST * 2 ** min(self._failures, 10)) * random.uniform(0.5, 1.0)
        self._sleep(min(pause, _BACKOFF_WAITED_FOR) if self._hurried else pause)
        while not self.abandoned and (left := until - time.monotonic()) > 0:  # asked for, whoever waits
            self._sleep(left)

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._wake.wait(seconds)
        self._wake.clear()


def _nothing() -> None:
    pass


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for reason, count in more.items():
        counts[reason] = counts.get(reason, 0) + count
