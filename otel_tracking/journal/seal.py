"""What is noted of a segment into which nothing more is written, so that damage shows and can be passed.

A seal is a small file beside the segment: of each block of 64 KiB its CRC, where the first record that
begins in it lies, and how much it holds; and a copy of every JSON record that is no text, as a series
whose definition is lost would take all its points along. `docs/journal.md` is the specification.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from otel_tracking.journal.format import (
    HEADER_SLOTS,
    RECORD,
    SLOT,
    RecordType,
    crc32c,
    segment_index,
    segment_name,
)
from otel_tracking.journal.scan import Run, is_text, scan
from otel_tracking.journal.source import PlainSource, Source

BLOCK_SLOTS: Final = 2048
"""64 KiB."""
NOTHING_BEGINS: Final = 0xFFFFFFFF
"""As `first` of a block that lies within one record."""

_MAGIC: Final = b"OTELSEA\x00"
_VERSION: Final = 1
# magic version block_slots segment slots blocks copies rest_crc, crc of it
_HEADER: Final = struct.Struct("<8sIIQQIII16xI")
_BLOCK: Final = np.dtype([("crc", "<u4"), ("first", "<u4"), ("points", "<u4"), ("texts", "<u4")])
_COPY: Final = np.dtype("<u4")
_NOT_COPIED: Final = (RecordType.OPTIONS, RecordType.SPAN, RecordType.SPAN_NUMBER)
_PAUSE: Final = 0.0002
"""Between blocks, for the training code's threads."""


