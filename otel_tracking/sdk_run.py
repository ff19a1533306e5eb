"""The run that the SDK exporters of one tracker share, and the one thread that feeds it."""

from __future__ import annotations

import atexit
import contextvars
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice, takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk.resources import Resource

from otel_tracking import identity, settings
from otel_tracking.final_error import ending_error, failure_of, status_of
from otel_tracking.records import (
    AttributeValue,
    Batch,
    Media,
    MediaKind,
    Rank,
    RunInfo,
    RunStatus,
    Series,
    Text,
    Written,
)
from otel_tracking.tags import TagAssigner
from otel_tracking.tracker import Tracker

_log = logging.getLogger(__name__)

_BACKLOG_POINTS = 200_000
_WAITING_JOBS = 16
_EXIT_SECONDS = 30.0
_REASONS = 100


class Point(NamedTuple):
    """One value of a series, as an exporter made it."""

    series: Series
    step: int
    time: int
    """Nanoseconds since the epoch."""
    value: float


class Distribution(NamedTuple):
    """A histogram, as an exporter made it."""

    tag: str
    step: int
    time: int
    """Nanoseconds since the epoch."""
    details: Mapping[str, Any]
    """As `MediaKind.HISTOGRAM` has them."""


class Saying(NamedTuple):
    """A text, as an exporter made it."""

    tag: str
    step: int
    time: int
    """Nanoseconds since the epoch."""
    text: str


Item: TypeAlias = Point | Distribution | Saying


