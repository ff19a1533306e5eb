"""Blocks of a segment in less space, by NumPy alone: the differences in each column, in as few bytes as go.

Series, steps and times of what is recorded follow each other closely, so that a few bytes tell one from the
one before; values mostly stand as they are. `docs/journal.md` is the specification.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from otel_tracking.journal.format import SLOT, crc32c
from otel_tracking.journal.seal import BLOCK_SLOTS
from otel_tracking.journal.source import Source

_HEAD: Final = struct.Struct("<IB3x")  # crc of what follows it, period
_BEGIN: Final = struct.Struct("<qq")  # first word, least difference
_WHOLE: Final = 8
"""The width of a column whose words stand as they are."""
_WIDTHS: Final = np.array([0, 1, 2, 4, _WHOLE], dtype=np.uint8)
_SPANS: Final = np.array([0, 0xFF, 0xFFFF, 0xFFFFFFFF], dtype=np.uint64)
"""What the differences of a column may lie apart for each width."""
_LONGEST: Final = 8
_CHUNK: Final = 32
"""Blocks packed in one go. Each call of NumPy lets the training code run, and then waits for it to let go
again: with a block at a time that takes longer than the training code needs for the next segment."""


def pack(source: Source) -> list[bytes]:
    """The blocks of a segment, packed.

    Raises:
        OSError: It can't be read.
    """
    slots = source.slots
    frames: list[bytes] = []
    whole = slots // BLOCK_SLOTS
    for at in range(0, whole, _CHUNK):
        count = min(_CHUNK, whole - at)
        frames += _packed(_read(source, at * BLOCK_SLOTS, count, BLOCK_SLOTS))
    if rest := slots % BLOCK_SLOTS:
        frames += _packed(_read(source, whole * BLOCK_SLOTS, 1, rest))
    return frames


def unpack(frame: bytes, slots: int) -> bytes:
    """The slots of a block.

    Args:
        frame: What `pack` made of it.
        slots: How many they are.

    Raises:
        ValueError: The frame is damaged.
    """
    crc, period = _HEAD.unpack_from(frame)
    if crc != crc32c(frame[4:]):
        raise ValueError("the CRC of a packed block is wrong")
    columns = 4 * period
    groups = slots // period
    words = np.empty((slots, 4), dtype="<i8")
    grouped = words[: groups * period].reshape(groups, columns)
    at = _HEAD.size + columns
    for column, width in enumerate(frame[_HEAD.size : at]):
        if width == _WHOLE:
            grouped[:, column] = np.frombuffer(frame, "<i8", groups, at)
            at += groups * _WHOLE
            continue
        first, least = _BEGIN.unpack_from(frame, at)
        at += _BEGIN.size
        if width:
            steps = np.empty(groups, dtype="<i8")
            steps[0] = first
            steps[1:] = np.frombuffer(frame, f"<u{width}", groups - 1, at)
            steps[1:] += least
            at += (groups - 1) * width
            np.cumsum(steps, out=grouped[:, column])
        else:
            grouped[:, column] = np.arange(groups) * least + first
    if rest := slots - groups * period:
        words[groups * period :] = np.frombuffer(frame, "<i8", 4 * rest, at).reshape(rest, 4)
    return words.tobytes()


def _read(source: Source, slot: int, blocks: int, slots: int) -> npt.NDArray[np.int64]:
    """Words of blocks of so many slots: (blocks, slots, 4)."""
    data = source.read(slot, blocks * slots)
    if len(data) < blocks * slots * SLOT:
        raise OSError("the segment is being cut")
    return np.frombuffer(data, "<i8").reshape(blocks, slots, 4)


def _packed(blocks: npt.NDArray[np.int64]) -> list[bytes]:
    """The frames of (blocks, slots, 4) words."""
    count, slots, _ = blocks.shape
    period = _period(blocks[count // 2, :, 0])
    groups = slots // period
    columns = np.ascontiguousarray(
        blocks[:, : groups * period].reshape(count, groups, 4 * period).transpose(0, 2, 1)
    )
    if groups == 1:
        widths = np.full(columns.shape[:2], _WHOLE, dtype=np.uint8)
        least, steps = columns[:, :, 0], columns[:, :, :0]
    else:
        steps = np.diff(columns)
        least = steps.min(axis=2)
        # Modulo 2^64, as are the differences: it is right however far apart they are.
        widths = _WIDTHS[np.searchsorted(_SPANS, (steps.max(axis=2) - least).view(np.uint64))]
    packed: dict[int, Any] = {_WHOLE: columns[widths == _WHOLE]}
    for width in (1, 2, 4):
        of_width = widths == width
        packed[width] = (steps[of_width] - least[of_width][:, np.newaxis]).astype(f"<u{width}")
    taken = {width: iter(rows) for width, rows in packed.items()}
    rest = blocks[:, groups * period :]
    frames = []
    for block in range(count):
        pieces = [bytes([period, 0, 0, 0]), widths[block].tobytes()]
        for column, width in enumerate(widths[block].tolist()):
            if width != _WHOLE:
                pieces.append(_BEGIN.pack(int(columns[block, column, 0]), int(least[block, column])))
            if width:
                pieces.append(next(taken[width]).tobytes())
        pieces.append(rest[block].tobytes())
        body = b"".join(pieces)
        frames.append(struct.pack("<I", crc32c(body)) + body)
    return frames


def _period(words: npt.NDArray[np.int64]) -> int:
    """After how many slots the same record comes again, as rows of one shape do; 1 if there is no such."""
    for period in range(1, min(_LONGEST, len(words) - 1) + 1):
        if np.count_nonzero(words[period:] == words[:-period]) > 0.8 * (len(words) - period) / period:
            return period
    return 1
