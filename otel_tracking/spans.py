"""Spans: the step they give to what is recorded inside, and how long they took.

A span with the attribute `training.step` gives its step to measurements inside it and inside its
children. Every finished span is in the journal as it is; its duration is the series `time/<name>`, in
seconds; and a span that ended in an error adds one to the counter `errors/<name>`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from types import TracebackType
from typing import Any, Final, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace import TracerProvider as SdkTracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.util.types import Attributes

from otel_tracking.attaching import Current, StandIn
from otel_tracking.errors import raised_here
from otel_tracking.journal.format import STEP_MAX, STEP_MIN, pack_point
from otel_tracking.journal.spans import flags_of, rest_bytes, span_bytes
from otel_tracking.open_spans import enter_span, leave_span
from otel_tracking.recorder import Recorder
from otel_tracking.records import Kind
from otel_tracking.registry import SeriesHandle, SeriesRegistry
from otel_tracking.span_records import STEP_ATTRIBUTE, SpanEvent, SpanLink
from otel_tracking.steps import around_spans, as_step, span_step

NANOSECONDS: Final = 1e9
_MOST: Final = 4096
"""Names of spans that are remembered: a program may put numbers into them."""

_plain = functools.partial(flags_of, "internal", "unset")  # as most spans are
_OWN_STEP: Final = _plain(step=True, step_is_attribute=True)
_STEP: Final = _plain(step=True, step_is_attribute=False)
_NO_STEP: Final = _plain(step=False, step_is_attribute=False)


class _Known(NamedTuple):
    """What all spans of a name have."""

    series: SeriesHandle
    scope: InstrumentationScope | None
    rest: bytes
    """Of those of which there is nothing more to say."""


class TrackingSpanProcessor(SpanProcessor):
    """Records finished spans; add it to any SDK tracer provider."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._known: dict[str, _Known] = {}

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Remember it, and its parent: that may have the step, or get it later."""
        try:
            enter_span(span, span.parent, parent_context)
        except Exception as error:  # noqa: BLE001 - whose error it is decides `failed`
            self._recorder.failed(error)

    def on_end(self, span: ReadableSpan) -> None:
        """Record the span, its duration, and the error if it ended in one."""
        recorder = self._recorder
        try:
            start, end, context = span.start_time, span.end_time, span.context
            if end is None or start is None or context is None:
                return
            # Also where nothing is recorded, as `on_start` remembers it there too.
            itself = leave_span(context)
            registry = recorder.registry or recorder.opened()
            if registry is None:
                return
            scope, status, parent = span.instrumentation_scope, span.status, span.parent
            known = self._known.get(span.name)
            if known is None or known[1] is not scope or known[0].journal is not registry.journal:
                known = self._learn(span.name, scope, registry)
            series, _, rest = known
            attributes = span.attributes or {}
            own = attributes.get(STEP_ATTRIBUTE)
            if own is not None and not (type(own) is int and STEP_MIN <= own <= STEP_MAX):
                own = as_step(own)
            step = own
            if step is None:
                # As for a measurement at its end. Which span is the current one here says nothing: this one
                # may end anywhere.
                step = around_spans()
                if step is None and itself is not None:
                    step = span_step(itself)
            if (
                len(attributes) > (own is not None)
                or status.description
                # Each costs as much as all the rest here, and hardly any span has one. Their names are not
                # public: where they are missing the public ones are asked.
                or getattr(span, "_events", True)
                or getattr(span, "_links", True)
            ):
                rest = _rest_of(span, attributes, own is not None)
            code = status.status_code
            if code is StatusCode.UNSET and span.kind is SpanKind.INTERNAL:
                flags = _OWN_STEP if own is not None else _NO_STEP if step is None else _STEP
            else:
                kind, has_step = span.kind.name.lower(), step is not None
                flags = flags_of(kind, code.name.lower(), step=has_step, step_is_attribute=own is not None)
            record = span_bytes(
                rest,
                context.trace_id,
                context.span_id,
                parent.span_id if parent is not None else 0,
                start,
                end,
                get_ident(),
                flags,
                step or 0,
            )
            seconds = (end - start) / NANOSECONDS
            if step is None:
                recorder.beside(record, series, seconds, step, end)
            else:
                try:
                    series.journal.write(record + pack_point(series.word, step, end, seconds))
                except ValueError as error:  # the segment is full, or the run has ended
                    if not raised_here(error):
                        raise
                    recorder.beside(record, series, seconds, step, end)
            if code is StatusCode.ERROR:
                errors = registry.series(name=f"errors/{span.name}", kind=Kind.COUNTER, unit="{span}")
                recorder.point(errors, 1, step=step, time_ns=end)
        except Exception as error:  # noqa: BLE001 - whose error it is decides `failed`
            recorder.failed(error)

    def _learn(self, name: str, scope: InstrumentationScope | None, registry: SeriesRegistry) -> _Known:
        if len(self._known) >= _MOST:
            self._known.clear()
        series = registry.series(name=f"time/{name}", kind=Kind.GAUGE, unit="s")
        known = self._known[name] = _Known(series, scope, rest_bytes(name, *_about(scope)))
        return known

    def shutdown(self) -> None:
        """Nothing: the journal belongs to the run, not to the provider."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """True: a finished span is in the journal already."""
        return True


def _about(scope: InstrumentationScope | None) -> tuple[str, str]:
    return (scope.name, scope.version or "") if scope else ("", "")


def _rest_of(span: ReadableSpan, attributes: Mapping[str, Any], has_step: bool) -> bytes:
    return rest_bytes(
        span.name,
        *_about(span.instrumentation_scope),
        description=span.status.description or "",
        attributes={k: v for k, v in attributes.items() if not (has_step and k == STEP_ATTRIBUTE)},
        events=[SpanEvent(e.name, e.timestamp, e.attributes or {}) for e in span.events],
        links=[SpanLink(at.context.trace_id, at.context.span_id, at.attributes or {}) for at in span.links],
    )


class TrackingTracerProvider(StandIn[TracerProvider], TracerProvider):
    """The global tracer provider until the user sets one, and the way to it from then on.

    Tracers made before go over to the user's provider too.
    """

    def __init__(self, processor: TrackingSpanProcessor) -> None:
        # OTEL_TRACES_SAMPLER thins out what is exported; nothing is, from here.
        own = SdkTracerProvider(sampler=ALWAYS_ON)
        own.add_span_processor(processor)
        super().__init__(own)

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> Tracer:
        """A tracer that asks for its provider's at each span."""
        about = instrumenting_module_name, instrumenting_library_version, schema_url, attributes
        return _Tracer(Current(self, lambda of: of.get_tracer(*about)))


