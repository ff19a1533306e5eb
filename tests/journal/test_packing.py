"""Packed blocks give back every bit, whatever stands in them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from otel_tracking.journal import packing
from otel_tracking.journal.format import SLOT
from otel_tracking.journal.seal import BLOCK_SLOTS

DICE = np.random.default_rng(1)
WORDS = np.iinfo(np.int64)


def points(slots: int, *, series: int = 1) -> npt.NDArray[np.int64]:
    """(slots, 4): as a loop records them."""
    at = np.arange(slots)
    word = (at % series) << 4 | 1
    time = np.cumsum(DICE.integers(500, 60_000, slots))
    values = DICE.random(slots).view(np.int64)
    return np.stack([word, at // series, time, values], axis=1)


def rows(slots: int, stride: int, values: int) -> npt.NDArray[np.int64]:
    """(slots, 4): rows of that many values, of one shape."""
    count = -(-slots // stride)
    of_rows = np.zeros((count, stride * 4), dtype=np.int64)
    of_rows[:, 0] = values * 8 << 32 | 2
    of_rows[:, 1] = np.arange(count)
    of_rows[:, 2] = np.cumsum(DICE.integers(500, 60_000, count))
    of_rows[:, 3] = DICE.integers(0, 2**32, count)
    of_rows[:, 4 : 4 + values] = DICE.random((count, values)).view(np.int64)
    return of_rows.reshape(-1, 4)[:slots]


class Held:
    """Slots in memory."""

    def __init__(self, words: npt.NDArray[np.int64]) -> None:
        self.data = words.astype("<i8").tobytes()

    @property
    def slots(self) -> int:
        return len(self.data) // SLOT

    def read(self, slot: int, count: int) -> bytes:
        return self.data[slot * SLOT : (slot + count) * SLOT]

    def close(self) -> None:
        """Nothing is open."""


EXTREMES = np.array([WORDS.min, WORDS.max, 0, -1, 1], dtype=np.int64)
SLOTS = [1, 2, 3, 7, BLOCK_SLOTS - 1, BLOCK_SLOTS, BLOCK_SLOTS + 1, 70 * BLOCK_SLOTS + 5]


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize(
    "fill",
    [
        lambda n: points(n),
        lambda n: points(n, series=3),
        lambda n: points(n, series=300),
        lambda n: rows(n, 2, 2),
        lambda n: rows(n, 4, 10),
        lambda n: rows(n, 9, 32),
        lambda n: np.zeros((n, 4), dtype=np.int64),
        lambda n: DICE.integers(WORDS.min, WORDS.max, (n, 4), endpoint=True),
        lambda n: DICE.choice(EXTREMES, (n, 4)),
        lambda n: np.cumsum(DICE.choice([0, 255], (n, 4)), axis=0),
        lambda n: np.cumsum(DICE.choice([-1, 255], (n, 4)), axis=0),
        lambda n: np.cumsum(DICE.choice([0, 2**16 - 1], (n, 4)), axis=0),
        lambda n: np.cumsum(DICE.choice([0, 2**32 - 1], (n, 4)), axis=0),
        lambda n: np.cumsum(DICE.choice([0, 2**32], (n, 4)), axis=0),
    ],
    ids=[
        "points", "of 3 series", "of 300", "rows of 2", "of 10", "of 32", "zeros", "random", "extremes",
        "one byte", "one and a bit", "two bytes", "four bytes", "four and a bit",
    ],
)  # fmt: skip
def test_what_is_packed_comes_back(slots: int, fill: Callable[[int], npt.NDArray[np.int64]]) -> None:
    held = Held(fill(slots))
    frames = packing.pack(held)
    assert len(frames) == -(-slots // BLOCK_SLOTS)
    sizes = [min(BLOCK_SLOTS, slots - at) for at in range(0, slots, BLOCK_SLOTS)]
    assert b"".join(map(packing.unpack, frames, sizes)) == held.data
    # A head, and the widths: nothing takes noticeably more space than it did.
    assert sum(map(len, frames)) <= len(held.data) + 40 * len(frames)


@pytest.mark.parametrize(
    ("words", "each", "most"),
    [
        (points(BLOCK_SLOTS), 1, 11.0),
        (points(BLOCK_SLOTS, series=3), 1, 13.0),
        (points(BLOCK_SLOTS, series=300), 1, 15.0),
        (rows(BLOCK_SLOTS, 2, 2), 1, 16.0),
        (rows(BLOCK_SLOTS, 4, 10), 2.5, 11.0),
    ],
    ids=["points", "of 3 series", "of 300", "rows of 2", "of 10"],
)
def test_bytes_a_point(words: npt.NDArray[np.int64], each: float, most: float) -> None:
    (frame,) = packing.pack(Held(words))
    assert len(frame) / (len(words) * each) < most


def test_a_damaged_frame_is_refused() -> None:
    (frame,) = packing.pack(Held(points(500)))
    dice = random.Random(1)
    for _ in range(300):
        bit = dice.randrange(len(frame) * 8)
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ValueError, struct.error)):
            packing.unpack(bytes(damaged), 500)
    for end in range(0, len(frame), 97):
        with pytest.raises((ValueError, struct.error)):
            packing.unpack(frame[:end], 500)
