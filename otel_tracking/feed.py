"""A journal cut into what trackers take: batches, texts, media, configs, ..., each after a cursor."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from otel_tracking.final_error import REASON
from otel_tracking.journal.entries import Entry
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.media import media_of
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.records import Batch, Config, Failure, Gone, Media, Rewind, RunStatus, Series, Text
from otel_tracking.span_records import Spans

Item: TypeAlias = Batch | Text | Media | Config | Rewind | Gone | Spans


class Feed:
    """What one tracker is to get next.

    Attributes:
        position: Everything before this has been read, and maybe not yet taken.
        skipped: Points at or before the cursor, damaged ones included.
        status: How the run ended, once its last record has been read.
        failure: The exception that ended it, if one did.
    """

    def __init__(self, directory: Path, *, tracker: str, max_points: int, spans: bool = False) -> None:
        self._directory = directory
        self._stream = RecordStream(directory, spans=spans)
        self._tracker = tracker
        self._max_points = max_points
        self._after = 0
        self._counted = 0
        self._items: deque[Item] = deque()
        self._options: dict[str, Any] = {}
        self._option_points = 0
        self.skipped = 0
        self.status = RunStatus.RUNNING
        self.failure: Failure | None = None
        self.position = 0
        self._read = 0
        """The end of what was read before."""

    def start_after(self, position: int, *, counted: int = 0) -> None:
        """Leave out what lies at or before a position. Before the first `peek`.

        Args:
            position: From where the tracker wants to go on.
            counted: Up to here points are given again, and no batch reaches beyond it.
        """
        self._after = position
        self._counted = counted

    @property
    def series(self) -> Sequence[Series]:
        """Every series seen so far."""
        return self._stream.series

    @property
    def idle(self) -> bool:
        """Whether all that was read has been taken."""
        return not self._items

    def peek(self) -> Item | None:
        """The next item, without taking it; None when the journal holds no more yet."""
        while not self._items:
            items = self._stream.read()
            if items is None:
                return None
            # Before what was recorded beside them: the cursor moves by that, and they are taken by then.
            spans = [span for span in self._stream.spans if span.position > self._after]
            for first in range(0, len(spans), self._max_points):
                self._items.append(Spans(spans[first : first + self._max_points], self._read))
            self._read = self._stream.position - 1
            for item in items:
                if isinstance(item, Points):
                    self._add_points(item)
                else:
                    self._add_entry(item)
            self.position = self._stream.position  # last, so that `idle` is right when it is seen
        return self._items[0]

    def take(self) -> None:
        """The item that `peek` gave is done with."""
        self._items.popleft()

    def add(self, items: Iterable[Item]) -> None:
        """Put items after everything that was read."""
        self._items += items

    def close(self) -> None:
        """Give up the journal's descriptors."""
        self._stream.close()

    def _add_points(self, points: Points) -> None:
        first = int(np.searchsorted(points.positions, self._after, side="right"))
        self.skipped += first
        options: dict[int, Mapping[str, Any]] = {}
        if self._option_points:
            options = dict.fromkeys(points.positions[: self._option_points].tolist(), self._options)
            self._option_points -= min(self._option_points, len(points))
        present = np.flatnonzero(np.bincount(points.index, minlength=len(self.series)))
        place = np.zeros(len(self.series), dtype=np.int32)
        place[present] = np.arange(len(present), dtype=np.int32)
        batch = Batch(
            [self.series[i] for i in present.tolist()],
            place[points.index],
            points.steps,
            points.times,
            points.values,
            points.positions,
            options,
        )
        counted = int(np.searchsorted(batch.positions, self._counted, side="right"))
        while first < len(batch):
            end = counted if first < counted else len(batch)
            stop = self._row_border(batch, first, min(first + self._max_points, end))
            self._items.append(batch[first:stop])
            first = stop

    @staticmethod
    def _row_border(batch: Batch, start: int, stop: int) -> int:
        """Where to cut so that no row is cut in two."""
        if stop >= len(batch):
            return len(batch)
        row = batch.positions[stop]
        begin = int(np.searchsorted(batch.positions, row, side="left"))
        return begin if begin > start else int(np.searchsorted(batch.positions, row, side="right"))

    def _add_entry(self, entry: Entry) -> None:
        if entry.type == RecordType.TEXT and REASON in entry.content:  # taken before, maybe
            self.failure = Failure(entry.content[REASON], entry.content["text"])
        if entry.type == RecordType.END:
            self.status = RunStatus(entry.content["status"])
        elif entry.type == RecordType.START:
            self.status, self.failure = RunStatus.RUNNING, None
        elif entry.type == RecordType.OPTIONS:
            self._options = entry.content["options"].get(self._tracker, {})
            self._option_points = entry.content["points"] if self._options else 0
        elif entry.type == RecordType.GONE:
            self._option_points = 0
            if entry.position <= self._after:
                self.skipped += entry.content["points"]
            else:
                self._items.append(Gone(**entry.content, position=entry.position))
        elif entry.position > self._after:
            if entry.type == RecordType.TEXT:
                options = entry.content["options"].get(self._tracker, {})
                content = entry.content
                self._items.append(
                    Text(content["tag"], content["text"], entry.step, entry.time, entry.position, options)
                )
            elif entry.type == RecordType.MEDIA:
                self._items.append(media_of(entry, self._directory, self._tracker))
            elif entry.type == RecordType.CONFIG:
                self._items.append(Config(entry.content["config"], entry.time, entry.position))
            elif entry.type == RecordType.REWIND:
                self._items.append(Rewind(entry.step, entry.time, entry.position))
