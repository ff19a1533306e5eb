"""What every kind of file is made of: the points of one rank, a block at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from otel_tracking.journal.format import RecordType
from otel_tracking.journal.stream import Points
from otel_tracking.reading import journals, read_items
from otel_tracking.records import Series

_LOG: Final = logging.getLogger(__name__)
_BLOCK_SLOTS: Final = 2**18

COLUMNS: Final = (
    "run_id",
    "rank",
    "name",
    "tag",
    "attributes",
    "kind",
    "unit",
    "step",
    "time_ns",
    "value",
    "trace_id",
    "span_id",
)
"""Of a table. `attributes` is a JSON object; `time_ns` counts nanoseconds from the epoch; `value` is, of a
counter, its running total; `trace_id` and `span_id` are of the span in which it was recorded, if any."""


@dataclass(frozen=True, slots=True)
class Block:
    """Points in recorded order."""

    rank: int
    series: Sequence[Series]
    """Every series of this rank known by now; `points.index` points into it."""
    points: Points
    resource: Mapping[str, Any]
    """OpenTelemetry resource attributes of the process that recorded them, as far as it noted any."""


def blocks(run: Path) -> Iterator[Block]:
    """The points of a run, rank after rank.

    Args:
        run: As for `read_run`.

    Raises:
        ConfigurationError: There is no journal.
        UnsupportedJournal: A journal is of another version.
    """
    for rank, journal in journals(run):
        resource: Mapping[str, Any] = {}
        gone = {False: 0, True: 0}
        for item, series in read_items(journal, _BLOCK_SLOTS, enclosing=True):
            if isinstance(item, Points):
                yield Block(rank, series, item, resource)
            elif item.type == RecordType.START:
                resource = item.content.get("resource", {})
            elif item.type == RecordType.GONE:
                gone[item.content["removed"]] += item.content["points"]
        if gone[False]:
            _LOG.warning("%s: %d points are damaged, and not exported", journal, gone[False])
        if gone[True]:
            _LOG.warning("%s: %d points were removed to save space", journal, gone[True])


def attributes_of(series: Series) -> str:
    """A series' attributes as a JSON object."""
    return json.dumps(dict(series.attributes), separators=(",", ":"))
