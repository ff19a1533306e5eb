"""One journal going on where another ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from otel_tracking.journal.entries import series_of
from otel_tracking.journal.format import FLAG_AUTOMATIC_STEP, ID_MASK, PADDING, POINT, RECORD, RecordType
from otel_tracking.journal.reader import JournalReader
from otel_tracking.journal.stream import Points, RecordStream, entry_at
from otel_tracking.records import Int64Array, Series


def next_steps(directory: Path | int) -> list[tuple[Series, int]]:
    """The series of a journal, and where the automatic count of each goes on."""
    stream = RecordStream(directory)
    try:
        steps = steps_until(stream, None)
    finally:
        stream.close()
    return list(zip(stream.series, steps.tolist(), strict=True))


def steps_until(stream: RecordStream, end: int | None) -> Int64Array:
    """(series,) where the automatic count of each of a stream's series goes on.

    Args:
        stream: Of which nothing has been read.
        end: The position where a segment ends, up to which it is read; None is all.
    """
    steps = np.zeros(0, dtype=np.int64)
    while (end is None or stream.position < end) and (items := stream.read()) is not None:
        steps = np.append(steps, np.zeros(len(stream.series) - len(steps), dtype=np.int64))
        for item in items:
            if isinstance(item, Points):
                counted = item.automatic()
                np.maximum.at(steps, item.index[counted], item.steps[counted] + 1)
            elif item.type == RecordType.STATE:
                for content, step in item.content["steps"]:
                    _, series = series_of({"id": 0, **content})
                    index = stream.index_of(series)
                    steps[index] = max(steps[index], step)
    return steps


def continued(journal: Path, reached: Iterable[tuple[Series, int]]) -> Iterator[bytes]:
    """The records of a closed journal as another takes them over, in pieces that hold whole records.

    Definitions travel along, as readers take ids as they come. Automatic counts go on from where
    the other journal has `reached`.
    """
    steps = {series.identity: step for series, step in reached}
    offsets: dict[int, int] = {}
    reader = JournalReader(journal)
    try:
        while (block := reader.read()) is not None:
            words = block.words.copy()
            for run in block.runs:
                part = words[run.start : run.stop]
                if run.kind == POINT and any(offsets.values()):
                    for row in np.flatnonzero(part[:, 0] & FLAG_AUTOMATIC_STEP).tolist():
                        part[row, 1] += offsets[int(part[row, 0] >> 4) & ID_MASK]
                elif run.kind == RECORD and run.id == RecordType.SERIES:
                    id_, series = series_of(entry_at(block, run).content)
                    offsets[id_] = steps.get(series.identity, 0)
                if run.kind != PADDING:
                    yield part.tobytes()
    finally:
        reader.close()
