"""Which step a measurement belongs to, when the call itself does not say.

The first that exists: a `step=` argument or step attribute of the call; the innermost `with step(n)`;
`set_step(n)`; the baggage entry `training.step`; the nearest enclosing span with a `training.step`
attribute; else a count a series, from 0.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterator
from typing import Any, Final

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, create_key, detach, get_current, set_value
from opentelemetry.trace import Span, SpanContext

from otel_tracking.errors import raised_by_handler
from otel_tracking.journal.format import STEP_MAX, STEP_MIN
from otel_tracking.open_spans import SPAN_KEY, open_spans, parent_of
from otel_tracking.span_records import STEP_ATTRIBUTE

STEP_ALIASES: Final = ("step", "global_step")

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_SCOPE: Final = create_key("otel-tracking-step")
_process_step: int | None = None


def as_step(value: object) -> int | None:
    """The value as a step: any integer that fits 64 bits, bool not being one; else None."""
    if isinstance(value, bool):
        return None
    try:
        step = operator.index(value)  # type: ignore[arg-type]  # what has no __index__ raises, as wanted
    except TypeError as error:
        if raised_by_handler(error):
            raise
        return None
    return step if STEP_MIN <= step <= STEP_MAX else None


def set_step(step: int | None) -> None:
    """Set the step of everything this process records from now on, in every thread.

    OpenTelemetry's context does not reach threads that are already running; this does. `None` unsets.

    Raises:
        TypeError: `step` is no integer of 64 bits.
    """
    global _process_step
    _process_step = None if step is None else _checked(step)


@contextlib.contextmanager
def step(step: int) -> Iterator[None]:
    """The step of what is recorded inside the `with` block; it beats `set_step`.

    Raises:
        TypeError: `step` is no integer of 64 bits.
    """
    token = attach(set_value(_SCOPE, _checked(step)))
    try:
        yield
    finally:
        detach(token)


def _checked(value: object) -> int:
    number = as_step(value)
    if number is None:
        raise TypeError(f"a step is an integer of 64 bits, not {value!r}")
    return number


def ambient(context: Context | None = None) -> int | None:
    """The step that surrounds this call; None if nothing says one."""
    current = get_current() if context is None else context
    if not current:
        return _process_step
    scope = current.get(_SCOPE)
    if scope is not None:
        return scope  # type: ignore[return-value]  # only `step` sets it, to an int
    return _process_step if _process_step is not None else _carried(current)


def carried(context: Context) -> int | None:
    """The step that a context carries, whatever this process's is now; None if it says none."""
    scope = context.get(_SCOPE)
    return scope if scope is not None else _carried(context)  # type: ignore[return-value]  # as in `ambient`


def _carried(context: Context) -> int | None:
    entry = baggage.get_baggage(STEP_ATTRIBUTE, context)
    if entry is not None and _INTEGER.fullmatch(str(entry)):
        number = as_step(int(str(entry)))
        if number is not None:
            return number
    span = trace.get_current_span(context)
    return None if span is trace.INVALID_SPAN else span_step(span)


def around_spans() -> int | None:
    """As `ambient`, whatever span is the current one."""
    current = get_current()
    if _process_step is None and (not current or (len(current) == 1 and SPAN_KEY in current)):
        return None  # there is a span, and nothing else
    return ambient(trace.set_span_in_context(trace.INVALID_SPAN))


def open_span_step(context: SpanContext) -> int | None:
    """The step of a span that has not ended."""
    span = open_spans.get(context.span_id)
    return None if span is None else span_step(span)


def span_step(span: Span) -> int | None:
    """The step of the nearest span, from this one upward, whose `training.step` is an integer."""
    at: Span | None = span
    while at is not None:
        attributes: Any = getattr(at, "attributes", None)  # the SDK's spans have them, the API's don't
        number = as_step(attributes.get(STEP_ATTRIBUTE)) if attributes else None
        if number is not None:
            return number
        at = parent_of(at)
    return None
