"""How long a journal keeps what trackers have."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_tracking import settings
from otel_tracking.cursor import Cursor
from otel_tracking.errors import ConfigurationError, TrackingError
from otel_tracking.journal.forgetting import forget, sizes
from otel_tracking.journal.format import position

_UNITS: Final = ("", "K", "M", "G", "T")
_LEFT_ALONE: Final = 2
"""The newest segments of a journal that is written: readers in its process may be in them."""


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept: everything, unless one of these says otherwise."""

    until_delivered: bool = False
    """Remove what every tracker of the run has stored."""
    cap: int | None = None
    """Bytes of a rank's journal; of more, the oldest segments go, whether they are delivered or not."""

    @classmethod
    def parse(cls, text: str) -> Keep:
        """`always`, `delivered`, or a size: `500MB`, `10GB`.

        Raises:
            ConfigurationError: It is something else.
        """
        if text == "always":
            return cls()
        if text == "delivered":
            return cls(until_delivered=True)
        size = settings.SIZE.fullmatch(text.strip())
        if size is None:
            raise ConfigurationError(
                f"keep can't be {text!r:.80}: known are always, delivered, and a size such as 10GB"
            )
        return cls(cap=int(float(size[1]) * 1000 ** _UNITS.index(size[2].upper())))

    def __str__(self) -> str:
        """What `parse` reads."""
        return "delivered" if self.until_delivered else "always" if self.cap is None else str(self.cap)

    @property
    def everything(self) -> bool:
        """Whether nothing is ever removed."""
        return not self.until_delivered and self.cap is None


def apply(journal: Path, keep: Keep, *, ended: bool) -> None:
    """Remove the segments of a journal that are not to be kept, oldest first. Never raises.

    Args:
        journal: `<run>/journal/rank-<k>`; the cursors of its trackers lie in `<run>/cursors`.
        keep: What is kept.
        ended: Whether nothing is written into it any more.
    """
    if keep.everything:
        return
    with contextlib.suppress(OSError, TrackingError):
        directory = os.open(journal, os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = sizes(directory)
            delivered = _delivered(journal)
            total = sum(there.values())
            for index in list(there)[: len(there) if ended else -_LEFT_ALONE]:
                too_much = keep.cap is not None and total > keep.cap
                if not too_much and not (keep.until_delivered and position(index + 1, 0) <= delivered):
                    break
                forget(directory, index)
                total -= there[index]
        finally:
            os.close(directory)


def _delivered(journal: Path) -> int:
    """Everything before that position is stored in every tracker; 0 if there is none, or one is not known."""
    found = []
    for path in (journal.parent.parent / "cursors").glob(f"{journal.name}-*.json"):
        try:
            cursor = Cursor.load(path)
        except TrackingError:
            return 0
        if cursor is None:
            return 0
        found.append(position(2**31, 0) if cursor.done_with(journal) else cursor.position)
    return min(found, default=0)
