"""One rank's run, from its first record to its end: journal, identity, followers."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from otel_tracking import environment, retention, settings
from otel_tracking.cursor import Cursor, cursor_path, journal_path, lock_path
from otel_tracking.distributions import Distributions
from otel_tracking.error_text import record_error
from otel_tracking.errors import NotStarted, RunIdentityUnknown, TrackingError
from otel_tracking.followers import Follower
from otel_tracking.identity import RunIdentity, directory_name, pending_name, resolve, resolve_now
from otel_tracking.journal.locking import Lock
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.pace import Budget
from otel_tracking.recorded import Recorded
from otel_tracking.recorder import Recorder, not_recorded
from otel_tracking.records import Rank, Receipt, RunInfo, RunStatus
from otel_tracking.request import NO_TRACKER, RunRequest, run_note, start_note
from otel_tracking.resource import resource
from otel_tracking.sidecar import Sidecar, attach
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)
_IDENTITY_TIMEOUT: Final = 600.0
"""Seconds to wait for the ranks' store; the journal is pending meanwhile."""
_PENDING: Final = ".pending"
_DISTRIBUTIONS_TIMEOUT: Final = 2.0
"""Seconds that the end of a run waits for the last distributions of histograms."""
_NOTE_TIMEOUT: Final = 2.0
"""Seconds that the end of a run waits for `environment.json`."""
_POLL: Final = 0.1
_READY_AT_EXIT: Final = 5.0
"""Seconds that the interpreter's exit waits for the run's name and for trackers that are imported."""


