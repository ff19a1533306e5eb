"""What the JSON records of a journal say, both ways: to bytes and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from otel_tracking.journal.format import RecordType, record_bytes
from otel_tracking.records import Kind, Series


@dataclass(frozen=True, slots=True)
class Entry:
    """One JSON record."""

    type: RecordType
    step: int
    time: int
    position: int
    content: dict[str, Any]


def gone(points: int, texts: int, began: int, position: int, *, removed: bool) -> Entry:
    """Says that points and texts which were recorded between two positions are damaged, or removed."""
    content = {"points": points, "texts": texts, "began": began, "removed": removed}
    return Entry(RecordType.GONE, 0, 0, position, content)


def entry_bytes(
    type_: RecordType, content: Mapping[str, Any], *, step: int = 0, time_ns: int | None = None
) -> bytes:
    """A record with that content.

    Raises:
        TypeError, ValueError: The content has no JSON form.
    """
    # ASCII, so that lone surrogates survive; Python's spelling of NaN and infinities, which `loads` reads.
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return record_bytes(type_, text.encode("ascii"), step=step, time_ns=time_ns)


def series_content(series: Series) -> dict[str, Any]:
    """A series as JSON values."""
    attributes = {
        key: {"list": list(value)} if isinstance(value, tuple) else value
        for key, value in series.attributes.items()
    }
    return {
        "tag": series.tag,
        "name": series.name,
        "kind": series.kind.value,
        "unit": series.unit,
        "description": series.description,
        "meter": series.meter,
        "attributes": attributes,
        "group": series.group,
    }


def series_bytes(id_: int, series: Series) -> bytes:
    """The definition of a series id."""
    return entry_bytes(RecordType.SERIES, {"id": id_, **series_content(series)})


def series_of(content: Mapping[str, Any]) -> tuple[int, Series]:
    """The id and the series that a definition names."""
    attributes = {
        key: tuple(value["list"]) if isinstance(value, dict) else value
        for key, value in content["attributes"].items()
    }
    series = Series(
        tag=content["tag"],
        name=content["name"],
        kind=Kind(content["kind"]),
        unit=content["unit"],
        description=content["description"],
        meter=content["meter"],
        attributes=attributes,
        group=content["group"],
    )
    return content["id"], series


def shape_bytes(id_: int, series_ids: Sequence[int]) -> bytes:
    """The definition of a row shape."""
    return entry_bytes(RecordType.SHAPE, {"id": id_, "series": list(series_ids)})