class SharedRun:
    """One run in one tracker, started at its first point and fed by a thread of its own.

    The thread is what the `Tracker` contract promises (an SDK exports from its own threads, from
    whoever flushes and from whoever shuts down), and what lets a caller stop waiting.
    """

    def __init__(
        self, tracker: type[Tracker], project: str | None, project_dir: str | None, name: str | None
    ) -> None:
        self.tags = TagAssigner()
        """Used by that thread only."""
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.options: dict[str, Any] = {}
        self._class = tracker
        self._project = project
        self._project_dir = project_dir
        self._name = name
        self._run_id = identity.mint()
        self._tracker: Tracker | None = None
        self._resource = Resource.get_empty()
        self._backlog: deque[Item] = deque()
        self._position = 0
        self._unconfirmed = False
        self.closed = False
        self._warned: set[str] = set()
        self._pid = os.getpid()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # Started here, not at the first point: that may come at exit, when Python starts no thread any more.
        self._thread = threading.Thread(target=self._work, name=f"otel-tracking-{tracker.name}", daemon=True)
        self._thread.start()

    def call(self, job: Callable[[], bool], seconds: float) -> bool:
        """Do a job in the run's thread.

        Returns:
            What the job returned; False when it raised or is not done after `seconds` (it goes on).
        """
        if os.getpid() != self._pid:
            return True  # A forked child's SDK exports the parent's points again; the parent has them.
        if threading.current_thread() is self._thread:
            return True  # What the tracker's own package records while it writes would come back for ever.
        if self.closed:
            self.warn("the exporter has been shut down; what is exported now is lost")
            return False
        if self._jobs.qsize() >= _WAITING_JOBS:
            self.warn("the tracker does not return; an export is lost")
            return False
        answer: Future[bool] = Future()
        context = contextvars.copy_context()  # carries the SDK's suppression of instrumentation

        def run() -> None:
            try:
                answer.set_result(context.run(job))
            except Exception as error:  # noqa: BLE001 - a tracker may raise anything, and telemetry must not
                self.warn(f"{type(error).__name__}: {error}")
                answer.set_result(False)

        self._jobs.put(run)
        try:
            return answer.result(max(seconds, 0))
        except TimeoutError:
            self.warn("the tracker took longer than the export's timeout")
            return False

    def deliver(self, items: Sequence[Item], resource: Resource) -> bool:
        """Write items, and those that earlier calls could not write, in order. In the run's thread."""
        self._resource = resource
        self._backlog.extend(items)
        if (excess := len(self._backlog) - _BACKLOG_POINTS) > 0:
            for _ in range(excess):
                self._backlog.popleft()
            self._position += excess  # a point keeps its position, by which trackers know it again
            self.warn(f"the tracker has not taken {_BACKLOG_POINTS:,} points; older ones are lost")
        return self.flush()

    def flush(self) -> bool:
        """Write what is waiting and have the tracker store it. In the run's thread."""
        if self._tracker is None:
            if not self._backlog:
                return True
            self._tracker = self._start()
        while self._backlog:
            given, written = self._write(self._tracker)
            for _ in range(given):
                self._backlog.popleft()
            self._position += given
            self._unconfirmed = True
            for reason, places in written.rejected.items():
                self.warn(
                    f"{len(places):,} of {given:,} were refused, and later ones will be: {reason}", key=reason
                )
            for reason, number in written.altered.items():
                _log.debug("exporter to %s: %d points altered: %s", self._class.name, number, reason)
        if self._unconfirmed:
            self._tracker.confirm(flush=True)
            self._unconfirmed = False
        return True

    def _write(self, tracker: Tracker) -> tuple[int, Written]:
        """Write the backlog's first items; how many they were, and what the tracker did with them."""
        first = self._backlog[0]
        if isinstance(first, Distribution):
            position = self._position + 1
            histogram = MediaKind.HISTOGRAM
            media = Media(histogram, first.tag, (), first.details, first.step, first.time, position)
            return 1, tracker.write_media(media)
        if isinstance(first, Saying):
            text = Text(first.tag, first.text, first.step, first.time, self._position + 1)
            return 1, tracker.write_text(text)
        points = takewhile(lambda item: isinstance(item, Point), self._backlog)
        part = [item for item in islice(points, tracker.pacing.max_points) if isinstance(item, Point)]
        return len(part), tracker.write(self._batch(part))

    def finish(self) -> bool:
        """Write what is waiting and close the run. In the run's thread, which ends after it."""
        self.closed = True
        atexit.unregister(self._end)
        try:
            self.flush()
        finally:
            self._jobs.put(None)
            if self._backlog:
                self.warn(f"{len(self._backlog):,} points could not be written and are lost")
            if self._tracker is not None:
                error = ending_error()
                status = status_of(error)
                if error is not None and status is RunStatus.FAILED:
                    self._tracker.failure = failure_of(error)
                self._tracker.finish(status)
        return True

    def warn(self, text: str, *, key: str = "") -> None:
        """Log a warning the first time it comes up."""
        if (key or text) not in self._warned and len(self._warned) < _REASONS:
            self._warned.add(key or text)
            _log.warning("exporter to %s: %s", self._class.name, text)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _batch(self, points: Sequence[Point]) -> Batch:
        # By identity: a `Series` holds a dict and can't be hashed; each exists once.
        series = {id(point.series): point.series for point in points}
        places = {key: place for place, key in enumerate(series)}
        n = len(points)
        return Batch(
            tuple(series.values()),
            np.fromiter((places[id(p.series)] for p in points), np.int32, n),
            np.fromiter((p.step for p in points), np.int64, n),
            np.fromiter((p.time for p in points), np.int64, n),
            np.fromiter((p.value for p in points), np.float64, n),
            np.arange(self._position + 1, self._position + n + 1, dtype=np.int64),
        )

    def _start(self) -> Tracker:
        attributes = attribute_values(self._resource.attributes)
        rank = _rank(attributes)
        service = str(attributes.get("service.name", ""))
        if service.startswith("unknown_service"):  # the SDK's stand-in for a name
            service = ""
        project = self._project or settings.PROJECT.get() or service or settings.project()
        name = self._name or settings.RUN_NAME.get() or self._run_id
        logging_dir = Path(self._project_dir or settings.project_dir())
        directory = logging_dir / identity.directory_name(project) / self._run_id
        directory.mkdir(parents=True, exist_ok=True)
        tracker = self._class()
        tracker.start(
            RunInfo(
                project=project,
                run_id=self._run_id,
                name=f"{name}-rank{rank.rank}" if rank.world_size > 1 else name,
                directory=directory,
                logging_dir=logging_dir,
                rank=rank,
                options=self.options,
                resource=attributes,
            )
        )
        if tracker.closes_at_exit:
            atexit.register(self._end)
        return tracker

    def _end(self) -> None:
        """At exit, before the tracker's package closes the run: have the SDK hand out what it still holds.

        Its own exit handlers come later. A provider that is not the global one can't be reached.
        """
        if os.getpid() != self._pid:
            return
        # Of no type that is asked for: ours stand before the SDK's, and not all of the SDK is imported.
        providers = metrics.get_meter_provider(), trace.get_tracer_provider(), _logs.get_logger_provider()
        for provider in providers:
            flush = getattr(provider, "force_flush", None)
            if flush is not None:
                flush()
        self.call(self.finish, _EXIT_SECONDS)