@dataclass(frozen=True, slots=True)
class Seal:
    """What a seal says."""

    segment: int
    """Which segment of its journal."""
    slots: int
    """Where its whole records end; the header's slots included."""
    crcs: npt.NDArray[np.uint32]
    """(blocks,) CRC32C of each block; of the last one, as far as `slots`."""
    firsts: npt.NDArray[np.uint32]
    """(blocks,) the slot in the segment of the first record that begins in each; or `NOTHING_BEGINS`."""
    points: npt.NDArray[np.uint32]
    """(blocks,) points in the records that begin in each."""
    texts: npt.NDArray[np.uint32]
    """(blocks,) texts that begin in each."""
    places: npt.NDArray[np.uint32]
    """(copies,) the slot in the segment of each record that is copied, rising."""
    copies: bytes
    """These records."""

    @property
    def forgotten(self) -> bool:
        """Whether the segment was removed on purpose: that left a record at its last slot."""
        return len(self.places) > 0 and int(self.places[-1]) == self.slots - 1

    def pack(self) -> bytes:
        """The bytes of the file."""
        blocks = np.zeros(len(self.crcs), dtype=_BLOCK)
        blocks["crc"], blocks["first"] = self.crcs, self.firsts
        blocks["points"], blocks["texts"] = self.points, self.texts
        rest = blocks.tobytes() + self.places.astype(_COPY).tobytes() + self.copies
        counts = (self.segment, self.slots, len(blocks), len(self.places))
        head = _HEADER.pack(_MAGIC, _VERSION, BLOCK_SLOTS, *counts, crc32c(rest), 0)[:-4]
        return head + struct.pack("<I", crc32c(head)) + rest

    @classmethod
    def unpack(cls, data: bytes) -> Seal | None:
        """What `pack` made; None if these are not such bytes, or are damaged."""
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            return None
        _, version, block_slots, segment, slots, blocks, copies, rest_crc, crc = _HEADER.unpack_from(data)
        if crc != crc32c(data[: _HEADER.size - 4]) or (version, block_slots) != (_VERSION, BLOCK_SLOTS):
            return None
        rest = data[_HEADER.size :]
        if rest_crc != crc32c(rest):
            return None
        table = np.frombuffer(rest, _BLOCK, blocks)
        places = np.frombuffer(rest, _COPY, copies, table.nbytes)
        return cls(
            segment,
            slots,
            table["crc"],
            table["first"],
            table["points"],
            table["texts"],
            places,
            rest[table.nbytes + places.nbytes :],
        )

    def copies_between(self, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
        """The copied records that begin in those slots of the segment, each with its slot."""
        first, last = np.searchsorted(self.places, (begin, end))
        if first < last:
            runs = scan(self.copies).runs[first:last]
            for place, run in zip(self.places[first:last].tolist(), runs, strict=True):
                yield place, self.copies[run.start * SLOT : run.stop * SLOT]


def seal_name(index: int) -> str:
    """The file that seals a segment."""
    return f"{index:08d}.seal"


def sealed(directory: int) -> list[int]:
    """The indices of the segments that have a seal, rising."""
    names = (name for name in os.listdir(directory) if name.endswith(".seal"))
    return sorted(index for name in names if (index := segment_index(name)) is not None)


def exists(directory: int, index: int) -> bool:
    """Whether a segment has a seal, damaged or not."""
    return os.access(seal_name(index), os.F_OK, dir_fd=directory)


def load(directory: int, index: int) -> Seal | None:
    """The seal of a segment; None if it has none, or a damaged one.

    Args:
        directory: Descriptor of the journal's directory.
        index: Of the segment.
    """
    try:
        descriptor = os.open(seal_name(index), os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        seal = Seal.unpack(file.read())
    return seal if seal is not None and seal.segment == index else None


def make(directory: int, index: int, *, trusted: bool, source: Source | None = None) -> Seal:
    """Seal a segment into which nothing more is written.

    Args:
        directory: Descriptor of the journal's directory.
        index: Of the segment.
        trusted: Whether this process has written it, so that what is there is whole.
        source: Of it, which is closed; None if it is not compressed.

    Raises:
        OSError: It can't be read, or there is no space.
    """
    source = source or PlainSource(directory, segment_name(index))
    try:
        seal = _build(source, index, trusted=trusted)
    finally:
        source.close()
    write(directory, seal)
    return seal


def write(directory: int, seal: Seal) -> None:
    """Have a seal, in place of the one that is there, if there is one.

    Args:
        directory: Descriptor of the journal's directory.
        seal: The seal.

    Raises:
        OSError: There is no space.
    """
    index = seal.segment
    draft = f"{seal_name(index)}.draft"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(seal.pack())
        os.rename(draft, seal_name(index), src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise


def _build(source: Source, index: int, *, trusted: bool) -> Seal:
    blocks = -(-source.slots // BLOCK_SLOTS)
    points = np.zeros(blocks, dtype=np.int64)
    texts = np.zeros(blocks, dtype=np.int64)
    firsts = np.full(blocks, NOTHING_BEGINS, dtype=np.int64)
    places: list[int] = []
    copies: list[bytes] = []
    at, chunk = HEADER_SLOTS, BLOCK_SLOTS
    while at < source.slots:
        data = source.read(at, chunk)
        found = scan(data, trusted=trusted)
        _count(found.runs, at, firsts, points)
        for run in found.runs:
            if is_text(run):
                texts[(at + run.start) // BLOCK_SLOTS] += 1
            elif run.kind == RECORD and run.id not in _NOT_COPIED:
                places.append(at + run.start)
                copies.append(data[run.start * SLOT : run.stop * SLOT])
        at += found.stop
        if found.stop:
            chunk = BLOCK_SLOTS
        elif found.torn and len(data) == chunk * SLOT:
            chunk *= 4  # the record is longer than what was read
        else:
            break
        if trusted:
            time.sleep(_PAUSE)
    crcs = _crcs(source, at)
    count = len(crcs)
    return Seal(
        index,
        at,
        crcs,
        firsts[:count].astype(np.uint32),
        points[:count].astype(np.uint32),
        texts[:count].astype(np.uint32),
        np.array(places, dtype=np.uint32),
        b"".join(copies),
    )


def _count(runs: list[Run], at: int, firsts: npt.NDArray[np.int64], points: npt.NDArray[np.int64]) -> None:
    """Note of some runs from a slot on where their records begin, and how many points they hold."""
    starts = [np.arange(at + run.start, at + run.stop, run.stride) for run in runs]
    if not starts:
        return
    each = np.repeat([run.points_each for run in runs], [len(of_run) for of_run in starts])
    of_record = np.concatenate(starts)
    np.minimum.at(firsts, of_record // BLOCK_SLOTS, of_record)
    np.add.at(points, of_record // BLOCK_SLOTS, each)


def _crcs(source: Source, slots: int) -> npt.NDArray[np.uint32]:
    starts = range(0, slots, BLOCK_SLOTS)
    return np.array([crc32c(source.read(at, min(BLOCK_SLOTS, slots - at))) for at in starts], dtype=np.uint32)
