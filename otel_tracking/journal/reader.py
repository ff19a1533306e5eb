"""The reading end of a journal: any number, in any process, while it is being written.

A reader never maps: a file cut short under a map is a SIGBUS, `pread` just returns less.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, Header, position, segment_name
from otel_tracking.journal.scan import Run, Words, points_in, scan, words_of

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
        self._file = -1
        self._index = -1
        self._slot = HEADER_SLOTS
        self._slots = 0
        self.torn = False
        """Whether the last `read` stopped before something unfinished or damaged."""

    def close(self) -> None:
        """Give up the descriptors."""
        for descriptor in (self._file, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._directory = -1

    @property
    def position(self) -> int:
        """Everything before this has been read."""
        return position(max(self._index, 0), self._slot)

    def read(self, slots: int = BLOCK_SLOTS) -> Block | None:
        """The next whole records; None when there are none yet.

        Raises:
            UnsupportedJournal: A segment is of another version, or its header is damaged.
        """
        while self._file >= 0 or self._open_next():
            # The size first: if the segment was cut by then, what is read afterwards is all of it.
            size = os.fstat(self._file).st_size // SLOT
            finished = size < self._slots
            block = self._read(slots, min(size, self._slots))
            if block is not None:
                return block
            if not (finished or self._slot >= self._slots) or not self._open_next():
                return None
        return None

    def _open_next(self) -> bool:
        index = self._index + 1
        try:
            file = os.open(segment_name(index), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:
            return False
        try:
            header = Header.unpack(os.pread(file, HEADER_SLOTS * SLOT, 0))
        except UnsupportedJournal as error:
            os.close(file)
            raise UnsupportedJournal(f"{segment_name(index)}: {error}") from None
        if self._file >= 0:
            os.close(self._file)
        self._file, self._index = file, index
        self._slots, self._slot = header.slots, HEADER_SLOTS
        return True

    def _read(self, slots: int, end: int) -> Block | None:
        while self._slot < end:
            count = min(slots, end - self._slot)
            data = os.pread(self._file, count * SLOT, self._slot * SLOT)
            found = scan(data)
            self.torn = found.torn
            if found.stop:
                return self._block(found.runs, found.stop)
            if not found.torn or count == end - self._slot:
                return None
            slots *= 4  # the record is longer than what was read
        return None

    def _block(self, runs: list[Run], stop: int) -> Block:
        # Read once more: the commit words were seen in the first copy, but a copy keeps no order,
        # so that only a later one is sure to have the payload that belongs to them.
        data = os.pread(self._file, stop * SLOT, self._slot * SLOT)
        first = position(self._index, self._slot)
        self._slot += stop
        return Block(data, words_of(data), runs, first, first + stop)


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
                block = self._reader.read()
                if block is None:
                    break
                self._count += points_in(block.runs)
            return self._count

    def close(self) -> None:
        """Give up the journal's descriptors."""
        self._reader.close()
