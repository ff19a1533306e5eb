"""A journal as points of named series: definitions resolved, counters summed up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from otel_tracking.journal.entries import Entry, gone, series_of
from otel_tracking.journal.format import (
    FLAG_AUTOMATIC_STEP,
    FLAG_INTEGER,
    ID_MASK,
    POINT,
    RECORD,
    ROW,
    SLOT,
    SPAN_NUMBERS,
    SPAN_SHIFT,
    RecordType,
)
from otel_tracking.journal.reader import BLOCK_SLOTS, Block, JournalReader
from otel_tracking.journal.scan import Run
from otel_tracking.journal.spans import number_of, span_of
from otel_tracking.records import Float64Array, Int64Array, Series
from otel_tracking.span_records import EnclosingSpan, RecordedSpan

_Columns: TypeAlias = tuple[Int64Array, ...]
"""series index, step, time, position, word; each (n,)."""
_POSITIONS: Final = 3
_NO_SERIES: Final = np.zeros(0, dtype=np.int64)


class Points:
    """Points in recorded order, in columns of one length n.

    Attributes:
        index: (n,) which series of the stream's table each belongs to.
        steps, times, values: (n,) as recorded; of a counter, the running total.
        increments: (n,) as recorded; of a counter, what was added.
        positions: (n,) where the record begins.
        flags: (n,) `FLAG_AUTOMATIC_STEP`, `FLAG_INTEGER`, and a span's number.
        enclosing: The spans in which they were recorded, if the stream was asked for these.
        inside: (n,) which of `enclosing` each was recorded in, -1 if in none.
    """

    __slots__ = (
        "enclosing",
        "flags",
        "increments",
        "index",
        "inside",
        "positions",
        "steps",
        "times",
        "values",
    )

    def __init__(self, columns: Sequence[_Columns], increments: Sequence[Float64Array]) -> None:
        joined = [np.concatenate(column) for column in zip(*columns, strict=True)]
        self.index: npt.NDArray[np.int32] = joined[0].astype(np.int32)
        self.steps: Int64Array = joined[1]
        self.times: Int64Array = joined[2]
        self.positions: Int64Array = joined[3]
        self.flags: Int64Array = joined[4]
        self.increments: Float64Array = np.concatenate(increments)
        self.values: Float64Array = self.increments
        self.enclosing: list[EnclosingSpan] = []
        self.inside: npt.NDArray[np.int32] = np.full(len(self.index), -1, dtype=np.int32)

    def __len__(self) -> int:
        return len(self.index)

    def automatic(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the step is a count that no one gave."""
        return (self.flags & FLAG_AUTOMATIC_STEP).astype(np.bool_)

    def integers(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the value was an int."""
        return (self.flags & FLAG_INTEGER).astype(np.bool_)


class RecordStream:
    """Reads a journal from the beginning on, or that of a segment, and what is appended.

    A process that writes begins a segment, and defines its series there: its own records can be read alone.

    Attributes:
        series: Every series defined so far; `Points.index` points into it. Grows only. Two
            definitions of one series (two processes of one run) are one entry.
        spans: Those of the last `read`, if they are wanted.
    """

    def __init__(
        self, directory: Path | int, *, segment: int = 0, spans: bool = False, enclosing: bool = False
    ) -> None:
        """Open.

        Args:
            directory: As for `JournalReader`.
            segment: Where to begin.
            spans: Whether spans are wanted, each of which costs some time.
            enclosing: Whether it is wanted in which spans points were recorded.
        """
        self._reader: Final = JournalReader(directory)
        self._reader.go_to(segment)
        self.series: list[Series] = []
        self._known: dict[object, int] = {}
        self._of_id: npt.NDArray[np.int64] = np.full(64, -1, dtype=np.int64)
        self._shapes: dict[int, npt.NDArray[np.int64]] = {}
        self._accumulating: set[int] = set()
        self._sums: dict[int, float] = {}
        self._wants_spans = spans
        self.spans: list[RecordedSpan] = []
        self._numbers = _SpanNumbers() if enclosing else None

    def close(self) -> None:
        """Give up the journal's descriptors."""
        self._reader.close()

    @property
    def position(self) -> int:
        """Everything before this has been read."""
        return self._reader.position

    @property
    def torn(self) -> bool:
        """Whether the last read stopped before something unfinished or damaged."""
        return self._reader.torn

    def read(self, slots: int = BLOCK_SLOTS) -> list[Points | Entry] | None:
        """The next records in order, definitions left out; None when there are none yet.

        An entry `GONE` stands where points or texts are damaged, or what tells of their series is.

        Args:
            slots: How many to read at most, unless one record is larger. Columns take some ten times the
                block's bytes, in every follower.
        """
        self.spans = []
        block = self._reader.read(slots)
        return None if block is None else list(self._items(block))

    def _items(self, block: Block) -> Iterator[Points | Entry]:
        columns: list[_Columns] = []
        values: list[Float64Array] = []
        runs: list[Run] = []
        for run in block.runs:
            if run.kind in (POINT, ROW):
                runs.append(run)
            elif run.kind == RECORD and run.id == RecordType.SPAN:
                if self._wants_spans:
                    self.spans.append(_span_at(block, run))
            elif run.kind == RECORD and run.id == RecordType.SPAN_NUMBER:
                if self._numbers is not None:
                    self._numbers.learn(_payload_of(block, run), block.first >> 32)
            elif run.kind == RECORD:
                self._resolve(block, runs, columns, values)  # by the definitions that stand before
                runs = []
                entry = entry_at(block, run)
                if self._defines(entry):
                    continue
                if columns:
                    yield from self._points(columns, values)
                    columns, values = [], []
                yield entry
        self._resolve(block, runs, columns, values)
        if columns:
            yield from self._points(columns, values)
        if block.lost or block.lost_texts:
            yield gone(block.lost, block.lost_texts, block.first, block.end - 1, removed=block.removed)

    def _resolve(
        self, block: Block, runs: list[Run], columns: list[_Columns], values: list[Float64Array]
    ) -> None:
        """Add the points of some runs, in recorded order."""
        alike: dict[tuple[int, int], list[Run]] = {}
        for run in runs:
            alike.setdefault((run.kind, run.id), []).append(run)
        found = [self._points_of(block, same) for same in alike.values()]
        if len(found) > 1:
            joined = [np.concatenate(column) for column in zip(*found, strict=True)]
            order = np.argsort(joined[_POSITIONS], kind="stable")
            found = [tuple(column[order] for column in joined)]
        for *of_points, numbers in found:
            columns.append(tuple(of_points))
            values.append(numbers)

    def _points_of(self, block: Block, runs: list[Run]) -> tuple[npt.NDArray[Any], ...]:
        """The columns and the values of points, or of rows of one shape.

        Taken together, however many runs they are: where shapes take turns each row is one.
        """
        stride = runs[0].stride
        parts = [block.words[run.start : run.stop] for run in runs]
        records = (parts[0] if len(parts) == 1 else np.concatenate(parts)).reshape(-1, 4 * stride)
        counts = np.array([len(part) for part in parts]) // stride
        before = np.cumsum(counts) - counts
        starts = np.array([run.start for run in runs]) - before * stride
        positions = block.first + np.repeat(starts, counts) + np.arange(0, len(records) * stride, stride)
        words, steps, times = records[:, 0], records[:, 1], records[:, 2]
        if runs[0].kind == POINT:
            return (
                self._of_id.take((words >> 4) & ID_MASK, mode="clip"),
                steps,
                times,
                positions,
                words,
                _doubles(records[:, 3:]),
            )
        width = runs[0].points_each
        shape = self._shapes.get(runs[0].id, _NO_SERIES)
        if len(shape) != width:
            shape = np.full(width, -1)
        return (
            np.tile(shape, len(records)),
            np.repeat(steps, width),
            np.repeat(times, width),
            np.repeat(positions, width),
            np.repeat((records[:, 3] >> 32) << SPAN_SHIFT, width),
            _doubles(records[:, 4 : 4 + width]),
        )

    def _points(self, columns: list[_Columns], values: list[Float64Array]) -> Iterator[Points | Entry]:
        known = [column[0] >= 0 for column in columns]
        if not all(of.all() for of in known):
            unknown = sum(int(np.count_nonzero(~of)) for of in known)
            ends = int(columns[0][_POSITIONS][0]), int(columns[-1][_POSITIONS][-1])
            columns = [tuple(c[of] for c in column) for column, of in zip(columns, known, strict=True)]
            values = [of_run[of] for of_run, of in zip(values, known, strict=True)]
            if any(of.any() for of in known):
                yield self._totals(Points(columns, values))
            yield gone(unknown, 0, *ends, removed=False)
            return
        yield self._totals(Points(columns, values))

    def _totals(self, points: Points) -> Points:
        if self._numbers is not None:
            self._numbers.resolve(points)
        if self._accumulating:
            points.values = points.increments.copy()
            for index in self._accumulating.intersection(np.unique(points.index).tolist()):
                mine = np.flatnonzero(points.index == index)
                steps = np.append(self._sums.get(index, 0.0), points.increments[mine])
                totals = np.cumsum(steps)  # in order, one by one: the same sum that adding at the call gives
                points.values[mine] = totals[1:]
                self._sums[index] = float(totals[-1])
        return points

    @property
    def totals(self) -> dict[int, float]:
        """The running total of each counter so far, by its index in `series`."""
        return dict(self._sums)

    def index_of(self, series: Series) -> int:
        """Where a series stands in `series`; it is added if it is new."""
        index = self._known.get(series.identity)
        if index is None:
            index = self._known[series.identity] = len(self.series)
            self.series.append(series)
            if series.kind.accumulates:
                self._accumulating.add(index)
        return index

    def _defines(self, entry: Entry) -> bool:
        if entry.type == RecordType.START:  # the ids of another process mean nothing any more
            self._of_id[:] = -1
            self._shapes.clear()
            if self._numbers is not None:
                self._numbers = _SpanNumbers()
        if entry.type == RecordType.SERIES:
            id_, series = series_of(entry.content)
            index = self.index_of(series)
            if id_ + 1 >= len(self._of_id):  # the last place stays empty: what is beyond is clipped to it
                more = np.full(max(id_ + 2, 2 * len(self._of_id)), -1, dtype=np.int64)
                more[: len(self._of_id)] = self._of_id
                self._of_id = more
            self._of_id[id_] = index
            return True
        if entry.type == RecordType.SHAPE:
            self._shapes[entry.content["id"]] = self._of_id[np.array(entry.content["series"], dtype=np.int64)]
            return True
        if entry.type == RecordType.STATE:
            for content, total in entry.content["totals"]:
                _, series = series_of({"id": 0, **content})
                self._sums[self.index_of(series)] = total
        return False


class _SpanNumbers:
    """Which spans the numbers on points mean: those given in this segment and in the one before it."""

    def __init__(self) -> None:
        self._segment = 0
        self._given: dict[int, EnclosingSpan] = {}
        self._before: dict[int, EnclosingSpan] = {}

    def learn(self, payload: bytes, segment: int) -> None:
        """A record has given a span its number."""
        if segment != self._segment:
            self._before, self._given = self._given, {}
            self._segment = segment
        number, span = number_of(payload)
        self._given[number] = span

    def resolve(self, points: Points) -> None:
        """Say of points in which spans they were recorded."""
        numbers = (points.flags >> SPAN_SHIFT) & (SPAN_NUMBERS - 1)
        if not numbers.any():
            return
        found, places = np.unique(numbers, return_inverse=True)
        spans = [self._given.get(number) or self._before.get(number) for number in found.tolist()]
        known = np.array([span is not None for span in spans])
        points.enclosing = [span for span in spans if span is not None]
        points.inside = np.where(known, np.cumsum(known) - 1, -1).astype(np.int32)[places]


def _doubles(words: npt.NDArray[np.int64]) -> Float64Array:
    return words.reshape(-1).view(np.float64)


def _span_at(block: Block, run: Run) -> RecordedSpan:
    head = block.words[run.start]
    return span_of(_payload_of(block, run), int(head[1]), int(head[2]), block.first + run.start)


def _payload_of(block: Block, run: Run) -> bytes:
    begin = (run.start + 1) * SLOT
    return block.data[begin : begin + run.payload]


def entry_at(block: Block, run: Run) -> Entry:
    """The record of another type that a run of a block is."""
    head = block.words[run.start]
    content = json.loads(_payload_of(block, run))
    position = block.first + run.start
    return Entry(RecordType(run.id), int(head[1]), int(head[2]), position, content)