class RunSession:
    """A run that is being recorded."""

    def __init__(
        self,
        recorder: Recorder,
        request: RunRequest,
        rank: Rank,
        *,
        on_started: Callable[[], None] | None = None,
    ) -> None:
        self.request = request
        self.rank = rank
        self.identity: RunIdentity | None = None
        self.directory: Path | None = None
        self.followers: dict[str, Follower] = {}
        self.left_out: dict[str, str] = {}
        """Trackers that could not be started at all, and why."""
        self._recorder = recorder
        self._pid = os.getpid()
        self.ended = False
        self._late = False
        """Whether the end has waited long enough for trackers to be imported."""
        self._stop = threading.Event()
        self.ready = threading.Event()
        self._noted = threading.Event()
        """Set when the followers exist, or it is known that there will be none."""
        self._on_started = on_started
        self._journal: JournalWriter | None = None
        self._recorded = Recorded()
        self._distributions = Distributions(recorder, settings.DISTRIBUTIONS.get())
        self._refused = recorder.refused
        self._rounded_before = recorder.rounded
        self._rounded_at_end = 0
        self._cursors: dict[str, tuple[Cursor, RunInfo, Path]] = {}
        self._sidecar: Sidecar | None = None
        """Set, with `delivery="process"`, once the run has a name."""

    # Beginning

    def begin(self) -> None:
        """Open the journal, or take over the one that is open, and start delivery in the background.

        Raises:
            TrackingError, OSError: The journal can't be opened.
        """
        request, rank = self.request, self.rank
        several = request.policies.several(request.names or [NO_TRACKER], rank)
        identity = resolve_now(rank, several=several, explicit=request.run_id, ordinal=request.ordinal)
        if identity is not None:
            self._named(identity)
        elif self._recorder.journal is None or self._recorder.journal.closed:
            open_pending(self._recorder, request, rank)
        self._adopt_journal()
        self._start_threads(several)

    def _start_threads(self, several: bool) -> None:
        """All at once: a short program may be exiting by the time they have work, and Python 3.12 starts no
        thread then."""
        threads = [
            ("start", functools.partial(self._launch, several)),
            ("distributions", functools.partial(self._distributions.run, self.ready.wait)),
        ]
        if self.request.delivery == "thread":
            threads += [(name, functools.partial(self._follow, name)) for name in self._wanted()]
        for name, work in threads:
            threading.Thread(target=work, name=f"otel-tracking-{name}", daemon=True).start()
        if self.request.delivery == "thread" and self._wanted():
            threading.Thread(target=self._hold_exit, name="otel-tracking-hold-exit", daemon=False).start()

    def _adopt_journal(self) -> None:
        journal = self._recorder.journal
        assert journal is not None
        self._journal = journal
        self._recorded.follow(journal)

    def _named(self, identity: RunIdentity) -> None:
        request = self.request
        directory = request.project_dir / directory_name(request.project) / identity.run_id
        place = journal_path(directory, self.rank.rank)
        journal = self._recorder.journal
        if journal is not None and not journal.closed:
            self._recorder.move(place, rank=self.rank.rank)
            with contextlib.suppress(OSError):  # other ranks' lie there too
                (request.project_dir / _PENDING).rmdir()
        else:
            self._recorder.open(place, rank=self.rank.rank, start=start_note(request, self.rank))
        self.identity, self.directory = identity, directory
        self._describe(directory, identity)
        for name in self._wanted():
            try:
                self._cursors[name] = self._cursor(name)
            except (TrackingError, OSError) as error:
                self._leave_out(name, str(error))

    def _leave_out(self, name: str, reason: str) -> None:
        self.left_out[name] = reason
        _LOG.warning("%s gets nothing: %s The journal is kept.", name, reason)

    def _delivered_to(self) -> list[str]:
        return [] if self.request.delivery == "off" else self._wanted()

    def _wanted(self) -> list[str]:
        return [name for name in self.request.names if self.request.policies.wants(name, self.rank)]

    def _cursor(self, name: str) -> tuple[Cursor, RunInfo, Path]:
        """The cursor of a tracker, on disk before anything can happen to this process."""
        assert self.directory is not None
        path = cursor_path(self.directory, self.rank.rank, name)
        path.parent.mkdir(exist_ok=True)
        try:
            lock = Lock(lock_path(path))
        except BlockingIOError:  # a process still delivers what an earlier one recorded; it has the say
            cursor = Cursor.load(path) or Cursor(name)
            info = self._run_info(name, cursor)
            cursor.run = run_note(info)
            return cursor, info, path
        try:
            cursor = Cursor.load(path) or Cursor(name)
            info = self._run_info(name, cursor)
            cursor.run = run_note(info)
            cursor.finished = ""
            cursor.save(path)
        finally:
            lock.release()
        return cursor, info, path

    def _describe(self, directory: Path, identity: RunIdentity) -> None:
        content = {
            "version": 1,
            "run_id": identity.run_id,
            "run_id_source": identity.source,
            "project": self.request.project,
            "name": self.request.run_name or identity.run_id,
            "created": time.time_ns(),
            "world_size": self.rank.world_size,
            "keep": str(self.request.keep),
        }
        with (
            contextlib.suppress(FileExistsError),
            (directory / "run.json").open("x", encoding="utf-8") as file,
        ):
            json.dump(content, file, indent=1)

    def _launch(self, several: bool) -> None:
        try:
            if self.identity is None:
                deadline = time.monotonic() + _IDENTITY_TIMEOUT
                identity = resolve(
                    self.rank,
                    several=several,
                    deadline=deadline,
                    stop=self._stop,
                    ordinal=self.request.ordinal,
                )
                if self._journal is None or self._journal.closed:
                    raise RunIdentityUnknown("The run had ended before its ranks knew its name.")
                self._named(identity)
                self._adopt_journal()  # the records may have moved to another
            if self.request.delivery == "thread":
                self._start_followers()
            elif self.request.delivery == "process" and self._cursors:
                assert self.directory is not None
                journal = journal_path(self.directory, self.rank.rank)
                sidecar = Sidecar(self.directory, journal, [path for _, _, path in self._cursors.values()])
                sidecar.start()
                self._sidecar = sidecar
        except Exception as error:  # noqa: BLE001 - of this thread no one else hears
            _LOG.error(
                "nothing is delivered: %s The journal is kept in %s.",
                error,
                self._journal and self._journal.path,
                exc_info=None if isinstance(error, TrackingError | OSError) else error,
            )
            self.left_out = dict.fromkeys(self._wanted(), str(error) or type(error).__name__)
        finally:
            self.ready.set()
        if self.directory is not None and self.rank.is_main:
            environment.note(self.directory)
        self._noted.set()

    def _start_followers(self) -> None:
        makers, missing = self.request.load()
        if self._late:
            return
        for name in self._cursors.keys() - makers.keys():
            self._leave_out(name, missing.get(name, "it could not be loaded."))
        wanted = [name for name in self._cursors if name in makers]
        budget = Budget(self.request.budget, len(wanted))
        self.followers = {name: self._follower(name, makers[name], budget) for name in wanted}

    def _follow(self, name: str) -> None:
        self.ready.wait()
        follower = self.followers.get(name)
        if follower is not None:
            follower.run()

    def _hold_exit(self) -> None:
        """Let no exit handler run while a tracker starts; the interpreter joins this thread before them.

        An SDK may have registered its own already, which closes its run, and ours comes before it only
        once the start is over.
        """
        main = threading.main_thread()
        deadline = float("inf")
        while not (self._all_started() or self.ended) and time.monotonic() < deadline:
            time.sleep(_POLL)
            if not main.is_alive() and not self.ready.is_set():
                deadline = min(deadline, time.monotonic() + _READY_AT_EXIT)

    def _all_started(self) -> bool:
        """Whether each tracker has started, or gets nowhere with it."""
        return self.ready.is_set() and all(f.started.is_set() or f.stuck() for f in self.followers.values())

    def _follower(self, name: str, make: Callable[[], Tracker], budget: Budget) -> Follower:
        assert self.directory is not None
        cursor, info, path = self._cursors[name]
        journal = journal_path(self.directory, self.rank.rank)
        return Follower(make, info, journal, cursor, path, budget, on_started=self._on_started)

    def _run_info(self, name: str, cursor: Cursor) -> RunInfo:
        assert self.directory is not None
        assert self.identity is not None
        request, rank = self.request, self.rank
        grouped = request.policies.grouped(name, rank)
        directory = self.directory / f"rank-{rank.rank}" if grouped else self.directory
        directory.mkdir(parents=True, exist_ok=True)
        logging_dir = request.logging_dir or request.project_dir
        logging_dir.mkdir(parents=True, exist_ok=True)
        run_name = request.run_name or self.identity.run_id
        return RunInfo(
            project=request.project,
            run_id=self.identity.run_id,
            name=f"{run_name}-rank{rank.rank}" if grouped else run_name,
            directory=directory,
            logging_dir=logging_dir,
            rank=rank,
            group=self.identity.run_id if grouped else "",
            options=dict(request.init_kwargs.get(name, {})),
            state=cursor.state,
            position=cursor.position,
            resource=resource(request.project, rank),
        )

    # While it runs

    def flush(self, timeout: float) -> bool:
        """Hurry until everything recorded so far is stored in every tracker.

        Returns:
            Whether that was reached within the timeout (seconds).
        """
        if not self.in_this_process:
            return True
        deadline = _deadline(timeout)
        if not self._wait_until_ready(deadline):
            return False
        assert self._journal is not None
        if not self._journal.settle(deadline):
            return False
        position = self._journal.position  # only now is it sure to be in its place
        if self._sidecar is not None:
            return self._sidecar.flush(position, deadline)
        with self._all_hurried():
            stored = all(f.wait_for(position, deadline) for f in self.followers.values())
        return stored and len(self.followers) == len(self._delivered_to())

    @property
    def in_this_process(self) -> bool:
        """False in a forked child, which has neither the threads nor the right to the locks."""
        return os.getpid() == self._pid

    def _wait_until_ready(self, deadline: float) -> bool:
        return self.ready.wait(max(0.0, deadline - time.monotonic()))

    @contextlib.contextmanager
    def _all_hurried(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for follower in self.followers.values():
                stack.enter_context(follower.hurried())
            yield

    def receipt(self) -> Receipt:
        """What was recorded and what became of it."""
        run_id = self.identity.run_id if self.identity else ""
        if not self.in_this_process:
            return Receipt(run_id, 0, self._recorder.not_recorded(), {})
        count = self._recorded.count
        trackers = {}
        for name in self._delivered_to():
            if name in self.followers:
                trackers[name] = self.followers[name].receipt(count)
            elif self._sidecar is not None and name in self._cursors:
                trackers[name] = self._sidecar.receipt(self._cursors[name][2], count)
            else:
                cursor = self._cursors[name][0] if name in self._cursors else Cursor(name)
                reason = self.left_out.get(name)
                errors, state = ({}, "starting") if reason is None else ({reason: 1}, "failed")
                trackers[name] = cursor.receipt(count(), errors=errors, state=state)
        return Receipt(
            run_id=run_id,
            recorded=count(),
            not_recorded=not_recorded(self._refused, self._journal),
            trackers=trackers,
            rounded=(self._rounded_at_end or self._recorder.rounded) - self._rounded_before,
        )

    # The end

    def end(
        self,
        status: RunStatus,
        timeout: float,
        *,
        patient: bool = True,
        error: BaseException | None = None,
    ) -> Receipt:
        """Close the journal, deliver what is left, close the run in every tracker.

        All trackers at once. What could not be delivered stays in the journal. Once ended, the first
        status holds; a later call waits like the first, but not for trackers that took too long then.

        Args:
            status: How the run ended.
            timeout: Seconds, for all trackers together.
            patient: Wait that long also for a tracker that gets nowhere.
            error: What made it fail.
        """
        if not self.in_this_process:
            return self.receipt()
        first, self.ended = not self.ended, True
        deadline = _deadline(timeout)
        self._stop.set()
        # A pending journal has to be open to get its place, among what an earlier process left there.
        if not self._late:
            self._wait_until_ready(deadline)
        self._late = not self.ready.is_set()
        if first and not self._late:
            self._distributions.finish(max(0.0, min(_DISTRIBUTIONS_TIMEOUT, deadline - time.monotonic())))
        if first and error is not None:
            record_error(self._recorder, error)
        self._recorder.close(status)
        self._rounded_at_end = self._rounded_at_end or self._recorder.rounded
        followers = [follower for follower in self.followers.values() if not follower.abandoned]
        for follower in followers:
            follower.leave()
            follower.end(status)
        for follower in followers:
            while not follower.done.wait(max(0.0, min(_POLL, deadline - time.monotonic()))):
                if time.monotonic() >= deadline or (not patient and follower.stuck()):
                    break
        for follower in followers:
            if not follower.done.is_set():
                follower.abandon()
        if self._sidecar is not None and first:
            self._sidecar.wait_for_end(deadline, patient=patient)
        self._recorded.finish()
        self._noted.wait(min(_NOTE_TIMEOUT, max(0.0, deadline - time.monotonic())))
        if first and self.directory is not None:
            retention.apply(journal_path(self.directory, self.rank.rank), self.request.keep, ended=True)
        receipt = self.receipt()
        if first:
            self._warn_of_pending(receipt)
        return receipt

    def _warn_of_pending(self, receipt: Receipt) -> None:
        for tracker in receipt.trackers.values():
            if tracker.pending and tracker.tracker not in self.left_out:
                _LOG.warning(
                    "%s: %d of %d points are not delivered (%s); they stay in the journal %s",
                    tracker.tracker,
                    tracker.pending,
                    tracker.recorded,
                    next(iter(tracker.errors), "not within the time for it"),
                    self.directory,
                )

    def attached(self, name: str, timeout: float) -> Tracker:
        """A tracker to use natively here, while the sidecar delivers to it.

        Raises:
            ConfigurationError: The tracker allows no second process.
            NotStarted: The sidecar has not started it within the timeout (seconds).
        """
        makers, missing = self.request.load()
        if name not in makers or name not in self._cursors:
            raise NotStarted(f"{name!r} is not running: {missing.get(name) or self.left_out.get(name)}")
        tracker = makers[name]()
        _, info, path = self._cursors[name]
        attach(tracker, name, info, path, _deadline(timeout))
        return tracker


def _deadline(timeout: float) -> float:
    """The `time.monotonic()` that many seconds from now; locks wait no longer than `TIMEOUT_MAX`."""
    return time.monotonic() + min(timeout, threading.TIMEOUT_MAX / 2)


def open_pending(recorder: Recorder, request: RunRequest, rank: Rank) -> None:
    """Record into a journal that has no name yet."""
    place = request.project_dir / pending_name()
    recorder.open(place, rank=rank.rank, start=start_note(request, rank))
