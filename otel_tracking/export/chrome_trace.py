"""Chrome's trace event format, as JSON, which Perfetto and `chrome://tracing` open.

A rank is a process, a thread a thread. Spans that overlap without one lying in the other, as those of
asynchronous code do, are on further lines of their thread. Points are counters, a track a series.

Times count from the first of all, `baseTimeNanoseconds`, as in PyTorch's traces: they are doubles, in
microseconds, and of a time since the epoch such a double has steps of 250 ns. Perfetto drops a span that
then no longer lies in the one around it. Of 52 days, it gets every nanosecond.

Sources: "Trace Event Format", the format that Chromium documents; Perfetto's `util/json_parser.h` for what
it makes of numbers and texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

from otel_tracking.config import without_surrogates
from otel_tracking.export.blocks import blocks
from otel_tracking.journal.stream import Points
from otel_tracking.reading import journals, read_items, spans_of
from otel_tracking.span_records import STEP_ATTRIBUTE, RecordedSpan, SpanEvent

_MICROSECOND: Final = 1000
_LINES: Final = 1000
"""Of one thread, that are looked at for a span's place. The number of its first is a multiple of this."""
# Perfetto shows escapes as they are; newer ones take those of half a character for an error.
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def write_chrome_trace(run: Path, run_id: str, file: IO[str]) -> None:
    """Write a run's spans, and its points as counters.

    Args:
        run: As for `read_run`.
        run_id: What processes are called by.
        file: Text.

    Raises:
        ConfigurationError: There is no journal.
        UnsupportedJournal: A journal is of another version.
    """
    begin = min(_times(run), default=0)
    file.write(f'{{"displayTimeUnit":"ms","baseTimeNanoseconds":{begin},"traceEvents":[\n')
    separator = ""
    for event in _events(run, run_id, begin):
        file.write(f"{separator}{_ENCODER.encode(event)}")
        separator = ",\n"
    file.write("\n]}\n")


def _times(run: Path) -> Iterator[int]:
    """The first of all is among them."""
    for _, journal in journals(run):
        yield from (span.start for span in spans_of(journal))
        for item, _ in read_items(journal):
            if isinstance(item, Points) and len(item):
                yield int(item.times.min())


def _events(run: Path, run_id: str, begin: int) -> Iterator[dict[str, Any]]:
    for rank, journal in journals(run):
        name = f"{run_id} rank {rank}"
        yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}}
        yield from map(without_surrogates, _span_events(rank, list(spans_of(journal)), begin))
    yield from _counters(run, begin)


def _span_events(rank: int, spans: Sequence[RecordedSpan], begin: int) -> Iterator[dict[str, Any]]:
    by_thread: dict[int, list[RecordedSpan]] = {}
    for span in spans:
        by_thread.setdefault(span.thread, []).append(span)
    first = _LINES
    for number, of_thread in enumerate(by_thread.values(), start=1):
        lines: list[list[int]] = []
        # What began first is outside; of those that began together, what ended last.
        for span in sorted(of_thread, key=lambda each: (each.start, -each.end)):
            tid = first + _line(lines, span)
            yield _complete(rank, tid, span, begin)
            yield from (_instant(rank, tid, event, begin) for event in span.events)
        for line in range(len(lines)):
            name = f"thread {number}" + (f" ({line + 1})" if line else "")
            yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": first + line, "args": {"name": name}}
        first += _LINES * (1 + len(lines) // _LINES)


def _line(lines: list[list[int]], span: RecordedSpan) -> int:
    """The first line where a span lies within what is open there, or after it; a line is the ends of that."""
    for number, ends in enumerate(islice(lines, _LINES)):
        while ends and ends[-1] <= span.start:
            ends.pop()
        if not ends or span.end <= ends[-1]:
            ends.append(span.end)
            return number
    lines.append([span.end])
    return len(lines) - 1


def _complete(rank: int, tid: int, span: RecordedSpan, begin: int) -> dict[str, Any]:
    about: dict[str, Any] = {
        "trace_id": f"{span.trace_id:032x}",
        "span_id": f"{span.span_id:016x}",
        "status": span.status,
    }
    if span.parent_id:
        about["parent_id"] = f"{span.parent_id:016x}"
    if span.description:
        about["status.description"] = span.description
    ours = set(about)
    for key, value in span.attributes.items():
        about[f"attributes.{key}" if key in ours else key] = _plain(value)
    if span.step is not None:
        about.setdefault(STEP_ATTRIBUTE, span.step)
    event = {
        "ph": "X",
        "name": span.name or "span",
        "cat": ",".join(filter(None, (span.scope, span.kind, "error" if span.status == "error" else ""))),
        "pid": rank,
        "tid": tid,
        "ts": (span.start - begin) / _MICROSECOND,
        "dur": max(0, span.end - span.start) / _MICROSECOND,
        "args": about,
    }
    return event | ({"cname": "terrible"} if span.status == "error" else {})


def _instant(rank: int, tid: int, event: SpanEvent, begin: int) -> dict[str, Any]:
    args = {key: _plain(value) for key, value in event.attributes.items()}
    if event.time < begin:  # Perfetto drops what has a negative time
        args["time_ns"] = event.time
    return {
        "ph": "i",
        "s": "t",
        "name": event.name or "event",
        "pid": rank,
        "tid": tid,
        "ts": max(0, event.time - begin) / _MICROSECOND,
        "args": args,
    }


def _counters(run: Path, begin: int) -> Iterator[dict[str, Any]]:
    for block in blocks(run):
        points = block.points
        tags = [without_surrogates(series.tag) for series in block.series]
        columns = (points.index.tolist(), points.times.tolist(), points.values.tolist())
        for index, time, value in zip(*columns, strict=True):
            if math.isfinite(value):  # JSON has no other numbers
                yield {
                    "ph": "C",
                    "name": tags[index],
                    "pid": block.rank,
                    "ts": (time - begin) / _MICROSECOND,
                    "args": {"value": _number(value)},
                }


def _plain(value: Any) -> Any:
    match value:
        case str() | bool() | None:
            return value
        case int() if -(2**63) <= value < 2**63:  # Perfetto makes something else of others
            return value
        case float() if math.isfinite(value):
            return _number(value)
        case list() | tuple():
            return [_plain(each) for each in value]
    return str(value)


def _number(value: float) -> float:
    """The same with no more than the 19 decimals with which Perfetto reads a number right.

    Without an exponent, only numbers of this size have more.
    """
    return round(value, 19) if 1e-4 <= abs(value) < 1e-3 else value
