"""One rank's run, from its first record to its end: journal, identity, followers."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from otel_tracking.cursor import Cursor, cursor_path, journal_path
from otel_tracking.errors import RunIdentityUnknown, TrackingError
from otel_tracking.followers import Budget, Follower
from otel_tracking.identity import RunIdentity, directory_name, pending_name, resolve, resolve_now
from otel_tracking.journal.reader import PointCounter
from otel_tracking.ranks import RankPolicies
from otel_tracking.recorder import Recorder
from otel_tracking.records import AttributeValue, Rank, Receipt, RunInfo, RunStatus, TrackerReceipt
from otel_tracking.tracker import Tracker

_LOG: Final = logging.getLogger(__name__)
_IDENTITY_TIMEOUT: Final = 600.0
"""Seconds to wait for the ranks' store; the journal is pending meanwhile."""
_PENDING: Final = ".pending"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a run is to be."""

    project: str
    project_dir: Path
    load: Callable[[], Mapping[str, Callable[[], Tracker]]]
    """Makes the makers of the wanted trackers; imports them, on a thread of its own."""
    names: Sequence[str]
    """The wanted trackers, before they are imported."""
    logging_dir: Path | None = None
    run_id: str | None = None
    run_name: str = ""
    policies: RankPolicies = field(default_factory=RankPolicies)
    init_kwargs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resource: Mapping[str, AttributeValue] = field(default_factory=dict)
    budget: float = 0.05
    deliver: bool = True
    ordinal: int = 1
    """1 for the first run that this process begins."""


def wants(request: RunRequest, rank: Rank) -> bool:
    """Whether this rank records anything in that run."""
    if not request.names:
        return request.policies.default.wants(rank)
    return any(request.policies.wants(name, rank) for name in request.names)


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
        self._ended = False
        self._stop = threading.Event()
        self.ready = threading.Event()
        """Set when the followers exist, or it is known that there will be none."""
        self._on_started = on_started
        self._counter: PointCounter | None = None

    # Beginning

    def begin(self) -> None:
        """Open the journal, or take over the one that is open, and start delivery in the background.

        Raises:
            TrackingError, OSError: The journal can't be opened.
        """
        request, rank = self.request, self.rank
        several = request.policies.several(request.names, rank)
        identity = resolve_now(rank, several=several, explicit=request.run_id, ordinal=request.ordinal)
        if identity is None:
            if self._recorder.journal is None or self._recorder.journal.closed:
                open_pending(self._recorder, request, rank)
        else:
            self._named(identity)
        journal = self._recorder.journal
        assert journal is not None
        self._counter = PointCounter(journal.descriptor)
        threading.Thread(target=self._launch, args=(several,), name="otel-tracking-start", daemon=True).start()

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
            self._recorder.open(place, rank=self.rank.rank, start=_start_note(request, self.rank))
        self.identity, self.directory = identity, directory
        self._describe(directory, identity)
        for name in self._wanted():
            self._cursor(name)

    def _wanted(self) -> list[str]:
        return [name for name in self.request.names if self.request.policies.wants(name, self.rank)]

    def _cursor(self, name: str) -> tuple[Cursor, RunInfo, Path]:
        """The cursor of a tracker, on disk before anything can happen to this process."""
        assert self.directory is not None
        path = cursor_path(self.directory, self.rank.rank, name)
        path.parent.mkdir(exist_ok=True)
        cursor = Cursor.load(path) or Cursor(name)
        info = self._run_info(name, cursor)
        cursor.run = run_note(info)
        cursor.finished = ""
        cursor.save(path)
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
        }
        with contextlib.suppress(FileExistsError), (directory / "run.json").open("x", encoding="utf-8") as file:
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
                self._named(identity)
            if self.request.deliver:
                self._start_followers()
        except RunIdentityUnknown as error:
            _LOG.error("%s The journal is kept in %s.", error, self._recorder.journal and self._recorder.journal.path)
            self.left_out = dict.fromkeys(self.request.names, str(error))
        except (TrackingError, OSError) as error:
            _LOG.error("nothing is delivered: %s", error)
            self.left_out = dict.fromkeys(self.request.names, str(error))
        finally:
            self.ready.set()

    def _start_followers(self) -> None:
        wanted = self._wanted()
        makers = self.request.load()
        budget = Budget(self.request.budget, len(wanted))
        self.followers = {name: self._follower(name, makers[name], budget) for name in wanted if name in makers}
        for follower in self.followers.values():
            threading.Thread(target=follower.run, name=f"otel-tracking-{follower.name}", daemon=True).start()

    def _follower(self, name: str, make: Callable[[], Tracker], budget: Budget) -> Follower:
        assert self.directory is not None
        cursor, info, path = self._cursor(name)
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
            resource={**request.resource, **rank.attributes()},
        )

    # While it runs

    def flush(self, timeout: float) -> bool:
        """Hurry until everything recorded so far is stored in every tracker.

        Returns:
            Whether that was reached within the timeout (seconds).
        """
        journal = self._recorder.journal
        if os.getpid() != self._pid or journal is None:
            return True
        deadline = time.monotonic() + timeout
        position = journal.position
        if not self.ready.wait(timeout):
            return False
        with self._all_hurried():
            return all([f.wait_for(position, deadline) for f in self.followers.values()])

    @contextlib.contextmanager
    def _all_hurried(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for follower in self.followers.values():
                stack.enter_context(follower.hurried())
            yield

    def receipt(self) -> Receipt:
        """What was recorded and what became of it."""
        counter = self._counter
        count = counter.count if counter is not None else int
        trackers = {name: follower.receipt(count) for name, follower in self.followers.items()}
        for name, reason in self.left_out.items():
            trackers[name] = _left_out(name, reason, count())
        return Receipt(
            run_id=self.identity.run_id if self.identity else "",
            recorded=count(),
            not_recorded=self._recorder.not_recorded(),
            trackers=trackers,
        )

    # The end

    def end(self, status: RunStatus, timeout: float) -> Receipt:
        """Close the journal, deliver what is left, close the run in every tracker.

        All trackers at once, none longer than the timeout (seconds). What could not be delivered
        stays in the journal.
        """
        if os.getpid() != self._pid or self._ended:
            return self.receipt()
        self._ended = True
        deadline = time.monotonic() + timeout
        self._stop.set()
        self._recorder.close(status)
        self.ready.wait(max(0.0, deadline - time.monotonic()))
        for follower in self.followers.values():
            follower.end(status)
        for follower in self.followers.values():
            follower.done.wait(max(0.0, deadline - time.monotonic()))
        for follower in self.followers.values():
            if not follower.done.is_set():
                follower.abandon()
        receipt = self.receipt()
        for tracker in receipt.trackers.values():
            if tracker.pending:
                _LOG.warning(
                    "%s: %d of %d points are not delivered (%s); they stay in the journal %s",
                    tracker.tracker,
                    tracker.pending,
                    tracker.recorded,
                    next(iter(tracker.errors), "not within the time for it"),
                    self.directory,
                )
        return receipt


def open_pending(recorder: Recorder, request: RunRequest, rank: Rank) -> None:
    """Record into a journal that has no name yet."""
    place = request.project_dir / pending_name()
    recorder.open(place, rank=rank.rank, start=_start_note(request, rank))


def run_note(info: RunInfo) -> dict[str, Any]:
    """A `RunInfo` as JSON values, for the cursor."""
    note = asdict(info)
    note.update(directory=str(info.directory), logging_dir=str(info.logging_dir))
    del note["state"], note["position"]
    return json.loads(json.dumps(note, default=str))  # type: ignore[no-any-return]  # a dict went in


def run_info(note: Mapping[str, Any], cursor: Cursor) -> RunInfo:
    """The `RunInfo` that a cursor keeps; its `run` must not be empty."""
    return RunInfo(
        **{
            **note,
            "directory": Path(note["directory"]),
            "logging_dir": Path(note["logging_dir"]),
            "rank": Rank(**note["rank"]),
            "state": cursor.state,
            "position": cursor.position,
        }
    )


def _start_note(request: RunRequest, rank: Rank) -> dict[str, Any]:
    return {
        "project": request.project,
        "pid": os.getpid(),
        "host": platform.node(),
        "python": platform.python_version(),
        "argv": sys.argv,
        "resource": {**request.resource, **rank.attributes()},
    }


def _left_out(name: str, reason: str, recorded: int) -> TrackerReceipt:
    return TrackerReceipt(
        tracker=name,
        recorded=recorded,
        delivered=0,
        pending=recorded,
        altered={},
        dropped={},
        not_stored={},
        errors={reason: 1},
        renamed={},
        state="failed",
    )

