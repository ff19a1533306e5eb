"""Log records, of OpenTelemetry and of Python's `logging`, as texts of the run.

Imported only where they are wanted: the SDK's logs take a while to import.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from opentelemetry import _logs
from opentelemetry._logs import Logger, LoggerProvider, NoOpLoggerProvider
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk._logs import LoggerProvider as SdkLoggerProvider
from opentelemetry.sdk._logs import LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import Attributes

from otel_tracking import discovery
from otel_tracking.attaching import Current, StandIn
from otel_tracking.errors import raised_by_handler
from otel_tracking.log_texts import LogFilter, LogTags, step_in, step_of, text_of_api, text_of_python
from otel_tracking.recorder import Recorder
from otel_tracking.steps import ambient

_LOG: Final = logging.getLogger(__name__)
_OUR_THREADS: Final = "otel-tracking-"
_REMEMBERED: Final = 512
_NANOSECONDS: Final = 1e9
_WITHIN: Final = "logged while a log record was being recorded"


class TrackingLogProcessor(LogRecordProcessor):
    """Records log records as texts; add it to any SDK logger provider.

    Left out is what our delivery says: tracker packages log too, and a text that is delivered must not
    make another one.

    Args:
        recorder: Where texts go.
        wanted: Which records; None for none, until `wanted` is set.
    """

    def __init__(self, recorder: Recorder, wanted: LogFilter | None = None) -> None:
        self.wanted = wanted
        self.pid = os.getpid()
        self._recorder = recorder
        self._tags = LogTags()
        self._here = threading.local()
        # Two generations, in place of a lock: a signal handler may log in the middle of anything.
        self._newer: dict[tuple[str, int], None] = {}
        self._older: dict[tuple[str, int], None] = {}

    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        """Record it, unless `logging` has made it, and it is recorded from there."""
        wanted = self.wanted
        if wanted is None or self._elsewhere():
            return
        record = log_record.log_record
        scope = log_record.instrumentation_scope
        name = scope.name if scope is not None else ""
        if not (wanted.wants_severity(record.severity_number) and wanted.wants(name)):
            return
        if record.timestamp is not None:
            key = (name, record.timestamp)
            if key in self._newer or key in self._older:
                return
        self._record(name, lambda: text_of_api(record, name), lambda: step_of(record, now=True))

    def on_python(self, record: logging.LogRecord) -> None:
        """Record what `logging` has made."""
        wanted = self.wanted
        if wanted is None or record.levelno < wanted.level or not wanted.wants(record.name):
            return
        if self._elsewhere():
            return
        if len(self._newer) >= _REMEMBERED:
            self._older, self._newer = self._newer, {}
        # Name and time are what OpenTelemetry's handlers keep of a record, whatever they are.
        self._newer[record.name, int(record.created * _NANOSECONDS)] = None
        self._record(record.name, lambda: text_of_python(record), lambda: _step_of(record))

    def _elsewhere(self) -> bool:
        """Whether this is a forked child, or a thread of delivery's."""
        return os.getpid() != self.pid or threading.current_thread().name.startswith(_OUR_THREADS)

    def _record(self, name: str, text: Callable[[], str], step: Callable[[], int | None]) -> None:
        recorder, here = self._recorder, self._here
        if getattr(here, "busy", False):  # a value that logs when it is turned into text
            recorder.refuse("a log record", _WITHIN)
            return
        here.busy = True
        try:
            try:
                made, at = text(), step()
            except Exception as error:
                if raised_by_handler(error):
                    raise
                recorder.refuse("a log record", f"a log record is no text: {type(error).__name__}")
                return
            try:
                recorder.text(self._tags.tag(name), made, step=at)
            except Exception as error:  # noqa: BLE001 - whose error it is decides `failed`
                recorder.failed(error)
        finally:
            here.busy = False

    def enabled(self, *, severity_number: object = None, **_: Any) -> bool:
        """Whether records of that severity are recorded."""
        wanted = self.wanted
        return wanted is not None and not self._elsewhere() and wanted.wants_severity(severity_number)

    def shutdown(self) -> None:
        """Nothing: the journal belongs to the run, not to the provider."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True: a record is in the journal already."""
        return True


def _step_of(record: logging.LogRecord) -> int | None:
    step = step_in(vars(record))  # where `extra=` puts it
    return ambient() if step is None else step


