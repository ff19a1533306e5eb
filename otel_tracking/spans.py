"""Spans: the step they give to what is recorded inside, and how long they took.

A span with the attribute `training.step` gives its step to measurements inside it and inside its
children. The duration of every finished span is the series `time/<name>`, in seconds; a span that
ended in an error adds one to the counter `errors/<name>`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import Attributes

from otel_tracking.recorder import Recorder
from otel_tracking.records import Kind
from otel_tracking.steps import STEP_ATTRIBUTE, ambient, as_step, ended_span_step, enter_span

NANOSECONDS = 1e9


class TrackingSpanProcessor(SpanProcessor):
    """Records finished spans; add it to any SDK tracer provider."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remember the parent: it may have the step, or get it later."""
        try:
            enter_span(span, trace.get_current_span(parent_context))
        except Exception as error:  # noqa: BLE001 - whose error it is decides `failed`
            self._recorder.failed(error)

    def on_end(self, span: ReadableSpan) -> None:
        """Record the duration, and the error if it ended in one."""
        recorder = self._recorder
        try:
            registry = recorder.opened()
            if registry is None or span.end_time is None or span.start_time is None:
                return
            step = _step_of(span)
            seconds = (span.end_time - span.start_time) / NANOSECONDS
            series = registry.series(name=f"time/{span.name}", kind=Kind.GAUGE, unit="s")
            recorder.point(series, seconds, step=step, time_ns=span.end_time)
            if span.status.status_code is StatusCode.ERROR:
                errors = registry.series(name=f"errors/{span.name}", kind=Kind.COUNTER, unit="{span}")
                recorder.point(errors, 1, step=step, time_ns=span.end_time)
        except Exception as error:  # noqa: BLE001 - whose error it is decides `failed`
            recorder.failed(error)

    def shutdown(self) -> None:
        """Nothing: the journal belongs to the run, not to the provider."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True: a finished span is in the journal already."""
        return True


def _step_of(span: ReadableSpan) -> int | None:
    """The step of an ended span: its own, else as for a measurement at its end."""
    step = as_step((span.attributes or {}).get(STEP_ATTRIBUTE))
    if step is None:
        # Which span is the current one here says nothing: this one may end anywhere.
        step = ambient(trace.set_span_in_context(trace.INVALID_SPAN))
    return ended_span_step(span.get_span_context(), span.attributes) if step is None else step


class TrackingTracerProvider(TracerProvider):
    """The global tracer provider until the user sets one, and the way to it from then on.

    Tracers made before go over to the user's provider too.
    """

    def __init__(self, processor: TrackingSpanProcessor) -> None:
        # OTEL_TRACES_SAMPLER thins out what is exported; nothing is, from here.
        own = SdkTracerProvider(sampler=ALWAYS_ON)
        own.add_span_processor(processor)
        self.provider: TracerProvider = own
        self._attached = False

    def attach(self, provider: TracerProvider) -> bool:
        """Let an SDK provider of the user's make all spans from now on.

        Returns:
            False, and nothing is done, if another one does already.
        """
        if self._attached:
            return self.provider is provider
        self._attached = True
        self.provider = provider
        return True

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> Tracer:
        """A tracer that asks for its provider's at each span."""
        name, version = instrumenting_module_name, instrumenting_library_version
        return _Tracer(self, {"schema_url": schema_url, "attributes": attributes}, name, version)

    def __getattr__(self, name: str) -> Any:
        """What this provider does not have is the attached one's (`add_span_processor`, `shutdown`)."""
        return getattr(self.__dict__["provider"], name)


class _Tracer(Tracer):
    def __init__(
        self, owner: TrackingTracerProvider, options: Mapping[str, Any], name: str, version: str | None
    ) -> None:
        self._owner = owner
        self._arguments = (name, version)
        self._options = options
        self._provider: TracerProvider | None = None
        self._tracer: Tracer = trace.NoOpTracer()

    def _current(self) -> Tracer:
        provider = self._owner.provider
        if provider is not self._provider:
            self._tracer = provider.get_tracer(*self._arguments, **self._options)
            self._provider = provider
        return self._tracer

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._current().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return _CurrentSpan(lambda: self._current().start_as_current_span(*args, **kwargs))


class _CurrentSpan:
    """A span for a `with` block or, as a decorator, for each call of a function, async ones too.

    Which provider makes it is decided when it is entered: decorators run at import, before the
    user's provider is set.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[trace.Span]]) -> None:
        self._begin = begin

    def __enter__(self) -> trace.Span:
        self._scope = self._begin()
        return self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._scope.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def within_span_later(*args: Any, **kwargs: Any) -> Any:
                with self._begin():
                    return await function(*args, **kwargs)

            return within_span_later

        @functools.wraps(function)
        def within_span(*args: Any, **kwargs: Any) -> Any:
            with self._begin():
                return function(*args, **kwargs)

        return within_span
