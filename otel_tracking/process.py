"""What there is once a process: the recorder, the providers, the run, and how the process ends."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
from types import TracebackType
from typing import Final

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from otel_tracking import settings
from otel_tracking.provider import DEFAULT_METERS, TrackingMeterProvider
from otel_tracking.ranks import detect
from otel_tracking.recorder import Recorder
from otel_tracking.records import Receipt, RunStatus
from otel_tracking.session import RunRequest, RunSession, open_pending, wants
from otel_tracking.spans import TrackingSpanProcessor, TrackingTracerProvider

_LOG: Final = logging.getLogger(__name__)


class Process:
    """The one recorder of this process and what feeds it.

    Attributes:
        recorder: Where everything is recorded.
        provider: The meter provider that feeds it.
        session: The run that is being recorded, or was last.
    """

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.provider = TrackingMeterProvider(self.recorder, meters=settings.METERS.get() or DEFAULT_METERS)
        self.session: RunSession | None = None
        self._runs = 0
        self._wrapped = False
        self._watched = False
        self._failed = False
        self._own_tracers: TracerProvider | None = None
        self._pid = os.getpid()

    # Ways in

    def install(self) -> None:
        """Make what goes through OpenTelemetry's API recorded, whoever sets a provider and when.

        Wraps the public `set_meter_provider` and `set_tracer_provider`: an SDK provider that is set
        later is attached, one that is there already is attached now.
        """
        with self.recorder.lock:
            if self._wrapped:
                return
            self._wrapped = True
            if settings.SDK_DISABLED.get():
                self.recorder.mute("OTEL_SDK_DISABLED is true", quiet=True)
                return
            self._install_metrics()
            self._install_traces()
            self.watch_exit()

    def _install_metrics(self) -> None:
        set_provider = metrics.set_meter_provider

        @functools.wraps(set_provider)
        def set_meter_provider(meter_provider: MeterProvider) -> None:
            if meter_provider is not self.provider:
                self.provider.attach(meter_provider)

        present = _present(metrics.get_meter_provider())
        if present is None:
            set_provider(self.provider)
        elif present is not self.provider:
            self.provider.attach(present)
        metrics.set_meter_provider = set_meter_provider

    def _install_traces(self) -> None:
        set_provider = trace.set_tracer_provider
        processor = TrackingSpanProcessor(self.recorder)

        @functools.wraps(set_provider)
        def set_tracer_provider(tracer_provider: TracerProvider) -> None:
            add = getattr(tracer_provider, "add_span_processor", None)
            if add is not None:
                add(processor)
            own = self._own_tracers
            if isinstance(own, TrackingTracerProvider):
                own.attach(tracer_provider)
            else:
                set_provider(tracer_provider)

        present = trace.get_tracer_provider()
        if isinstance(present, trace.ProxyTracerProvider):
            self._own_tracers = TrackingTracerProvider(processor)
            set_provider(self._own_tracers)
        elif hasattr(present, "add_span_processor"):
            present.add_span_processor(processor)
        else:
            _LOG.warning(
                "the global tracer provider %s takes no span processors: spans give no steps and no times",
                type(present).__name__,
            )
        trace.set_tracer_provider = set_tracer_provider

    # Runs

    def begin(self, request: RunRequest) -> RunSession | None:
        """Begin a run in this process, ending the one before; None if this rank records nothing.

        Raises:
            TrackingError, OSError: The journal can't be opened.
        """
        with self.recorder.lock:
            if self._pid != os.getpid():  # a forked child that becomes a rank of its own
                self._pid, self.session, self._runs = os.getpid(), None, 0
                self._watched = False
                self.watch_exit()
            if self.session is not None:
                self.end(self.status())
            rank = detect()
            self._runs += 1
            if not wants(request, rank):
                self.session = None
                self.recorder.mute(f"rank {rank.rank} is not recorded", quiet=True)
                return None
            self.recorder.unmute()
            session = RunSession(self.recorder, request, rank, on_started=self._register_exit)
            session.begin()
            self.session = session
            return session

    @property
    def next_ordinal(self) -> int:
        """Which run of this process the next one is, from 1."""
        return self._runs + 1

    def record_pending(self, request: RunRequest) -> None:
        """Record from the first measurement on, before the run has begun."""
        self.recorder.opener = functools.partial(self._open_pending, request)

    def _open_pending(self, request: RunRequest, recorder: Recorder) -> None:
        rank = detect()
        if wants(request, rank):
            open_pending(recorder, request, rank)
        else:
            recorder.mute(f"rank {rank.rank} is not recorded", quiet=True)

    def end(self, status: RunStatus, timeout: float | None = None) -> Receipt | None:
        """End the run; None if there is none."""
        with self.recorder.lock:
            session = self.session
            if session is None or self._pid != os.getpid():
                return None
            self.provider.before_end()
            return session.end(status, settings.END_TIMEOUT.get() if timeout is None else timeout)

    # How the process ends

    def status(self) -> RunStatus:
        """How a run that ends now ended, as far as this process can tell."""
        return RunStatus.FAILED if self._failed or sys.exc_info()[0] is not None else RunStatus.FINISHED

    def watch_exit(self) -> None:
        """End the run when the interpreter exits, and notice when an exception is why."""
        if self._watched:
            return
        self._watched = True
        self._register_exit()
        hook = sys.excepthook

        def excepthook(
            kind: type[BaseException], error: BaseException, traceback: TracebackType | None
        ) -> None:
            self._failed = True
            hook(kind, error, traceback)

        sys.excepthook = excepthook

    def _register_exit(self) -> None:
        # Again after each tracker's start: handlers run last in, first out, and the trackers' SDKs
        # have theirs that close the run.
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        if self._pid == os.getpid():
            self.end(self.status())


def _present(provider: MeterProvider) -> MeterProvider | None:
    """The global provider, unless it is the API's stand-in for one that is not set yet."""
    return None if type(provider).__module__.startswith("opentelemetry.metrics.") else provider


_process: Process | None = None
_process_lock: Final = threading.Lock()


def process() -> Process:
    """The one of this process, made when it is first asked for."""
    global _process
    with _process_lock:
        if _process is None:
            _process = Process()
        return _process