class _Tracer(Tracer):
    def __init__(self, current: Current[TracerProvider, Tracer]) -> None:
        self._current = current

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._current.get().start_span(*args, **kwargs)

    def start_as_current_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Any:
        on_error = record_exception, set_status_on_exception
        return _CurrentSpan(
            self._current, (name, context, kind, attributes, links, start_time, *on_error, end_on_exit)
        )


class _CurrentSpan:
    """A span for a `with` block or, as a decorator, for each call of a function, async ones too.

    Which provider makes it is decided when it is entered: decorators run at import, before the
    user's provider is set. It does what the SDK's own does; that runs two generators, which cost more than
    everything that we do at a span.
    """

    __slots__ = ("_arguments", "_scope", "_span", "_token", "_tracer")

    def __init__(self, tracer: Current[TracerProvider, Tracer], arguments: tuple[Any, ...]) -> None:
        self._tracer = tracer
        self._arguments = arguments

    def __enter__(self) -> trace.Span:
        tracer = self._tracer.get()
        self._scope: AbstractContextManager[trace.Span] | None = None
        if tracer.__class__ is not SdkTracer:  # its spans may need more than this
            self._scope = tracer.start_as_current_span(*self._arguments)
            return self._scope.__enter__()
        span = self._span = tracer.start_span(*self._arguments[:-1])
        self._token = attach(trace.set_span_in_context(span))
        return span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        if self._scope is not None:
            return self._scope.__exit__(kind, error, traceback)
        span = self._span
        *_, record_exception, set_status, end = self._arguments
        try:
            detach(self._token)
            if isinstance(error, Exception) and span.is_recording():
                if record_exception:
                    span.record_exception(error)
                if set_status:
                    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        finally:
            if end:
                span.end()
        return None

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def within_span_later(*args: Any, **kwargs: Any) -> Any:
                with _CurrentSpan(self._tracer, self._arguments):
                    return await function(*args, **kwargs)

            return within_span_later

        @functools.wraps(function)
        def within_span(*args: Any, **kwargs: Any) -> Any:
            with _CurrentSpan(self._tracer, self._arguments):
                return function(*args, **kwargs)

        return within_span
