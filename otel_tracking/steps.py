"""Which step a measurement belongs to, when the call itself does not say.

The first that exists: a `step=` argument or step attribute of the call; the innermost `with step(n)`;
`set_step(n)`; the baggage entry `training.step`; the nearest enclosing span with a `training.step`
attribute; else a count a series, from 0.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, create_key, detach, get_current, set_value
from opentelemetry.trace import Span, SpanContext

from otel_tracking.errors import raised_by_handler
from otel_tracking.journal.format import STEP_MAX, STEP_MIN

STEP_ATTRIBUTE: Final = "training.step"
STEP_ALIASES: Final = ("step", "global_step")

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}")
_SCOPE: Final = create_key("otel-tracking-step")
_process_step: int | None = None
_parents: Final[WeakKeyDictionary[Span, Span]] = WeakKeyDictionary()
_started: Final[WeakValueDictionary[tuple[int, int], Span]] = WeakValueDictionary()


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
    if _process_step is not None:
        return _process_step
    carried = baggage.get_baggage(STEP_ATTRIBUTE, current)
    if carried is not None and _INTEGER.fullmatch(str(carried)):
        number = as_step(int(str(carried)))
        if number is not None:
            return number
    span = trace.get_current_span(current)
    return None if span is trace.INVALID_SPAN else span_step(span)


def enter_span(span: Span, parent: Span) -> None:
    """Remember whose child a span is, so that it has its parent's step."""
    if parent is not trace.INVALID_SPAN:
        _parents[span] = parent
        _started[_key(span.get_span_context())] = span


def ended_span_step(context: SpanContext | None, attributes: Mapping[str, Any] | None) -> int | None:
    """The step of a span of which there is only the copy that the SDK hands out at its end."""
    span = None if context is None else _started.get(_key(context))
    return as_step((attributes or {}).get(STEP_ATTRIBUTE)) if span is None else span_step(span)


def _key(context: SpanContext) -> tuple[int, int]:
    return context.trace_id, context.span_id


def span_step(span: Span) -> int | None:
    """The step of the nearest span, from this one upward, whose `training.step` is an integer."""
    at: Span | None = span
    while at is not None:
        attributes: Any = getattr(at, "attributes", None)  # the SDK's spans have them, the API's don't
        number = as_step(attributes.get(STEP_ATTRIBUTE)) if attributes else None
        if number is not None:
            return number
        at = _parents.get(at)
    return None