_runs: dict[Hashable, SharedRun] = {}
_lock = threading.Lock()


def _join(
    exporter: object,
    tracker: type[Tracker],
    project: str | None,
    project_dir: str | os.PathLike[str] | None,
    run_name: str | None,
    init_kwargs: Mapping[str, Any] | None,
) -> SharedRun:
    """The run of that tracker and those options which is open in this process, or a new one."""
    directory = None if project_dir is None else os.fspath(project_dir)
    key = (tracker, project, directory, run_name)
    with _lock:
        run = _runs.get(key)
        if run is None or run.closed:
            run = _runs[key] = SharedRun(tracker, project, directory, run_name)
        run.users.add(exporter)
        run.options = {**(init_kwargs or {}), **run.options}
    return run


def _leave(exporter: object, run: SharedRun, seconds: float) -> None:
    """Say that an exporter is done; the last one closes the run."""
    with _lock:
        run.users.discard(exporter)
        last = not run.users
        if last:
            for key in [key for key, other in _runs.items() if other is run]:
                del _runs[key]
    if not run.closed:
        run.call(run.finish if last else run.flush, seconds)


class TrackerExporter:
    """What the exporters of all signals have: a place in a run of their tracker's."""

    tracker: ClassVar[type[Tracker]]
    """What a subclass exports to."""

    def __init__(
        self,
        *,
        project: str | None = None,
        project_dir: str | os.PathLike[str] | None = None,
        run_name: str | None = None,
        init_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self._run = _join(self, self.tracker, project, project_dir, run_name, init_kwargs)
        self._open = True
        self._prepare()

    def _prepare(self) -> None:
        """Get ready; the run is there."""

    def force_flush(self, timeout_millis: float = 30_000) -> bool:
        """Write what earlier exports could not, and have the tracker store it."""
        return self._run.call(self._run.flush, timeout_millis / 1e3)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Close the run, unless another exporter of the tracker still writes into it."""
        if self._open:
            self._open = False
            # The SDK's periodic reader passes `timeout=`, in milliseconds too.
            _leave(self, self._run, kwargs.get("timeout", timeout_millis) / 1e3)


def attribute_values(attributes: Mapping[str, Any] | None) -> dict[str, AttributeValue]:
    """OpenTelemetry attributes, keys sorted, sequences as tuples; what is no text and no number as text."""
    return {key: _attribute_value(value) for key, value in sorted((attributes or {}).items())}


def _attribute_value(value: Any) -> AttributeValue:
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return tuple(v if isinstance(v, (str, bool, int, float)) else str(v) for v in value)
    return str(value)


def _rank(attributes: Mapping[str, AttributeValue]) -> Rank:
    def number(name: str, default: int) -> int:
        value = attributes.get(f"training.{name}")
        return value if type(value) is int else default

    return Rank(
        rank=number("rank", 0),
        world_size=number("world_size", 1),
        local_rank=number("local_rank", 0),
        node_rank=number("node_rank", 0),
        source="resource" if "training.rank" in attributes else "single",
    )


def _finish_all() -> None:
    for run in list(_runs.values()):
        if not run.closed:  # this module was loaded after a provider was made, as `OTEL_CONFIG_FILE` has it
            run._end()


def _forget() -> None:
    """In a forked child, which has no thread of its parent's: exporters made there get runs of their own."""
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    _runs.clear()


# At import: an exporter exists before its provider, so the provider's own exit handler, which exports
# what is left, comes after this registration and therefore runs before it.
atexit.register(_finish_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
