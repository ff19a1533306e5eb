"""OTLP as JSON lines, as OpenTelemetry's file exporter writes them: each is an `ExportMetricsServiceRequest`
or an `ExportTraceServiceRequest`.

A point has its step as the attribute `training.step`, and so has a span. Counters are cumulative sums,
everything else a gauge. A point that was recorded in a span is its own exemplar, which has the span's ids.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from otel_tracking.config import without_surrogates
from otel_tracking.export.blocks import Block, blocks
from otel_tracking.journal.spans import KINDS, STATUSES
from otel_tracking.reading import journals, spans_of
from otel_tracking.records import Kind, Series
from otel_tracking.span_records import STEP_ATTRIBUTE, RecordedSpan

_CUMULATIVE: Final = 2
_SPANS: Final = 1000
"""In a line, at most."""
_SUMS: Final = (
    Kind.COUNTER,
    Kind.UP_DOWN_COUNTER,
    Kind.OBSERVABLE_COUNTER,
    Kind.OBSERVABLE_UP_DOWN_COUNTER,
)
_MONOTONIC: Final = (Kind.COUNTER, Kind.OBSERVABLE_COUNTER)


def write_otlp_json(run: Path, run_id: str, file: IO[str]) -> None:
    """Write a run's points, a line a block, then its spans.

    Args:
        run: As for `read_run`.
        run_id: The resource attribute `training.run_id`.
        file: Text.
    """
    starts: dict[tuple[int, str], int] = {}
    resources: dict[int, Mapping[str, Any]] = {}
    for block in blocks(run):
        resources[block.rank] = block.resource
        _write(_request(block, run_id, starts), file)
    for rank, journal in journals(run):
        resource = _resource(resources.get(rank, {}), run_id, rank)
        for spans in _batched(spans_of(journal)):
            _write(_trace_request(spans, resource), file)


def _request(block: Block, run_id: str, starts: dict[tuple[int, str], int]) -> dict[str, Any]:
    scopes: dict[str, list[dict[str, Any]]] = {}
    for index in np.unique(block.points.index).tolist():
        series = block.series[index]
        scopes.setdefault(series.meter, []).append(_metric(block, index, series, starts))
    return {
        "resourceMetrics": [
            {
                "resource": _resource(block.resource, run_id, block.rank),
                "scopeMetrics": [
                    {"scope": {"name": meter}, "metrics": metrics} for meter, metrics in scopes.items()
                ],
            }
        ]
    }


def _resource(noted: Mapping[str, Any], run_id: str, rank: int) -> dict[str, Any]:
    return {"attributes": _attributes({**noted, "training.run_id": run_id, "training.rank": rank})}


def _write(request: Mapping[str, Any], file: IO[str]) -> None:
    json.dump(request, file, separators=(",", ":"))
    file.write("\n")


def _batched(spans: Iterator[RecordedSpan]) -> Iterator[list[RecordedSpan]]:
    while batch := list(itertools.islice(spans, _SPANS)):
        yield batch


def _trace_request(spans: Iterable[RecordedSpan], resource: Mapping[str, Any]) -> dict[str, Any]:
    scopes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for span in spans:
        scopes.setdefault((span.scope, span.scope_version), []).append(_span(span))
    return {
        "resourceSpans": [
            {
                "resource": resource,
                "scopeSpans": [
                    {"scope": {"name": name, "version": version}, "spans": of_scope}
                    for (name, version), of_scope in scopes.items()
                ],
            }
        ]
    }


def _span(span: RecordedSpan) -> dict[str, Any]:
    attributes = dict(span.attributes)
    if span.step is not None:
        attributes.setdefault(STEP_ATTRIBUTE, span.step)
    return {
        "traceId": f"{span.trace_id:032x}",
        "spanId": f"{span.span_id:016x}",
        "parentSpanId": f"{span.parent_id:016x}" if span.parent_id else "",
        "name": without_surrogates(span.name),
        "kind": 1 + KINDS.index(span.kind),
        "startTimeUnixNano": str(span.start),
        "endTimeUnixNano": str(span.end),
        "attributes": _attributes(attributes),
        "events": [
            {
                "name": without_surrogates(event.name),
                "timeUnixNano": str(event.time),
                "attributes": _attributes(event.attributes),
            }
            for event in span.events
        ],
        "links": [
            {
                "traceId": f"{link.trace_id:032x}",
                "spanId": f"{link.span_id:016x}",
                "attributes": _attributes(link.attributes),
            }
            for link in span.links
        ],
        "status": {"code": STATUSES.index(span.status), "message": without_surrogates(span.description)},
    }


def _metric(block: Block, index: int, series: Series, starts: dict[tuple[int, str], int]) -> dict[str, Any]:
    mine = block.points.index == index
    times = block.points.times[mine].tolist()
    about = _attributes(series.attributes)
    points: list[dict[str, Any]] = [
        {
            "attributes": [*about, {"key": STEP_ATTRIBUTE, "value": {"intValue": str(step)}}],
            "timeUnixNano": str(time),
            "asDouble": _double(value),
        }
        for step, time, value in zip(
            block.points.steps[mine].tolist(), times, block.points.values[mine].tolist(), strict=True
        )
    ]
    ids = [span.ids for span in block.points.enclosing]
    increments = block.points.increments[mine].tolist()
    inside = block.points.inside[mine].tolist()
    for at in (at for at, span in enumerate(inside) if span >= 0):
        trace_id, span_id = ids[inside[at]]
        exemplar = {"timeUnixNano": str(times[at]), "asDouble": _double(increments[at])}
        points[at]["exemplars"] = [{**exemplar, "traceId": trace_id, "spanId": span_id}]
    metric = without_surrogates({"name": series.name, "description": series.description, "unit": series.unit})
    if series.kind not in _SUMS:
        return {**metric, "gauge": {"dataPoints": points}}
    start = str(starts.setdefault((block.rank, series.tag), times[0]))
    for point in points:
        point["startTimeUnixNano"] = start
    summed = {
        "dataPoints": points,
        "aggregationTemporality": _CUMULATIVE,
        "isMonotonic": series.kind in _MONOTONIC,
    }
    return {**metric, "sum": summed}


def _double(value: float) -> float | str:
    """Protobuf's JSON has names for what JSON has no numbers for."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _attributes(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": without_surrogates(key), "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": _double(value)}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": without_surrogates(str(value))}
