"""The spans that are open: whose child each is, and the number of each in which points are recorded."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanContext

from otel_tracking.journal.format import SPAN_NUMBERS
from otel_tracking.journal.spans import number_bytes
from otel_tracking.journal.writer import JournalWriter, Outcome
from otel_tracking.span_records import EnclosingSpan

# Attributes that spans get from us: a mapping with weak keys costs as much as all the rest.
_PARENT: Final = "_otel_tracking_parent"
_NUMBER: Final = "_otel_tracking_number"
_MOST: Final = 20_000
SPAN_KEY: Final = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, Context())))
"""Under which a context has its span. The key's name is not public, and to ask for the span costs more."""

open_spans: Final[dict[int, Span]] = {}
"""By their ids. Where it is empty, as in most programs, nothing need be asked about spans."""
_numbers: Final = itertools.count(1)


def enter_span(span: Span, above: SpanContext | None, context: Context | None) -> None:
    """A span has begun.

    Args:
        span: The span.
        above: Its parent's, if it has one.
        context: In which it was begun; None is the current one.
    """
    if above is not None:
        parent = open_spans.get(above.span_id)
        if parent is None:
            parent = trace.get_current_span(context)
        vars(span)[_PARENT] = parent
    open_spans[span.get_span_context().span_id] = span
    if len(open_spans) > _MOST:  # some never end
        with contextlib.suppress(KeyError, StopIteration, RuntimeError):  # another thread does this too
            del open_spans[next(iter(open_spans))]


def leave_span(context: SpanContext) -> Span | None:
    """A span has ended: the span itself, of which the SDK hands out a copy, if it was seen to begin."""
    return open_spans.pop(context.span_id, None)


def parent_of(span: Span) -> Span | None:
    """The span above one, also if that has ended."""
    parent: Span | None = getattr(span, _PARENT, None)
    return parent


def number_in(journal: JournalWriter, context: Context | None) -> int:
    """The number that points have which are recorded now, of the span in which that happens; 0 if in none.

    A span gets one for each segment, before the first point that was recorded in it there: segments are
    removed, and damaged, apart from each other.

    Args:
        journal: Where the points go.
        context: Of the measurement; None is the current one.
    """
    span: Any = (get_current() if context is None else context).get(SPAN_KEY)
    if span is None or not span.is_recording():
        return 0
    known: tuple[JournalWriter, int, int] | None = getattr(span, _NUMBER, None)
    if known is not None and known[1] == journal.segment and known[0] is journal:
        return known[2]
    of = span.get_span_context()
    number = next(_numbers) % SPAN_NUMBERS or next(_numbers) % SPAN_NUMBERS
    record = number_bytes(number, EnclosingSpan(of.trace_id, of.span_id, of.trace_flags.sampled))
    if journal.append(record) not in (Outcome.STORED, Outcome.HELD):
        return 0
    with contextlib.suppress(AttributeError):  # of a class that has no place for it
        setattr(span, _NUMBER, (journal, journal.segment, number))
    return number
