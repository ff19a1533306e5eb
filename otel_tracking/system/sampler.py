"""Asks the sources on an interval, on a thread of its own, and records what they say."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.context import Context

from otel_tracking.errors import JournalFull
from otel_tracking.recorder import Recorder
from otel_tracking.steps import ambient
from otel_tracking.system.allocator import open_allocator
from otel_tracking.system.figures import Figure, Source
from otel_tracking.system.forking import Turn
from otel_tracking.system.gpu import open_gpus
from otel_tracking.system.host import open_host

_LOG: Final = logging.getLogger(__name__)
METER: Final = "otel_tracking.system"
Opener = Callable[[], Sequence[Source]]
OPENERS: Final[tuple[Opener, ...]] = (open_host, open_gpus, open_allocator)
"""Make the sources, on the sampler's thread: they import packages."""

_FIRST: Final = 1.0
"""Seconds until the first sample at most, so that a run that is killed early has one."""
_STOP_TIMEOUT: Final = 2.0
"""Seconds that the end of a run waits for the last sample."""


class Sampler:
    """Records a sample of the sources at each interval and one more at the end, for one run."""

    def __init__(
        self, recorder: Recorder, interval: float, *, openers: Sequence[Opener] | None = None
    ) -> None:
        """Make one.

        Args:
            recorder: Where to.
            interval: Seconds between two samples.
            openers: Make the sources; default: all there are.
        """
        self._recorder = recorder
        self._interval = min(interval, threading.TIMEOUT_MAX)
        self._openers = OPENERS if openers is None else openers
        self._ending = threading.Event()
        self._done = threading.Event()
        self._abandoned = False
        self._turn = Turn()

    def start(self) -> None:
        """Begin, on a daemon thread."""
        try:
            threading.Thread(target=self._run, name="otel-tracking-system", daemon=True).start()
        except RuntimeError as error:  # the interpreter exits, or there are too many threads
            self._done.set()
            _LOG.warning("no system metrics are recorded: %s", error)

    def stop(self, timeout: float | None = None) -> None:
        """Have the last sample recorded, and no more; wait at most that many seconds, and never over 2."""
        self._ending.set()
        if not self._done.wait(_STOP_TIMEOUT if timeout is None else max(0.0, min(timeout, _STOP_TIMEOUT))):
            self._abandoned = True
            _LOG.warning("the last system metrics took too long; they are not recorded")

    def _run(self) -> None:
        try:
            sources = self._open()
            last = self._ending.wait(min(_FIRST, self._interval))
            self._sample(sources)
            while not last:
                last = self._ending.wait(self._interval)
                self._sample(sources)
            for source in sources:
                self._guarded(source.name, source.close)
        except Exception:  # noqa: BLE001 - of this thread no one else hears
            _LOG.exception("no more system metrics are recorded")
        finally:
            self._done.set()

    def _open(self) -> list[Source]:
        sources: list[Source] = []
        for opener in self._openers:
            self._guarded(opener.__name__, functools.partial(_extend, sources, opener))
        return sources

    def _sample(self, sources: Sequence[Source]) -> None:
        now = time.time_ns()  # one time and step for all of a sample, so that its figures can be compared
        step = ambient(Context())  # the process's: this thread has no other
        for source in sources:
            self._guarded(source.name, functools.partial(self._ask, source, now, step))

    def _ask(self, source: Source, now: int, step: int | None) -> None:
        for figure in source.figures():
            if self._abandoned:  # the run has ended; a next one may be recorded already
                return
            self._record(figure, now, step)

    def _record(self, figure: Figure, now: int, step: int | None) -> None:
        registry = self._recorder.opened()
        if registry is None:
            return
        metric = figure.metric
        try:
            series = registry.series(
                name=metric.series,
                kind=metric.kind,
                unit=metric.unit,
                description=metric.description,
                meter=METER,
                attributes=figure.attributes,
                group=metric.series if figure.attributes else "",
            )
        except JournalFull as error:
            self._recorder.refused[str(error)] += 1
            return
        self._recorder.point(series, figure.value, step=step, time_ns=now)

    def _guarded(self, source: str, work: Callable[[], None]) -> None:
        """Do it; what it raises is counted, and warned of once."""
        try:
            with self._turn.taken():
                work()
        except Exception as error:  # noqa: BLE001 - of psutil, NVML, torch; the others go on
            if not self._abandoned:
                reason = f"system metrics: {source} raised {type(error).__name__}"
                self._recorder.refuse(f"a system metric ({error!s:.200})", reason)


def _extend(sources: list[Source], opener: Opener) -> None:
    sources.extend(opener())
