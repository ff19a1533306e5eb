"""OTLP as JSON lines: each is an `ExportMetricsServiceRequest`, as OpenTelemetry's file exporter writes them.

A point has its step as the attribute `training.step`. Counters are cumulative sums, everything else a gauge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from otel_tracking.export.blocks import Block, blocks
from otel_tracking.records import Kind, Series

_CUMULATIVE: Final = 2
STEP: Final = "training.step"
_SUMS: Final = (
    Kind.COUNTER,
    Kind.UP_DOWN_COUNTER,
    Kind.OBSERVABLE_COUNTER,
    Kind.OBSERVABLE_UP_DOWN_COUNTER,
)
_MONOTONIC: Final = (Kind.COUNTER, Kind.OBSERVABLE_COUNTER)


def write_otlp_json(run: Path, run_id: str, file: IO[str]) -> None:
    """Write a run's points, a line a block.

    Args:
        run: As for `read_run`.
        run_id: The resource attribute `training.run_id`.
        file: Text.
    """
    starts: dict[tuple[int, str], int] = {}
    for block in blocks(run):
        json.dump(_request(block, run_id, starts), file, separators=(",", ":"))
        file.write("\n")


def _request(block: Block, run_id: str, starts: dict[tuple[int, str], int]) -> dict[str, Any]:
    scopes: dict[str, list[dict[str, Any]]] = {}
    for index in np.unique(block.points.index).tolist():
        series = block.series[index]
        scopes.setdefault(series.meter, []).append(_metric(block, index, series, starts))
    resource = {**block.resource, "training.run_id": run_id, "training.rank": block.rank}
    return {
        "resourceMetrics": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeMetrics": [
                    {"scope": {"name": meter}, "metrics": metrics} for meter, metrics in scopes.items()
                ],
            }
        ]
    }


def _metric(block: Block, index: int, series: Series, starts: dict[tuple[int, str], int]) -> dict[str, Any]:
    mine = block.points.index == index
    times = block.points.times[mine].tolist()
    about = _attributes(series.attributes)
    points: list[dict[str, Any]] = [
        {
            "attributes": [*about, {"key": STEP, "value": {"intValue": str(step)}}],
            "timeUnixNano": str(time),
            "asDouble": _double(value),
        }
        for step, time, value in zip(
            block.points.steps[mine].tolist(), times, block.points.values[mine].tolist(), strict=True
        )
    ]
    metric = {"name": series.name, "description": series.description, "unit": series.unit}
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
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": _double(value)}
    if isinstance(value, list | tuple):
        return {"arrayValue": {"values": [_value(each) for each in value]}}
    return {"stringValue": str(value)}
