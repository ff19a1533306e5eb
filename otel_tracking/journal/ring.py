"""Records that wait in memory until the journal can grow, in the order in which they were recorded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from otel_tracking.journal.format import ID_MASK, KIND_MASK, POINT, RECORD, ROW, SLOT, RecordType

CAPACITY: Final = 32 * 2**20
"""Bytes, what Python needs for each record included: some 200,000 points."""
_OVERHEAD: Final = 128
_TOLD: Final = (RecordType.TEXT, RecordType.CONFIG, RecordType.MEDIA, RecordType.SPAN)
_DEFINITIONS: Final = (RecordType.SERIES, RecordType.SHAPE, RecordType.START)


class Ring:
    """A queue that lets go of the oldest points when it is full. Definitions stay: later points need them.

    Any thread and any signal handler puts records in, one thread takes them out. No lock: what is one
    call into C happens at once, and CPython switches threads and runs handlers at calls and jumps only,
    so that no call may stand within a `+=`.

    Attributes:
        held: Whether records have to go in here, lest they overtake what waits.
    """

    def __init__(self, lose: Callable[[int], None], capacity: int = CAPACITY) -> None:
        """Make one.

        Args:
            lose: Called with how many points, texts, configs and spans had to go.
            capacity: Bytes.
        """
        self.held = False
        self._lose = lose
        self._capacity = capacity
        self._size = 0
        # Of bytes alone: a hundred thousand tuples would have the garbage collector hold everything up.
        self._definitions: deque[bytes] = deque()
        self._records: deque[bytes] = deque()

    @property
    def nearly_full(self) -> bool:
        """Whether little more fits."""
        return self._size > self._capacity * 3 // 4

    @property
    def waiting(self) -> int:
        """Points, texts, configs and spans that wait."""
        return sum(map(measurements, self._records.copy()))

    def put(self, data: bytes) -> None:
        """Take whole records."""
        size = len(data) + _OVERHEAD
        self._records.append(data)
        self._size += size
        self.held = True
        while self._size > self._capacity:
            try:
                oldest = self._records.popleft()
            except IndexError:  # there are definitions alone
                return
            size, count = len(oldest) + _OVERHEAD, measurements(oldest)
            self._size -= size
            if _defines(oldest):
                self._definitions.append(oldest)
            else:
                self._lose(count)

    def drain(self, store: Callable[[bytes], bool]) -> bool:
        """Have what waits stored, oldest first; whether all of it is.

        Args:
            store: Stores records; False if that can't be done now.
        """
        while True:
            source = self._definitions or self._records
            try:
                data = source.popleft()
            except IndexError:
                self.held = False
                if not (self._definitions or self._records):
                    self._size = 0
                    return True
                self.held = True  # someone was faster
                continue
            if not store(data):
                source.appendleft(data)
                return False
            size = len(data) + _OVERHEAD
            if source is self._records:
                self._size -= size

    def give_up(self) -> None:
        """There will be no space: what waits is lost."""
        self.drain(lambda data: self._lose(measurements(data)) is None)


def measurements(records: bytes) -> int:
    """How many points, texts, configs and spans whole records hold."""
    count = at = 0
    while at < len(records):
        word = int.from_bytes(records[at : at + 8], "little")
        kind, payload = word & KIND_MASK, word >> 32
        if kind == POINT:
            count += 1
            payload = 0  # these bits are flags
        elif kind == ROW:
            count += payload // 8
        elif kind == RECORD:
            count += (word >> 4 & ID_MASK) in _TOLD
        else:
            payload = 0
        at += SLOT * (1 - -payload // SLOT)
    return count


def _defines(records: bytes) -> bool:
    """Whether the first of some records says what later ones mean."""
    word = int.from_bytes(records[:8], "little")
    return word & KIND_MASK == RECORD and (word >> 4 & ID_MASK) in _DEFINITIONS
