"""What became of everything that a tracker was given: the numbers behind a receipt."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from otel_tracking.cursor import Cursor
from otel_tracking.dead_letters import DeadLetters, Key, Letter, items_of, letters_of
from otel_tracking.feed import Item
from otel_tracking.journal.format import position
from otel_tracking.records import Batch, Gone, Written
from otel_tracking.span_records import Spans

_DAMAGED: Final = "damaged in the journal"
_REMOVED: Final = "removed from the journal before"
_LAST_SLOT: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class _Given:
    """Something the tracker took and has not confirmed; or what is damaged, and never gets there."""

    end: int
    points: bool
    written: Written
    gone: bool = False
    refused: Sequence[Letter] = ()
    again: Sequence[tuple[Key, Letter]] = ()
    """What it is, if it had been refused before and was given once more."""


@dataclass(slots=True)
class Ledger:
    """Moves a cursor. Not locked: its owner is, except for `save`.

    Attributes:
        cursor: How far the tracker is, and the numbers.
        dead: What it refuses.
        resend: Whether what it refused before is to be given to it again.
        unsaved: Whether the cursor has moved since it was saved.
    """

    cursor: Cursor
    dead: DeadLetters
    resend: bool = False
    unsaved: bool = False
    _given: deque[_Given] = field(default_factory=deque)
    _counted: int = 0
    """Up to here things are given again, and count as what they were."""
    _refused: list[Letter] = field(default_factory=list)
    """Credited, and not written yet."""
    _resent: dict[Key, Letter] = field(default_factory=dict)
    """What is being given again, by its new position."""
    _resending: bool = False
    _again: int = 0
    """Points of what is being given that were given before."""

    @property
    def waiting(self) -> bool:
        """Whether something is taken and not confirmed."""
        return bool(self._given)

    def begin(self, start: int) -> None:
        """The tracker has started, and goes on after that position; 0 is a store that holds nothing."""
        cursor = self.cursor
        if start == 0:
            cursor.delivered, cursor.altered, cursor.dropped = 0, {}, {}
            cursor.stored_altered, cursor.not_stored = {}, {}
            cursor.position = cursor.given = cursor.perhaps_twice = 0
            self.dead.replace([])  # it is refused again, or not
            self.resend = False
        cursor.position = max(cursor.position, start)
        self._counted = cursor.position
        cursor.finished = ""

    def skipped(self, points: int) -> None:
        """So many points lie at or before the place where the tracker began: they are delivered."""
        if points:
            refused = sum(self.cursor.dropped.values())
            self.cursor.delivered = max(self.cursor.delivered, points - refused)

    def gives(self, item: Item, path: Path) -> None:
        """It is about to be given to a tracker that does not store exactly once: note that first."""
        cursor = self.cursor
        end = int(item.positions[-1]) if isinstance(item, Batch) else item.position
        if isinstance(item, Batch):
            self._again = int(np.searchsorted(item.positions, cursor.given, side="right"))
        cursor.given = max(cursor.given, end)
        with contextlib.suppress(OSError):  # a full disk stops no tracker
            cursor.save(path)

    def took(self, item: Item, written: Written) -> None:
        """The tracker has taken it, or refused it for good."""
        points = isinstance(item, Batch)
        self.cursor.perhaps_twice += self._again
        self._again = 0
        end = int(item.positions[-1]) if isinstance(item, Batch) else item.position
        refused: list[Letter] = []
        again: list[tuple[Key, Letter]] = []
        if not isinstance(item, Gone | Spans):
            refused = letters_of(item, written)
        if self._resending and not isinstance(item, Gone | Spans):
            of_item = letters_of(item, Written(0, rejected={"": range(written.accepted + written.refused)}))
            again = [(letter.key, self._resent[letter.key]) for letter in of_item]
            refused = [replace(self._resent[letter.key], reason=letter.reason) for letter in refused]
        self._given.append(_Given(end, points, written, refused=refused, again=again))

    def items_to_resend(self, last_segment: int, journal: Path) -> list[Item]:
        """What was refused before, to be given once more: after everything else, under positions of its own.

        Args:
            last_segment: Of the journal. The next process's records come after it, and so after these.
            journal: Its directory.
        """
        self.resend = False
        if self._refused:
            self.dead.add(self._refused)
            self._refused = []
        letters = self.dead.load()
        rows = {place: n for n, place in enumerate(dict.fromkeys(letter.position for letter in letters))}
        first = position(last_segment, _LAST_SLOT - len(rows))
        places = [first + rows[letter.position] for letter in letters]
        self._resending = True
        self._resent = {
            replace(letter, position=place).key: letter for letter, place in zip(letters, places, strict=True)
        }
        return list(items_of(letters, places, journal))

    def damaged(self, item: Gone, skipped: int) -> None:
        """What a tracker can't get any more.

        Args:
            item: What is damaged.
            skipped: Points that the journal has before, at or before the place where the tracker began.
        """
        points = item.points
        if item.began <= self.cursor.position:
            # It was read in part before it was damaged. What was taken then is not lost to the tracker.
            taken = self.cursor.delivered + sum(self.cursor.dropped.values())
            points = min(points, max(0, skipped + points - taken))
        for count, are_points in ((points, True), (item.texts, False)):
            if count:
                written = Written(0, rejected={_REMOVED if item.removed else _DAMAGED: range(count)})
                self._given.append(_Given(item.position, are_points, written, gone=True))

    def confirm(self, stored: int) -> bool:
        """Everything at or before that position is stored; whether that is more than before."""
        moved = False
        while self._given and (self._given[0].gone or self._given[0].end <= stored):
            self._credit(self._given.popleft())
            moved = self.unsaved = True
        return moved

    def _credit(self, given: _Given) -> None:
        cursor = self.cursor
        if given.end <= self._counted:
            return  # it was looked at again; it counts as what it was then
        cursor.position = given.end
        counts = cursor.dropped if given.points else cursor.not_stored
        for key, _ in given.again:
            del self._resent[key]
        for reason, count in Counter(letter.reason for _, letter in given.again).items():
            counts[reason] = counts.get(reason, 0) - count
            if counts[reason] <= 0:
                del counts[reason]
        _add(counts, {reason: len(places) for reason, places in given.written.rejected.items()})
        _add(cursor.altered if given.points else cursor.stored_altered, given.written.altered)
        if given.points:
            cursor.delivered += given.written.accepted
        self._refused += given.refused

    def save(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write dead letters, then the cursor: what comes twice is told apart when letters are read.

        Args:
            path: Of the cursor.
            state: The tracker's own.

        Raises:
            OSError: There is no space.
            TypeError, ValueError: The tracker's state is no JSON.
        """
        if self._resending:
            self.dead.replace([*self._resent.values(), *self._refused])
        elif self._refused:
            refused = self._refused
            self.dead.add(refused)
            self._refused = self._refused[len(refused) :]
        before, self.cursor.state = self.cursor.state, state
        try:
            self.cursor.save(path)
        except (TypeError, ValueError):
            self.cursor.state = before
            raise
        self.unsaved = False


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for reason, count in more.items():
        counts[reason] = counts.get(reason, 0) + count
