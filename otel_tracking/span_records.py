"""Finished spans, as the journal keeps them and trackers get them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

STEP_ATTRIBUTE: Final = "training.step"
"""Of a span, a measurement or an exported point: its step."""


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened in a span, an exception for one."""

    name: str
    time: int
    """Nanoseconds since the epoch."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanLink:
    """Another span that a span has to do with."""

    trace_id: int
    span_id: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EnclosingSpan:
    """The span in which a point was recorded."""

    trace_id: int
    span_id: int
    sampled: bool = True
    """Whether exporters get the span, too."""

    @property
    def ids(self) -> tuple[str, str]:
        """The trace's id and its own in hex, as W3C's trace context and OTLP's JSON have them."""
        return f"{self.trace_id:032x}", f"{self.span_id:016x}"


@dataclass(frozen=True, slots=True)
class RecordedSpan:
    """A finished span. Ids are those of OpenTelemetry: of 128 bits the trace's, of 64 the spans'."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int
    """0 of a root."""
    start: int
    """Nanoseconds since the epoch."""
    end: int
    """Likewise."""
    step: int | None = None
    """Of the span, or of what surrounds it."""
    kind: str = "internal"
    """`internal`, `server`, `client`, `producer` or `consumer`."""
    status: str = "unset"
    """`unset`, `ok` or `error`."""
    description: str = ""
    """Of the status."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()
    scope: str = ""
    """The tracer's name."""
    scope_version: str = ""
    thread: int = 0
    """The thread that ended it, by a number that is its own while it lives."""
    position: int = 0
    """Of its record in the journal."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Finished spans for a tracker, in the order in which they ended."""

    spans: Sequence[RecordedSpan]
    position: int
    """What comes before all of them: a tracker's cursor does not move by spans."""

    def __len__(self) -> int:
        return len(self.spans)
