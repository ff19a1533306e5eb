"""What there is once a process: the recorder, the providers, the run, and how the process ends."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Final, NoReturn

from opentelemetry import metrics, trace
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from opentelemetry.trace import TracerProvider

from otel_tracking import settings
from otel_tracking.final_error import ending_error, status_of
from otel_tracking.provider import DEFAULT_METERS, TrackingMeterProvider
from otel_tracking.ranks import detect
from otel_tracking.recorder import Recorder
from otel_tracking.records import Receipt, RunStatus
from otel_tracking.request import RunRequest, wants
from otel_tracking.session import RunSession, open_pending
from otel_tracking.spans import TrackingSpanProcessor, TrackingTracerProvider
from otel_tracking.system.sampler import Sampler

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

    from otel_tracking.logs import LogCapture

_LOG: Final = logging.getLogger(__name__)
_DISABLED: Final = "OTEL_SDK_DISABLED is true"
_ATTACHED_LATE: Final = (
    "an SDK meter provider was set before us: meters and instruments that were made from it before now are "
    "not recorded. With `otel-tracking run`, or a `Tracking` made before them, they are"
)


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
        self._sampler: Sampler | None = None
        self._watched = False
        self._exit: tuple[SystemExit, int] | None = None
        self._meters_offered = False
        self._processor = TrackingSpanProcessor(self.recorder)
        self._tracers: TrackingTracerProvider | None = None
        self._listening: list[TracerProvider] = []
        self._logs: LogCapture | None = None
        self._pid = os.getpid()

    # Ways in

    def install(self, *, meters: bool = True, tracers: bool = True, first: bool = False) -> None:
        """Make what goes through OpenTelemetry's API recorded, whoever sets a provider and when.

        An SDK provider that is there already is attached now, one that is set later is then.

        Args:
            meters: Whether measurements are recorded.
            tracers: Whether spans are.
            first: Whether nothing can have used a provider that is there already: nothing is lost then.
        """
        with self.recorder.lock:
            if settings.SDK_DISABLED.get():
                self.recorder.mute(_DISABLED, quiet=True)
                return
            if meters:
                self._install_meters(first)
            if tracers:
                self._install_tracers()
            self.watch_exit()

    def _install_meters(self, first: bool) -> None:
        provider = metrics.get_meter_provider()
        if not _is_set(provider):
            set_meter_provider = metrics.set_meter_provider
            set_meter_provider(self.offered_meters())
        elif provider is not self.provider:
            new = self.provider.downstream is None
            if self.provider.attach(provider) and new and not first:
                _LOG.info(_ATTACHED_LATE)

    def _install_tracers(self) -> None:
        provider = trace.get_tracer_provider()
        if isinstance(provider, trace.ProxyTracerProvider):
            set_tracer_provider = trace.set_tracer_provider
            set_tracer_provider(self.offered_tracers())
        elif provider is not self._tracers:
            self._listen(provider)

    def offered_meters(self) -> MeterProvider:
        """What becomes the global meter provider. Whoever sets another one has that attached to it."""
        if settings.SDK_DISABLED.get():
            return NoOpMeterProvider()
        if not self._meters_offered:
            self._meters_offered = True
            set_provider = metrics.set_meter_provider

            @functools.wraps(set_provider)
            def set_meter_provider(meter_provider: MeterProvider) -> None:
                if meter_provider is self.provider or not self.provider.attach(meter_provider):
                    set_provider(meter_provider)

            _replace(set_provider, set_meter_provider)
        return self.provider

    def offered_tracers(self) -> TracerProvider:
        """What becomes the global tracer provider. Whoever sets another one has that attached to it."""
        if settings.SDK_DISABLED.get():
            return trace.NoOpTracerProvider()
        if self._tracers is None:
            own = self._tracers = TrackingTracerProvider(self._processor)
            set_provider = trace.set_tracer_provider

            @functools.wraps(set_provider)
            def set_tracer_provider(tracer_provider: TracerProvider) -> None:
                if tracer_provider is own or not own.attach(tracer_provider):
                    set_provider(tracer_provider)
                else:
                    self._listen(tracer_provider)

            _replace(set_provider, set_tracer_provider)
        return self._tracers

    def _listen(self, provider: TracerProvider) -> None:
        """Record the spans of an SDK provider of the user's; once, however often it is set."""
        if any(provider is known for known in self._listening):
            return
        self._listening.append(provider)
        add_span_processor = getattr(provider, "add_span_processor", None)
        if add_span_processor is None:
            _LOG.warning(
                "the global tracer provider %s takes no span processors: spans give no steps and no times",
                type(provider).__name__,
            )
        else:
            add_span_processor(self._processor)

    def want_logs(self, level: str, names: Sequence[str]) -> None:
        """Have log records of that level and higher recorded from now on; `off` ends that."""
        with self.recorder.lock:
            if self._logs is not None or (level != "off" and not settings.SDK_DISABLED.get()):
                self._log_capture().want(level, names)

    def offered_loggers(self) -> LoggerProvider:
        """What becomes the global logger provider. Whoever sets another one has that attached to it."""
        return self._log_capture().offered()

    def _log_capture(self) -> LogCapture:
        if self._logs is None:
            from otel_tracking.logs import LogCapture  # here: it imports the SDK's logs

            self._logs = LogCapture(self.recorder, _replace)
        return self._logs

    # Runs

    def begin(self, request: RunRequest) -> RunSession | None:
        """Begin a run in this process, ending the one before; None if this rank records nothing.

        Raises:
            TrackingError, OSError: The journal can't be opened.
        """
        if self._pid != os.getpid():  # a forked child that becomes a rank of its own
            self._pid, self.session, self._sampler = os.getpid(), None, None
            self._register_exit()
            self.provider.revive()
        self._exit = None  # it was caught
        self.end(self.status())
        with self.recorder.lock:
            self.session = None
            rank = detect()
            self._runs += 1
            if settings.SDK_DISABLED.get():
                self._record_nothing(_DISABLED)
                return None
            if not wants(request, rank):
                self._record_nothing(f"rank {rank.rank} is not recorded")
                return None
            self.recorder.unmute()
            self._prepare_journal(request)
            session = RunSession(self.recorder, request, rank, on_started=self._register_exit)
            session.begin()
            self.session = session
            if request.system_metrics and rank.is_local_main:
                self._sampler = Sampler(self.recorder, request.system_metrics)
                self._sampler.start()
            if self._logs is not None:
                self._logs.resume()
            return session

    def _record_nothing(self, reason: str) -> None:
        self.recorder.mute(reason, quiet=True)
        if self._logs is not None:
            self._logs.pause()

    def _prepare_journal(self, request: RunRequest) -> None:
        recorder = self.recorder
        recorder.fsync, recorder.compress, recorder.keep = request.fsync, request.compress, request.keep

    @property
    def next_ordinal(self) -> int:
        """Which run of this process the next one is, from 1."""
        return self._runs + 1

    def record_pending(self, request: RunRequest) -> None:
        """Record from the first measurement on, before the run has begun."""
        self.recorder.opener = functools.partial(self._open_pending, request)

    def _open_pending(self, request: RunRequest, recorder: Recorder) -> None:
        rank = detect()
        self._prepare_journal(request)
        if wants(request, rank):
            open_pending(recorder, request, rank)
        else:
            recorder.mute(f"rank {rank.rank} is not recorded", quiet=True)

    def end(self, status: RunStatus, timeout: float | None = None) -> Receipt | None:
        """End the run; None if there is none.

        The recorder's lock is not held: what is still recording must not wait for delivery.
        """
        session = self.session
        if session is None or self._pid != os.getpid():
            return None
        if not session.ended:
            try:
                self.provider.before_end()
            except Exception:  # noqa: BLE001 - of the user's SDK readers; the run has to end all the same
                _LOG.exception("the SDK meter provider did not take the last measurements")
            if self._logs is not None:
                self._logs.pause()
            sampler, self._sampler = self._sampler, None
            if sampler is not None:
                sampler.stop(timeout)
        error = self._error() if status is RunStatus.FAILED else None
        if timeout is None:
            return session.end(status, settings.END_TIMEOUT.get(), patient=False, error=error)
        return session.end(status, timeout, error=error)

    # How the process ends

    def status(self) -> RunStatus:
        """How a run that ends now ended, as far as this process can tell."""
        return status_of(self._error())

    def _error(self) -> BaseException | None:
        """The exception that is being handled, or that ends the interpreter."""
        error = sys.exc_info()[1]
        if error is None:
            error = ending_error()
        if error is None and self._exit is not None:
            asked, position = self._exit
            if position == self._position:  # what is recorded since shows that the exit was caught
                error = asked
        return error

    @property
    def _position(self) -> int:
        journal = self.recorder.journal
        return 0 if journal is None else journal.position

    def watch_exit(self) -> None:
        """End the run when the interpreter exits, and notice with what `sys.exit` was called."""
        if self._watched:
            return
        self._watched = True
        self._register_exit()
        leave = sys.exit

        # The exception is gone by the time exit handlers run, so the call is where it can be seen.
        @functools.wraps(leave)
        def sys_exit(status: str | int | None = None, /) -> NoReturn:
            if threading.current_thread() is threading.main_thread():
                self._exit = SystemExit(status), self._position
            leave(status)

        sys.exit = sys_exit

    def _register_exit(self) -> None:
        # Again after each tracker's start: handlers run last in, first out, and the trackers' SDKs
        # have theirs that close the run.
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)

    def _at_exit(self) -> None:
        if self._pid != os.getpid():
            return
        if self.session is None and sys.version_info < (3, 12):  # later ones can't start a run's threads here
            self.provider.sample()
        self.end(self.status())
        journal = self.recorder.journal
        if journal is not None and not journal.closed:  # no run has begun
            if self._logs is not None:
                self._logs.pause()
            self.recorder.close(self.status())
            _LOG.warning("no run has begun: what was recorded is in %s", journal.path)


def _is_set(provider: MeterProvider) -> bool:
    """Whether this is a provider that was set, and not the API's stand-in for one that will be."""
    return not type(provider).__module__.startswith("opentelemetry.metrics.")


def _replace(original: Callable[..., None], wrapper: Callable[..., None]) -> None:
    """Put a wrapper in the place of a public function, also where `from ... import` has taken it."""
    name = original.__name__
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType) and vars(module).get(name) is original:
            setattr(module, name, wrapper)


_process: Process | None = None
_process_lock: Final = threading.Lock()


def process() -> Process:
    """The one of this process, made when it is first asked for."""
    global _process
    with _process_lock:
        if _process is None:
            _process = Process()
        return _process
