"""The series of one journal, as the writing side knows them."""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Iterable, Mapping

from otel_tracking.errors import JournalFull
from otel_tracking.journal.continuing import next_steps
from otel_tracking.journal.entries import series_bytes, shape_bytes
from otel_tracking.journal.format import (
    FLAG_AUTOMATIC_STEP,
    FLAG_INTEGER,
    POINT,
    ROW,
    SLOT,
)
from otel_tracking.journal.writer import JournalWriter, Outcome
from otel_tracking.records import AttributeValue, Kind, Series, series_identity
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
        self._next_steps: dict[object, int] = {}
        self._series_ids = itertools.count()
        self._shape_ids = itertools.count()
        self._resume()

    def _resume(self) -> None:
        """Go on with the tags and counts of what an earlier process of this run recorded.

        A series that is used again is defined again, under a new id: readers take ids as they come.
        """
        for series, step in next_steps(self.journal.descriptor):
            self._tags.restore(series.tag, series.identity, series.meter)
            self._next_steps[series.identity] = step

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
        """The series of that identity, made if new.

        Raises:
            JournalFull: It is new, and its definition has no place in the journal.
        """
        ordered = dict(sorted(attributes.items())) if attributes else {}
        identity = series_identity(meter, name, kind, unit, ordered)
        known = self._handles.get(identity)
        if known is not None:
            return known
        with self._lock:
            known = self._handles.get(identity)
            if known is not None:
                return known
            tag = self._tags.assign(identity, name, ordered, meter)
            return self._define(Series(tag, name, kind, unit, description, meter, ordered, group))

    def has(self, kind: Kind) -> bool:
        """Whether any series so far is of that kind."""
        return any(handle.series.kind is kind for handle in list(self._handles.values()))

    def again(self, series: Series) -> SeriesHandle:
        """A series of another journal, in this one.

        Raises:
            JournalFull: As `series`.
        """
        return self.series(
            name=series.name,
            kind=series.kind,
            unit=series.unit,
            description=series.description,
            meter=series.meter,
            attributes=series.attributes,
            group=series.group,
        )

    def _define(self, series: Series) -> SeriesHandle:
        id_ = next(self._series_ids)
        self._append(series_bytes(id_, series))
        handle = SeriesHandle(self.journal, id_, series, self._next_steps.get(series.identity, 0))
        return self._handles.setdefault(series.identity, handle)

    def shape(self, series: Iterable[SeriesHandle]) -> RowShape:
        """The row shape of those series in that order, made if new.

        Raises:
            JournalFull: It is new, and its definition has no place in the journal.
        """
        ids = tuple(handle.id for handle in series)
        known = self._shapes.get(ids)
        if known is not None:
            return known
        with self._lock:
            id_ = next(self._shape_ids)
            self._append(shape_bytes(id_, ids))
            return self._shapes.setdefault(ids, RowShape(self.journal, id_, len(ids)))

    def _append(self, definition: bytes) -> None:
        # What is not defined must not be used: readers would take it for something else. In a closed
        # journal nothing can be.
        outcome = self.journal.append(definition)
        if outcome not in (Outcome.STORED, Outcome.HELD, Outcome.CLOSED):
            raise JournalFull(outcome.value)
