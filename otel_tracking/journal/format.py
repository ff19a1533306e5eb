"""The bytes of a journal segment. `docs/journal.md` is the specification; this is its code.

A segment is a header of two slots followed by records, each a whole number of 32-byte slots::

    point    word  step  time  value        one slot
    row      word  step  time  crc, span    then the values of one `log` call, padded with zeros
    record   word  step  time  crc          then a JSON text, padded with zeros
    padding  15    0     1     0            one slot; the segment holds nothing more

`word` is a u64: kind in bits 0-3, id in bits 4-31 (series, row shape, or record type), and in the
upper half a point's flags and the number of its span, or the payload's bytes. Everything is little-endian.

A slot is there when its `word` and its `time` are not zero: each 16-byte half holds one of them, so
a half that a killed process never stored is seen. Longer records carry the CRC32C of their payload.
"""

from __future__ import annotations

import enum
import struct
import time
from dataclasses import dataclass
from typing import Final

import google_crc32c

from otel_tracking.errors import UnsupportedJournal

SLOT: Final = 32
HEADER_SLOTS: Final = 2
VERSION: Final = 1
MAGIC: Final = b"OTELTRK\x00"

_HEADER: Final = struct.Struct("<8sIIQQI24xI")  # magic version slots index created_ns rank, crc of it

POINT: Final = 1
ROW: Final = 2
RECORD: Final = 3
PADDING: Final = 15
KIND_MASK: Final = 0xF
ID_BITS: Final = 28
ID_MASK: Final = (1 << ID_BITS) - 1

FLAG_AUTOMATIC_STEP: Final = 1 << 32
"""On a point's word: the step is a count, no one gave it."""
FLAG_INTEGER: Final = 1 << 33
"""On a point's word: the value was an int."""
SPAN_SHIFT: Final = 34
"""Above it on a point's word: the number of the span in which it was recorded, 0 if in none. A row has it in
the upper half of the slot's last word, above its CRC."""
SPAN_NUMBERS: Final = 1 << 30

PADDING_SLOT: Final = struct.pack("<QqqQ", PADDING, 0, 1, 0)

pack_point: Final = struct.Struct("<Qqqd").pack
"""(word, step, time, value) -> the 32 bytes of a point."""
pack_head: Final = struct.Struct("<QqqQ").pack
"""(word, step, time, crc) -> the first slot of a row or record."""
crc32c: Final = google_crc32c.value

STEP_MIN: Final = -(2**63)
STEP_MAX: Final = 2**63 - 1


class RecordType(enum.IntEnum):
    """What a JSON record is about."""

    SERIES = 1
    """Defines a series id; stands before the first point of it."""
    SHAPE = 2
    """Defines a row shape: the series ids of its columns."""
    CONFIG = 3
    TEXT = 4
    OPTIONS = 5
    """`log_kwargs` of the row, point or text that follows it next from the same call."""
    START = 6
    """A process begins to write: who it is, under which resource."""
    END = 7
    """The run ended, with that status."""
    GONE = 8
    """Made by readers, never written: what was recorded there is damaged."""
    REWIND = 9
    """Training goes on from a step again: what was recorded at that step and later is void."""
    STATE = 10
    """In the seal of a segment that was removed: what is known of it that later segments need."""
    MEDIA = 11
    """An image, a table, a file, ...; what it consists of lies in `media/`, named by its hash."""
    SPAN = 12
    """A finished span, whose payload is no JSON alone."""
    SPAN_NUMBER = 13
    """What the numbers of spans on points mean; its payload is no JSON."""


TEXTS: Final = frozenset({RecordType.TEXT, RecordType.MEDIA})
"""What seals count as texts."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first two slots of a segment say."""

    index: int
    """Which segment of its journal, from 0."""
    slots: int
    """Its size in slots, the header's included, unless it was cut when it was closed."""
    created: int
    """Nanoseconds since the epoch."""
    rank: int

    def pack(self) -> bytes:
        """The 64 bytes."""
        head = _HEADER.pack(MAGIC, VERSION, self.slots, self.index, self.created, self.rank, 0)[:-4]
        return head + struct.pack("<I", crc32c(head))

    @classmethod
    def unpack(cls, data: bytes) -> Header:
        """Read the first 64 bytes of a segment.

        Raises:
            UnsupportedJournal: They are no header, are damaged, or of another version.
        """
        if len(data) < _HEADER.size or not data.startswith(MAGIC):
            raise UnsupportedJournal("not a journal segment: it does not begin with OTELTRK")
        _, version, slots, index, created, rank, crc = _HEADER.unpack(data[: _HEADER.size])
        if version != VERSION:
            raise UnsupportedJournal(f"journal version {version}; this release reads version {VERSION}")
        if crc != crc32c(data[: _HEADER.size - 4]):
            raise UnsupportedJournal("the segment's header is damaged: its CRC does not match")
        return cls(index, slots, created, rank)


def never_written(head: bytes) -> bool:
    """Whether a segment begins with nothing, and so holds nothing: the machine died before it was stored.

    Args:
        head: The first 64 bytes of it, or what there is of them.
    """
    return not any(head[: _HEADER.size])


def record_bytes(type_: RecordType, payload: bytes, *, step: int = 0, time_ns: int | None = None) -> bytes:
    """A whole JSON record."""
    word = RECORD | type_ << 4 | len(payload) << 32
    now = time.time_ns() if time_ns is None else time_ns
    slots = payload + bytes(-len(payload) % SLOT)
    return pack_head(word, step, now or 1, crc32c(slots)) + slots


def position(segment: int, slot: int) -> int:
    """Where a record begins, as one rising number: the segment's index, then the slot in it."""
    return segment << 32 | slot


def segment_name(index: int) -> str:
    """The file of that segment."""
    return f"{index:08d}.segment"


def segment_index(name: str) -> int | None:
    """The index in the name of a segment's file, its seal included; None if it is no such name."""
    stem, _, suffix = name.partition(".")
    if suffix not in ("segment", "segment.packed", "segment.zst", "seal") or not (
        stem.isascii() and stem.isdigit()
    ):
        return None
    return int(stem) if f"{int(stem):08d}" == stem else None
