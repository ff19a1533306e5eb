"""The series of one journal, as the writing side knows them."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Iterable, Mapping

from otel_tracking.journal.entries import series_bytes, shape_bytes
from otel_tracking.journal.format import (
    FLAG_AUTOMATIC_STEP,
    FLAG_INTEGER,
    POINT,
    ROW,
    SLOT,
)
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.records import AttributeValue, Kind, Series
from otel_tracking.tags import TagAssigner


class SeriesHandle:
    """What the hot path needs of a series: one object, so that its parts always belong together.

    Attributes:
        journal: Where its points go.
        word: First word of a point; `integer_word` where the value was an int.
        count: The next automatic step.
    """

    __slots__ = ("count", "id", "integer_word", "journal", "series", "word")

    def __init__(self, journal: JournalWriter, id_: int, series: Series, next_step: int) -> None:
        self.journal = journal
        self.id = id_
        self.series = series
        self.word = POINT | id_ << 4
        self.integer_word = self.word | FLAG_INTEGER
        self.count = itertools.count(next_step)

    def automatic(self) -> tuple[int, int]:
        """(flag for the word, step) of a point whose step nothing says."""
        return FLAG_AUTOMATIC_STEP, next(self.count)


class RowShape:
    """What the hot path needs of a row: its word, how to pack its values, which series they are."""

    __slots__ = ("journal", "pack", "word")

    def __init__(self, journal: JournalWriter, id_: int, width: int) -> None:
        self.journal = journal
        size = 8 * width
        self.word = ROW | id_ << 4 | size << 32
        self.pack = struct.Struct(f"<{width}d{-size % SLOT}x").pack


class SeriesRegistry:
    """Hands out series and row shapes, each defined in the journal before it is used.

    The lock is an RLock: a signal handler that records a new series while another is being made
    goes on; both get ids of their own, and readers see one series.
    """

    def __init__(self, journal: JournalWriter) -> None:
        self.journal = journal
        self._lock = threading.RLock()
        self._tags = TagAssigner()
        self._handles: dict[object, SeriesHandle] = {}
        self._shapes: dict[tuple[int, ...], RowShape] = {}
        self._series_ids = itertools.count()
        self._shape_ids = itertools.count()
        self._resume()

    def _resume(self) -> None:
        """Go on with the tags and counts of what an earlier process of this run recorded.

        Every series is defined again, under a new id: readers take ids as they come.
        """
        stream = RecordStream(self.journal.descriptor)
        next_steps: dict[int, int] = {}
        try:
            while (items := stream.read()) is not None:
                for item in items:
                    if isinstance(item, Points):
                        automatic = item.automatic()
                        for index in set(item.index[automatic].tolist()):
                            last = int(item.steps[automatic & (item.index == index)].max())
                            next_steps[index] = max(next_steps.get(index, 0), last + 1)
        finally:
            stream.close()
        for index, series in enumerate(stream.series):
            self._tags.restore(series.tag, series.identity, series.meter)
            self._define(series, next_steps.get(index, 0))

    def series(
        self,
        *,
        name: str,
        kind: Kind,
        unit: str = "",
        description: str = "",
        meter: str = "",
        attributes: Mapping[str, AttributeValue] | None = None,
        group: str = "",
    ) -> SeriesHandle:
        """The series of that identity, made if new."""
        ordered = dict(sorted((attributes or {}).items()))
        draft = Series(name, name, kind, unit, description, meter, ordered, group)
        known = self._handles.get(draft.identity)
        if known is not None:
            return known
        with self._lock:
            known = self._handles.get(draft.identity)
            if known is not None:
                return known
            tag = self._tags.assign(draft.identity, name, ordered, meter)
            return self._define(Series(tag, name, kind, unit, description, meter, ordered, group), 0)

    def _define(self, series: Series, next_step: int) -> SeriesHandle:
        id_ = next(self._series_ids)
        self.journal.append(series_bytes(id_, series))
        handle = SeriesHandle(self.journal, id_, series, next_step)
        return self._handles.setdefault(series.identity, handle)

    def shape(self, series: Iterable[SeriesHandle]) -> RowShape:
        """The row shape of those series in that order, made if new."""
        ids = tuple(handle.id for handle in series)
        known = self._shapes.get(ids)
        if known is not None:
            return known
        with self._lock:
            id_ = next(self._shape_ids)
            self.journal.append(shape_bytes(id_, ids))
            return self._shapes.setdefault(ids, RowShape(self.journal, id_, len(ids)))
