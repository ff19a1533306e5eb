"""A run's points, read back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from otel_tracking.errors import ConfigurationError
from otel_tracking.journal.entries import Entry
from otel_tracking.journal.format import RECORD, RecordType, position, segment_index
from otel_tracking.journal.reader import BLOCK_SLOTS, JournalReader
from otel_tracking.journal.scan import Run
from otel_tracking.journal.stream import Points, RecordStream, entry_at
from otel_tracking.records import AttributeValue, Float64Array, Int64Array, RunStatus, Series
from otel_tracking.span_records import EnclosingSpan, RecordedSpan

if TYPE_CHECKING:
    import pandas as pd

_FIRST_SLOTS: Final = 256


@dataclass(frozen=True, slots=True)
class RunData:
    """The points of a run in recorded order, rank after rank, in columns of one length n."""

    series: list[Series]
    """The series; `index` points into it."""
    index: npt.NDArray[np.int32]
    """(n,) the series of each point."""
    steps: Int64Array
    """(n,)"""
    times: Int64Array
    """(n,) nanoseconds since the epoch."""
    values: Float64Array
    """(n,) counters as running totals, as trackers get them."""
    ranks: Int64Array
    """(n,) which rank recorded it."""
    damaged: int = 0
    """Points that were recorded and can't be read any more; `otel-tracking verify` says where."""
    removed: int = 0
    """Points that were removed to save space."""
    enclosing: list[EnclosingSpan] = field(default_factory=list)
    """The spans in which points were recorded; `inside` points into it."""
    inside: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """(n,) in which span each point was recorded; -1 if in none."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, column: str) -> npt.NDArray[Any]:
        """One of `columns()`."""
        return self.columns()[column]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """`name, tag, attributes, step, time_ns, value, rank, trace_id, span_id`, each (n,).

        The last two are those of the span in which the point was recorded, in hex; empty texts if in none.
        """
        ids = [*(span.ids for span in self.enclosing), ("", "")]  # the last one, -1, is none
        return {
            "name": _objects([s.name for s in self.series])[self.index],
            "tag": _objects([s.tag for s in self.series])[self.index],
            "attributes": _objects([dict(s.attributes) for s in self.series])[self.index],
            "step": self.steps,
            "time_ns": self.times,
            "value": self.values,
            "rank": self.ranks,
            "trace_id": _objects([trace for trace, _ in ids])[self.inside],
            "span_id": _objects([span for _, span in ids])[self.inside],
        }

    def of(self, name: str, attributes: Mapping[str, AttributeValue] | None = None) -> RunData:
        """The points of the series of that instrument's name or tag, and attributes if given."""
        wanted = [
            i
            for i, s in enumerate(self.series)
            if name in (s.name, s.tag) and (attributes is None or dict(s.attributes) == dict(attributes))
        ]
        mask = np.isin(self.index, wanted)
        return RunData(
            self.series,
            self.index[mask],
            self.steps[mask],
            self.times[mask],
            self.values[mask],
            self.ranks[mask],
            enclosing=self.enclosing,
            inside=self.inside[mask],
        )

    def to_pandas(self) -> pd.DataFrame:
        """The columns as a DataFrame; needs pandas (`pip install 'otel-tracking[pandas]'`)."""
        import pandas as pd  # an extra

        return pd.DataFrame(self.columns())


def read_run(path: str | os.PathLike[str]) -> RunData:
    """Read every point of a run, also while it is being recorded.

    Args:
        path: The run's directory, its `journal` directory, or one rank's journal.

    Raises:
        ConfigurationError: There is no journal.
        UnsupportedJournal: A journal is of another version.
    """
    table: list[Series] = []
    enclosing: dict[EnclosingSpan, int] = {}
    insides: list[npt.NDArray[np.int32]] = []
    parts: list[tuple[npt.NDArray[np.int32], Points, int]] = []
    damaged = removed = 0
    for rank, directory in journals(Path(path)):
        offset = len(table)
        for item, series in read_items(directory, enclosing=True):
            table += series[len(table) - offset :]
            if isinstance(item, Points):
                parts.append((item.index + np.int32(offset), item, rank))
                places = [enclosing.setdefault(span, len(enclosing)) for span in item.enclosing]
                insides.append(np.array([*places, -1], dtype=np.int32)[item.inside])
            elif item.type == RecordType.GONE:
                damaged += 0 if item.content["removed"] else item.content["points"]
                removed += item.content["points"] if item.content["removed"] else 0
    return RunData(
        table,
        _joined([index for index, _, _ in parts], np.int32),
        _joined([points.steps for _, points, _ in parts], np.int64),
        _joined([points.times for _, points, _ in parts], np.int64),
        _joined([points.values for _, points, _ in parts], np.float64),
        _joined([np.full(len(points), rank, np.int64) for _, points, rank in parts], np.int64),
        damaged,
        removed,
        list(enclosing),
        _joined(insides, np.int32),
    )


