"""The records of spans, both ways: to bytes and back. `docs/journal.md` is the specification.

Of a finished span, what every one has comes first, in a fixed form; the rest is JSON, often the same for all
spans of a name. One that points were recorded in has a number, too, which stands on these points.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from otel_tracking.journal.format import RECORD, SLOT, RecordType, crc32c, pack_head, record_bytes
from otel_tracking.span_records import STEP_ATTRIBUTE, EnclosingSpan, RecordedSpan, SpanEvent, SpanLink

_HEAD: Final = struct.Struct("<16s8s8sqQI")  # trace, span, parent, start, thread, flags
_SIZE: Final = _HEAD.size
_pack = _HEAD.pack
_ZEROS: Final = bytes(SLOT)
_WORD: Final = RECORD | RecordType.SPAN << 4

_NUMBER: Final = struct.Struct("<16s8sII")  # trace, span, number, flags
_SAMPLED: Final = 1

KINDS: Final = ("internal", "server", "client", "producer", "consumer")
STATUSES: Final = ("unset", "ok", "error")
_KIND: Final = 0xF
_STATUS_SHIFT: Final = 4
_HAS_STEP: Final = 1 << 8
_STEP_IS_ATTRIBUTE: Final = 1 << 9

_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), default=str, skipkeys=True).encode


def rest_bytes(
    name: str,
    scope: str,
    scope_version: str,
    *,
    description: str = "",
    attributes: Mapping[str, Any] | None = None,
    events: Sequence[SpanEvent] = (),
    links: Sequence[SpanLink] = (),
) -> bytes:
    """The JSON part of a span's record. What has no JSON form becomes a text."""
    content: dict[str, Any] = {"name": name}
    if scope:
        content["scope"] = scope
    if scope_version:
        content["scope_version"] = scope_version
    if description:
        content["description"] = description
    if attributes:
        content["attributes"] = dict(attributes)
    if events:
        content["events"] = [[event.name, event.time, dict(event.attributes)] for event in events]
    if links:
        content["links"] = [
            [f"{link.trace_id:032x}", f"{link.span_id:016x}", dict(link.attributes)] for link in links
        ]
    return _encode(content).encode("ascii")


def flags_of(kind: str, status: str, *, step: bool, step_is_attribute: bool) -> int:
    """The flags of a span's record.

    Args:
        kind, status: Of the span.
        step: Whether its step is known.
        step_is_attribute: Whether it is the attribute `training.step`, which the JSON part leaves out then.
    """
    flags = KINDS.index(kind) | STATUSES.index(status) << _STATUS_SHIFT
    return flags | _HAS_STEP * step | _STEP_IS_ATTRIBUTE * step_is_attribute


def span_bytes(
    rest: bytes,
    trace_id: int,
    span_id: int,
    parent_id: int,
    start: int,
    end: int,
    thread: int,
    flags: int,
    step: int,
) -> bytes:
    """The record of a span.

    Args:
        rest: From `rest_bytes`.
        trace_id, span_id, parent_id: As in `RecordedSpan`.
        start, end: Nanoseconds since the epoch.
        thread: As in `RecordedSpan`.
        flags: From `flags_of`.
        step: The span's; 0 if it is not known.
    """
    payload = (
        _pack(trace_id.to_bytes(16), span_id.to_bytes(8), parent_id.to_bytes(8), start, thread, flags) + rest
    )
    size = len(payload)
    padded = payload + _ZEROS[: -size % SLOT]
    return pack_head(_WORD | size << 32, step, end or 1, crc32c(padded)) + padded


def span_of(payload: bytes, step: int, end: int, position: int) -> RecordedSpan:
    """The span that a record's payload, step and time tell of."""
    trace_id, span_id, parent_id, start, thread, flags = _HEAD.unpack_from(payload)
    rest = json.loads(payload[_SIZE:])
    attributes = rest.get("attributes", {})
    if flags & _STEP_IS_ATTRIBUTE:
        attributes = {STEP_ATTRIBUTE: step, **attributes}
    return RecordedSpan(
        name=rest["name"],
        trace_id=int.from_bytes(trace_id),
        span_id=int.from_bytes(span_id),
        parent_id=int.from_bytes(parent_id),
        start=start,
        end=end,
        step=step if flags & _HAS_STEP else None,
        kind=KINDS[flags & _KIND],
        status=STATUSES[flags >> _STATUS_SHIFT & _KIND],
        description=rest.get("description", ""),
        attributes=attributes,
        events=tuple(SpanEvent(*event) for event in rest.get("events", ())),
        links=tuple(SpanLink(int(t, 16), int(s, 16), about) for t, s, about in rest.get("links", ())),
        scope=rest.get("scope", ""),
        scope_version=rest.get("scope_version", ""),
        thread=thread,
        position=position,
    )


def number_bytes(number: int, span: EnclosingSpan) -> bytes:
    """The record that gives a span its number, before the first point that was recorded in it.

    Args:
        number: Below `SPAN_NUMBERS`, and not 0.
        span: The span.
    """
    ids = span.trace_id.to_bytes(16), span.span_id.to_bytes(8)
    return record_bytes(RecordType.SPAN_NUMBER, _NUMBER.pack(*ids, number, _SAMPLED * span.sampled))


def number_of(payload: bytes) -> tuple[int, EnclosingSpan]:
    """What `number_bytes` made the payload of."""
    trace_id, span_id, number, flags = _NUMBER.unpack(payload)
    span = EnclosingSpan(int.from_bytes(trace_id), int.from_bytes(span_id), bool(flags & _SAMPLED))
    return number, span
