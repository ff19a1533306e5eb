"""The reading end of a journal: any number, in any process, while it is being written."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal import seal
from otel_tracking.journal.compressed import open_source
from otel_tracking.journal.format import HEADER_SLOTS, Header, never_written, position, segment_name
from otel_tracking.journal.recovery import segments
from otel_tracking.journal.scan import Run, Words, points_in, scan, words_of
from otel_tracking.journal.sealed import SealedSegment
from otel_tracking.journal.source import Missing, Source

BLOCK_SLOTS: Final = 16 * 2**10
"""512 KiB, which stays in a processor's cache: what one `read` takes at most, unless one record is larger."""


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records as they lie in a segment."""

    data: bytes
    words: Words
    """(slots, 4): the same bytes as 64-bit words."""
    runs: list[Run]
    first: int
    """Position of slot 0 of `data`."""
    end: int
    """Position one past the last record: where the next `read` goes on."""
    lost: int = 0
    """Points that were recorded after these records, and are damaged."""
    lost_texts: int = 0
    """Texts, likewise."""
    removed: bool = False
    """Whether they were removed, rather than damaged."""

    @property
    def points(self) -> int:
        """How many were recorded here, damaged ones included."""
        return points_in(self.runs) + self.lost


class JournalReader:
    """Reads a journal from its beginning to its end, then what is appended.

    Args:
        directory: The journal's directory, or a descriptor of it (which is duplicated).

    Raises:
        OSError: There is no such directory.
    """

    def __init__(self, directory: Path | int) -> None:
        if isinstance(directory, int):
            self._directory = os.dup(directory)
        else:
            self._directory = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        self._source: Source | None = None
        self._sealed: SealedSegment | None = None
        self._index = -1
        self._slot = HEADER_SLOTS
        self._slots = 0
        self.torn = False
        """Whether the last `read` stopped before something unfinished or damaged."""

    def close(self) -> None:
        """Give up the descriptors."""
        self._leave()
        if self._directory >= 0:
            os.close(self._directory)
        self._directory = -1

    def _leave(self) -> None:
        if self._source is not None:
            self._source.close()
        self._source = self._sealed = None

    def segments(self) -> list[int]:
        """The indices of the segments that there are now, rising."""
        return segments(self._directory)

    def go_to(self, segment: int) -> None:
        """Have the next `read` begin at the beginning of a segment."""
        self._leave()
        self._index = segment - 1

    @property
    def position(self) -> int:
        """Everything before this has been read."""
        return position(max(self._index, 0), self._slot)

    def read(self, slots: int = BLOCK_SLOTS) -> Block | None:
        """The next whole records; None when there are none yet.

        Raises:
            UnsupportedJournal: A segment is of another version, or its header is damaged.
        """
        while self._source is not None or self._open_next():
            assert self._source is not None
            if self._sealed is not None:
                block, finished = self._read_sealed(self._sealed, slots), True
            else:
                # The size first: if the segment was cut by then, what is read afterwards is all of it.
                size = self._source.slots
                finished = size < self._slots
                block = self._read(self._source, slots, min(size, self._slots))
            if block is not None:
                return block
            if not (finished or self._slot >= self._slots) or not self._open_next():
                return None
        return None

    def pass_sealed(self) -> int | None:
        """Go to the end of the next segment without reading it, if it is sealed; how many points it has."""
        at_border = self._source is None or (self._sealed is not None and self._slot >= self._slots)
        if not at_border or not self._open_next() or self._sealed is None:
            return None
        self._slot = self._slots
        return int(self._sealed.seal.points.sum())

    def _open_next(self) -> bool:
        if self._open(self._index + 1):
            return True
        # They are made in order: one that is missing before another was taken away.
        later = [index for index in self.segments() if index > self._index]
        return bool(later) and self._open(later[0])

    def _open(self, index: int) -> bool:
        source: Source
        known = None
        try:
            source = open_source(self._directory, index)
        except FileNotFoundError:
            known = seal.load(self._directory, index)
            if known is None:
                return False
            source = Missing(removed=known.forgotten)
        except UnsupportedJournal:
            known = seal.load(self._directory, index)
            if known is None:
                raise
            source = Missing(removed=False)  # the seal says what that loses
        try:
            known = known or seal.load(self._directory, index)
            slots = _size_of(source) if known is None else known.slots
        except UnsupportedJournal as error:
            source.close()
            raise UnsupportedJournal(f"{segment_name(index)}: {error}") from None
        self._leave()
        self._source, self._index = source, index
        self._sealed = None if known is None else SealedSegment(source, known)
        self._slots, self._slot = slots, HEADER_SLOTS
        return True

    def _read_sealed(self, segment: SealedSegment, slots: int) -> Block | None:
        self.torn = False
        stretch = segment.read(self._slot, slots)
        if stretch is None:
            return None
        first, self._slot = position(self._index, self._slot), stretch.end
        end = position(self._index, self._slot)
        return Block(
            stretch.data,
            words_of(stretch.data),
            stretch.runs,
            first,
            end,
            stretch.lost,
            stretch.lost_texts,
            removed=isinstance(self._source, Missing) and self._source.removed,
        )

    def _read(self, source: Source, slots: int, end: int) -> Block | None:
        while self._slot < end:
            count = min(slots, end - self._slot)
            found = scan(source.read(self._slot, count))
            self.torn = found.torn
            if found.stop:
                return self._block(source, found.runs, found.stop)
            if not found.torn or count == end - self._slot:
                return None
            slots *= 4  # the record is longer than what was read
        return None

    def _block(self, source: Source, runs: list[Run], stop: int) -> Block:
        # Read once more: the commit words were seen in the first copy, but a copy keeps no order,
        # so that only a later one is sure to have the payload that belongs to them.
        data = source.read(self._slot, stop)
        first = position(self._index, self._slot)
        self._slot += stop
        return Block(data, words_of(data), runs, first, first + stop)


def _size_of(source: Source) -> int:
    """The slots that an open segment may have."""
    head = source.read(0, HEADER_SLOTS)
    return HEADER_SLOTS if never_written(head) else Header.unpack(head).slots


class PointCounter:
    """Counts the points of a journal, again and again, reading only what is new."""

    def __init__(self, directory: Path | int) -> None:
        self._reader: Final = JournalReader(directory)
        self._count = 0
        self._lock = threading.RLock()  # a receipt may be asked for in any thread

    def count(self, *, until: int | None = None) -> int:
        """Points recorded until now.

        Args:
            until: Stop at that position, or soon after: a writer at full speed is never caught up with.
        """
        with self._lock:
            while until is None or self._reader.position < until:
                sealed = self._reader.pass_sealed()
                if sealed is not None:
                    self._count += sealed
                elif (block := self._reader.read()) is not None:
                    self._count += block.points
                else:
                    break
            return self._count

    def close(self) -> None:
        """Give up the journal's descriptors."""
        self._reader.close()
