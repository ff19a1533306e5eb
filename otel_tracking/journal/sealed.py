"""Reading a sealed segment: what its seal vouches for, and past what is damaged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from otel_tracking.journal.format import ID_MASK, KIND_MASK, ROW, SLOT, TEXTS, crc32c
from otel_tracking.journal.scan import Run, is_text, points_in, scan
from otel_tracking.journal.seal import BLOCK_SLOTS, NOTHING_BEGINS, Seal
from otel_tracking.journal.source import Source


@dataclass(frozen=True, slots=True)
class Stretch:
    """Whole records of a sealed segment, and what was lost after them."""

    data: bytes
    runs: list[Run]
    first: int
    """The slot of the segment where they begin."""
    end: int
    """The slot where reading goes on."""
    lost: int = 0
    """Points that were here and are damaged."""
    lost_texts: int = 0
    """Texts, likewise."""


class SealedSegment:
    """One sealed segment. A record counts as read only if the block in which it begins is undamaged."""

    def __init__(self, source: Source, seal: Seal) -> None:
        self._source: Final = source
        self.seal: Final = seal
        self._fine: Final[dict[int, bool]] = {}

    def fine(self, block: int) -> bool:
        """Whether a block is as it was when it was sealed."""
        if block not in self._fine:
            data = self._block(block)
            self._fine[block] = (
                len(data) == self._slots(block) * SLOT and crc32c(data) == self.seal.crcs[block]
            )
        return self._fine[block]

    def read(self, slot: int, slots: int) -> Stretch | None:
        """The next whole records from a slot on where one begins; None at the end.

        Args:
            slot: Where the last stretch ended.
            slots: How many to take at most, unless one record is longer.
        """
        if slot >= self.seal.slots:
            return None
        first = slot // BLOCK_SLOTS
        if not self.fine(first):
            return self._past(slot)
        last = first
        while (last + 1) * BLOCK_SLOTS < min(slot + slots, self.seal.slots) and self.fine(last + 1):
            last += 1
        end = min(slot + slots, (last + 1) * BLOCK_SLOTS, self.seal.slots)
        data = self._source.read(slot, end - slot)
        found = scan(data, trusted=True)
        if found.stop:
            return Stretch(data[: found.stop * SLOT], found.runs, slot, slot + found.stop)
        return self._long(slot)

    def _long(self, slot: int) -> Stretch:
        """The record at a slot of an undamaged block, which goes on in other blocks."""
        word = int.from_bytes(self._source.read(slot, 1)[:8], "little")
        end = slot + 1 + -(-(word >> 32) // SLOT)
        data = self._source.read(slot, end - slot)
        if runs := scan(data).runs:
            return Stretch(data, runs, slot, end)
        if word & KIND_MASK == ROW:
            return Stretch(b"", [], slot, end, lost=(word >> 32) // 8)
        data, runs = self._copies(slot, slot + 1)
        was_text = (word >> 4) & ID_MASK in TEXTS
        return Stretch(data, runs, slot, end, lost_texts=int(was_text and not runs))

    def _past(self, slot: int) -> Stretch:
        """What is left of the damaged block that holds a slot."""
        block = slot // BLOCK_SLOTS
        begins = self.seal.firsts[block + 1 :]
        begins = begins[begins != NOTHING_BEGINS]
        end = max(slot + 1, int(begins[0])) if len(begins) else self.seal.slots
        left, whole = b"", 0
        if len(present := self._block(block)) < self._slots(block) * SLOT:
            # The file was cut here, which damages nothing of what is left.
            left = present[(slot - block * BLOCK_SLOTS) * SLOT :]
            whole = scan(left).stop
        found = scan(left[: whole * SLOT]).runs
        data, copies = self._copies(slot, (block + 1) * BLOCK_SLOTS, left[: whole * SLOT])
        return Stretch(
            data,
            found + copies,
            slot,
            end,
            lost=int(self.seal.points[block]) - points_in(found),
            lost_texts=int(self.seal.texts[block]) - sum(is_text(run) for run in found),
        )

    def _copies(self, slot: int, end: int, present: bytes = b"") -> tuple[bytes, list[Run]]:
        """What is present of some slots, then the copied records where they were."""
        data, runs = bytearray(present), []
        for place, copy in self.seal.copies_between(slot + len(present) // SLOT, end):
            at = max(place - slot, len(data) // SLOT)  # what was added to a seal has no place of its own
            data = data.ljust(at * SLOT, b"\0") + copy
            (run,) = scan(copy).runs
            runs.append(replace(run, start=at, stop=at + run.stride))
        return bytes(data), runs

    def _block(self, block: int) -> bytes:
        return self._source.read(block * BLOCK_SLOTS, self._slots(block))

    def _slots(self, block: int) -> int:
        """How many slots of a block hold records."""
        return min(BLOCK_SLOTS, self.seal.slots - block * BLOCK_SLOTS)