class LogCapture:
    """What hands log records to the processor: a look at `logging`, and a logger provider.

    A record is seen in `Logger.callHandlers`, before the handlers. A handler of ours at the root logger
    would change the program: with one there, `basicConfig` does nothing, warnings of a program that
    configures nothing do not get to stderr, and `dictConfig` takes it away.

    Args:
        recorder: Where texts go.
        replace: Puts a wrapper in the place of a public function, everywhere.
    """

    def __init__(
        self, recorder: Recorder, replace: Callable[[Callable[..., None], Callable[..., None]], None]
    ) -> None:
        self._processor = TrackingLogProcessor(recorder)
        self._replace = replace
        self._wanted: LogFilter | None = None
        self._seen: Callable[[logging.Logger, logging.LogRecord], None] | None = None
        self._own: TrackingLoggerProvider | None = None
        self._listening: list[LoggerProvider] = []
        self._installed = False

    def want(self, level: str, names: Sequence[str]) -> None:
        """Record log records from now on; `off` ends that."""
        self._wanted = None
        if level != "off":
            # A tracker's package logs on threads of its own too.
            self._wanted = LogFilter(level, names, never=discovery.known())
        self.resume()

    def resume(self) -> None:
        """Record again, in this process, if records are wanted."""
        if self._wanted is None:
            self.pause()
            return
        self._processor.pid = os.getpid()
        self._processor.wanted = self._wanted
        self._install()
        if self._seen is None:
            self._call_handlers = call_handlers = logging.Logger.callHandlers
            processor = self._processor

            def seen(logger: logging.Logger, record: logging.LogRecord) -> None:
                processor.on_python(record)
                call_handlers(logger, record)

            self._seen = seen
            logging.Logger.callHandlers = seen  # type: ignore[assignment, method-assign]

    def pause(self) -> None:
        """Record no log records any more."""
        self._processor.wanted = None
        if self._seen is not None and logging.Logger.callHandlers is self._seen:
            logging.Logger.callHandlers = self._call_handlers  # type: ignore[method-assign]
            self._seen = None  # else somebody has wrapped it, and it stays, idle

    def _install(self) -> None:
        if self._installed:
            return
        self._installed = True  # first: OTEL_PYTHON_LOGGER_PROVIDER may name ours, which leads here again
        set_logger_provider, current = _logs.set_logger_provider, _logs.get_logger_provider()
        if isinstance(current, NoOpLoggerProvider):
            return
        if type(current).__module__.startswith("opentelemetry._logs."):  # the API's, until one is set
            set_logger_provider(self.offered())
        elif current is not self._own:
            self._listen(current)

    def offered(self) -> LoggerProvider:
        """What becomes the global logger provider. Whoever sets another one has that attached to it."""
        if self._own is None:
            own = self._own = TrackingLoggerProvider(self._processor)
            set_provider = _logs.set_logger_provider

            def set_logger_provider(logger_provider: LoggerProvider) -> None:
                if logger_provider is own or not own.attach(logger_provider):
                    set_provider(logger_provider)
                else:
                    self._listen(logger_provider)

            self._replace(set_provider, set_logger_provider)
        return self._own

    def _listen(self, provider: LoggerProvider) -> None:
        """Record what an SDK provider of the user's is given; once, however often it is set."""
        if any(provider is known for known in self._listening):
            return
        self._listening.append(provider)
        add_log_record_processor = getattr(provider, "add_log_record_processor", None)
        if add_log_record_processor is None:
            _LOG.warning(
                "the global logger provider %s takes no processors: of its log records none is recorded",
                type(provider).__name__,
            )
        else:
            add_log_record_processor(self._processor)


class TrackingLoggerProvider(StandIn[LoggerProvider], LoggerProvider):
    """The global logger provider until the user sets one, and the way to it from then on.

    Loggers made before go over to the user's provider too.
    """

    def __init__(self, processor: TrackingLogProcessor) -> None:
        own = SdkLoggerProvider(
            resource=Resource.get_empty(), shutdown_on_exit=False, meter_provider=NoOpMeterProvider()
        )
        own.add_log_record_processor(processor)
        super().__init__(own)

    def get_logger(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> Logger:
        """A logger that asks for its provider's at each record."""
        about = version, schema_url, attributes
        return _Logger(Current(self, lambda of: of.get_logger(name, *about)), name, *about)


class _Logger(Logger):
    def __init__(self, current: Current[LoggerProvider, Logger], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._current = current

    def emit(self, *args: Any, **kwargs: Any) -> None:
        self._current.get().emit(*args, **kwargs)

    def enabled(self, **kwargs: Any) -> bool:
        # Loggers of OpenTelemetry 1.43 do not say.
        enabled: Callable[..., bool] | None = getattr(self._current.get(), "enabled", None)
        return enabled is None or enabled(**kwargs)