def read_spans(path: str | os.PathLike[str]) -> list[RecordedSpan]:
    """Read every finished span of a run, rank after rank, in the order in which they ended.

    Args:
        path: As for `read_run`.

    Raises:
        ConfigurationError: There is no journal.
        UnsupportedJournal: A journal is of another version.
    """
    return [span for _, directory in journals(Path(path)) for span in spans_of(directory)]


def spans_of(journal: Path) -> Iterator[RecordedSpan]:
    """The spans that a journal holds now.

    Args:
        journal: Its directory.

    Raises:
        UnsupportedJournal: It is of another version.
    """
    end = _end_of_segments(journal)
    stream = RecordStream(journal, spans=True)
    try:
        while stream.position < end and stream.read() is not None:
            yield from stream.spans
    finally:
        stream.close()


def read_items(
    journal: Path, slots: int = BLOCK_SLOTS, *, enclosing: bool = False
) -> Iterator[tuple[Points | Entry, Sequence[Series]]]:
    """What a journal holds now, in recorded order, each with the series known by then.

    Args:
        journal: Its directory.
        slots: How many to read at a time.
        enclosing: As for `RecordStream`.

    Raises:
        UnsupportedJournal: It is of another version.
    """
    end = _end_of_segments(journal)
    stream = RecordStream(journal, enclosing=enclosing)
    try:
        while stream.position < end and (items := stream.read(slots)) is not None:
            for item in items:
                yield item, stream.series
    finally:
        stream.close()


def journals(path: Path) -> list[tuple[int, Path]]:
    """The journals of a run, by rank.

    Raises:
        ConfigurationError: There is none.
    """
    for candidate in (path, path / "journal"):
        if _is_journal(candidate):
            return [(_rank_of(candidate), candidate)]
        ranks = sorted(path for path in candidate.glob("rank-*") if _is_journal(path))
        if ranks:
            return [(_rank_of(p), p) for p in ranks]
    raise ConfigurationError(
        f"{path} holds no journal; give a run's directory, <project_dir>/<project>/<run_id>"
    )


def _is_journal(path: Path) -> bool:
    return path.is_dir() and any(segment_index(file.name) is not None for file in path.iterdir())


def first_start(journal: Path) -> dict[str, Any] | None:
    """What the process that began a journal noted of itself; None if it had no time to."""
    for item, _ in read_items(journal, _FIRST_SLOTS):
        if isinstance(item, Entry) and item.type == RecordType.START:
            return item.content
    return None


def end_status(journal: Path) -> RunStatus | None:
    """How a journal's last process said that the run ended; None if it said nothing."""
    reader = JournalReader(journal)
    status = None
    try:
        # The last word stands in the last segment that holds any record.
        for index in reversed(reader.segments()):
            reader.go_to(index)
            block = None
            while (found := reader.read()) is not None and found.first >> 32 == index:
                block = found
            said = [] if block is None else [run for run in block.runs if not _is_state(run)]
            if block is not None and said:
                last = said[-1]
                ends = last.kind == RECORD and last.id == RecordType.END
                status = RunStatus(entry_at(block, last).content["status"]) if ends else None
                break
    finally:
        reader.close()
    return status


def _is_state(run: Run) -> bool:
    """Whether it was added when the segment was removed, after the process's last word."""
    return run.kind == RECORD and run.id == RecordType.STATE


def _end_of_segments(directory: Path) -> int:
    """The position where the segments end that are there now; a reader may never catch up with a writer."""
    indices = (segment_index(path.name) for path in directory.iterdir())
    return position(max(index for index in indices if index is not None) + 1, 0)


def _rank_of(path: Path) -> int:
    _, _, number = path.name.partition("-")
    return int(number) if number.isdigit() else 0


def _objects(values: list[Any]) -> npt.NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _joined(parts: list[Any], dtype: Any) -> Any:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
