"""Where the whole records of a stretch of segment bytes lie.

One walk serves readers and recovery. Points and padding are found by NumPy, a run at a time; so are
rows of one shape in a row. Only a change of kind costs a Python step.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from otel_tracking.journal.format import (
    ID_BITS,
    ID_MASK,
    KIND_MASK,
    PADDING,
    POINT,
    RECORD,
    ROW,
    SLOT,
    TEXTS,
    crc32c,
)

Words = npt.NDArray[np.int64]
"""(slots, 4): word, step, time, value or CRC."""

_WORD, _TIME, _CRC = 0, 2, 3
_CRC_BITS: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Run:
    """Records of one kind that follow each other, all whole."""

    kind: int
    start: int
    """First slot."""
    stop: int
    """One past the last slot."""
    stride: int = 1
    """Slots a record."""
    id: int = 0
    """The row shape or record type; 0 for points and padding."""
    payload: int = 0
    """Bytes of a row's values or a record's text."""

    @property
    def points_each(self) -> int:
        """How many points each of the records holds."""
        return 1 if self.kind == POINT else self.payload // 8 if self.kind == ROW else 0


@dataclass(frozen=True, slots=True)
class Scan:
    """What a stretch of bytes holds."""

    runs: list[Run]
    stop: int
    """Slots from the beginning that are whole records."""
    torn: bool
    """Whether something unfinished or damaged stands at `stop`, rather than nothing."""


def words_of(data: bytes) -> Words:
    """The 64-bit words of whole slots; bytes beyond the last whole slot are left out."""
    return np.frombuffer(data, dtype="<i8", count=len(data) // SLOT * 4).reshape(-1, 4)


def scan(data: bytes, *, trusted: bool = False) -> Scan:
    """Find the whole records from the first slot on.

    Args:
        data: Slots of a segment; a record must begin at the first byte.
        trusted: Whether all of it is known to be undamaged, so that no record's CRC has to be looked at.
    """
    words = words_of(data)
    present = (words[:, _WORD] != 0) & (words[:, _TIME] != 0)
    kinds = np.where(present, words[:, _WORD] & KIND_MASK, 0)
    # Where the kind changes; payload slots show up here too, and are stepped over.
    edges: Final = [*(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    runs: list[Run] = []
    at, end = 0, len(words)
    while at < end:
        kind = int(kinds[at])
        if kind in (POINT, PADDING):
            stop = edges[bisect.bisect_right(edges, at)]
            runs.append(Run(kind, at, stop))
        elif kind in (ROW, RECORD):
            run = _long(data, words, present, at, trusted=trusted)
            if run is None:
                return Scan(runs, at, True)
            runs.append(run)
            stop = run.stop
        else:
            return Scan(runs, at, bool(words[at].any()))
        at = stop
    return Scan(runs, at, False)


def _long(data: bytes, words: Words, present: npt.NDArray[np.bool_], at: int, *, trusted: bool) -> Run | None:
    """The rows of one shape, or the one record, that begin at a slot; None if not whole."""
    word = int(words[at, _WORD])
    payload = (word >> 32) & 0xFFFFFFFF
    stride = 1 + -(-payload // SLOT)
    count = 1
    if word & KIND_MASK == ROW:
        heads = slice(at, len(words) - stride + 1, stride)
        count = _alike(words[heads, _WORD], present[heads], word)
    good = min(count, (len(words) - at) // stride)
    if not trusted:
        good = _undamaged(data, words, at, stride, good)
    if not good:
        return None
    return Run(word & KIND_MASK, at, at + good * stride, stride, (word >> 4) & ID_MASK, payload)


def _undamaged(data: bytes, words: Words, at: int, stride: int, count: int) -> int:
    """How many of the records there have the CRC that they should, from the first on."""
    view = memoryview(data)
    for record in range(count):
        head = at + record * stride
        crc = int(words[head, _CRC]) & _CRC_BITS
        if crc32c(bytes(view[(head + 1) * SLOT : (head + stride) * SLOT])) != crc:
            return record
    return count


def _alike(words: npt.NDArray[np.int64], present: npt.NDArray[np.bool_], word: int) -> int:
    """How many are that word, from the first on.

    Looks ahead in proportion to what it finds: all the rest each time is quadratic where shapes
    take turns, and those end here at the cost of no array.
    """
    count = 1
    while count < len(words) and words[count] == word and present[count]:
        ahead = slice(count, 4 * count)
        same = (words[ahead] == word) & present[ahead]
        if not same.all():
            return count + int(np.argmin(same))
        count += len(same)
    return min(count, len(words))


def points_in(runs: Iterable[Run]) -> int:
    """How many points the records hold."""
    return sum((run.stop - run.start) // run.stride * run.points_each for run in runs)


def is_text(run: Run) -> bool:
    """Whether it is the record of a text or of media, which seals count together."""
    return run.kind == RECORD and run.id in TEXTS


assert ID_BITS + 4 == 32  # the id fills the rest of the word's lower half
