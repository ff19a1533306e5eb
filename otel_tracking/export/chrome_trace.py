"""Chrome's trace event format, as JSON, which Perfetto and `chrome://tracing` open.

A rank is a process, a thread a thread. Spans that overlap without one lying in the other, as those of
asynchronous code do, are on further lines of their thread. Points are counters, a track a series.

Source: "Trace Event Format", the format that Chromium documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from otel_tracking.export.blocks import blocks
from otel_tracking.reading import journals, spans_of
from otel_tracking.span_records import RecordedSpan

_MICROSECOND: Final = 1000
_LINES: Final = 1000
"""Numbers for lines of one thread: a thread's first line has a multiple of it."""


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
    file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
    separator = ""
    for event in _events(run, run_id):
        file.write(separator)
        json.dump(event, file, separators=(",", ":"))
        separator = ",\n"
    file.write("\n]}\n")


def _events(run: Path, run_id: str) -> Iterator[dict[str, Any]]:
    for rank, journal in journals(run):
        name = f"{run_id} rank {rank}"
        yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": name}}
        yield from _span_events(rank, list(spans_of(journal)))
    yield from _counters(run)


def _span_events(rank: int, spans: Sequence[RecordedSpan]) -> Iterator[dict[str, Any]]:
    by_thread: dict[int, list[RecordedSpan]] = {}
    for span in spans:
        by_thread.setdefault(span.thread, []).append(span)
    for number, of_thread in enumerate(by_thread.values(), start=1):
        lines: list[list[int]] = []
        # What began first is outside; of those that began together, what ended last.
        for span in sorted(of_thread, key=lambda each: (each.start, -each.end)):
            line = _line(lines, span)
            tid = number * _LINES + line
            yield _complete(rank, tid, span)
            yield from _instants(rank, tid, span)
        for line in range(len(lines)):
            name = f"thread {number}" + (f" ({line + 1})" if line else "")
            tid = number * _LINES + line
            yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": name}}


def _line(lines: list[list[int]], span: RecordedSpan) -> int:
    """The first line where a span lies within what is open there, or after it; a line is the ends of that."""
    for number, ends in enumerate(lines):
        while ends and ends[-1] <= span.start:
            ends.pop()
        if not ends or span.end <= ends[-1]:
            ends.append(span.end)
            return number
    if len(lines) == _LINES - 1:  # so many at once that nobody looks at them
        return _LINES - 2
    lines.append([span.end])
    return len(lines) - 1


def _complete(rank: int, tid: int, span: RecordedSpan) -> dict[str, Any]:
    about: dict[str, Any] = {
        **{key: _plain(value) for key, value in span.attributes.items()},
        "trace_id": f"{span.trace_id:032x}",
        "span_id": f"{span.span_id:016x}",
        "status": span.status,
    }
    if span.step is not None:
        about.setdefault("training.step", span.step)
    if span.parent_id:
        about["parent_id"] = f"{span.parent_id:016x}"
    if span.description:
        about["status.description"] = span.description
    event = {
        "ph": "X",
        "name": span.name or "span",
        "cat": ",".join(filter(None, (span.scope, span.kind, "error" if span.status == "error" else ""))),
        "pid": rank,
        "tid": tid,
        "ts": span.start / _MICROSECOND,
        "dur": max(0, span.end - span.start) / _MICROSECOND,
        "args": about,
    }
    return event | ({"cname": "terrible"} if span.status == "error" else {})


def _instants(rank: int, tid: int, span: RecordedSpan) -> Iterator[dict[str, Any]]:
    for event in span.events:
        args = {key: _plain(value) for key, value in event.attributes.items()}
        yield {
            "ph": "i",
            "s": "t",
            "name": event.name or "event",
            "pid": rank,
            "tid": tid,
            "ts": event.time / _MICROSECOND,
            "args": args,
        }


def _counters(run: Path) -> Iterator[dict[str, Any]]:
    for block in blocks(run):
        points = block.points
        tags = [series.tag for series in block.series]
        columns = (points.index.tolist(), points.times.tolist(), points.values.tolist())
        for index, time, value in zip(*columns, strict=True):
            if math.isfinite(value):  # JSON has no other numbers
                yield {
                    "ph": "C",
                    "name": tags[index],
                    "pid": block.rank,
                    "ts": time / _MICROSECOND,
                    "args": {"value": value},
                }


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
