"""What a tracker raised, and how long to leave it alone."""

from __future__ import annotations

import random
from typing import Final

_BACKOFF_FIRST: Final = 0.2
_BACKOFF_MOST: Final = 30.0
_BACKOFF_WAITED_FOR: Final = 1.0
"""The longest pause between tries while someone waits."""
_MAX_REASONS: Final = 50
_OPEN_AFTER: Final = 5
"""Failures in a row."""
_DEFECTS: Final = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ImportError,
    AssertionError,
    RecursionError,
    NotImplementedError,
)
"""What no later try mends: it is about what is given, or about the tracker's code."""


class Failures:
    """Counts by text. Not locked: its owner is.

    Attributes:
        reasons: What was raised, and how often.
        in_a_row: How many since the last success.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, int] = {}
        self.in_a_row = 0

    @property
    def open(self) -> bool:
        """Whether the breaker is open: after so many failures a tracker gets one try a pause, no more."""
        return self.in_a_row >= _OPEN_AFTER

    def hopeless(self, error: BaseException) -> bool:
        """Whether to give up a text, a config or media that the tracker chokes on again and again."""
        return self.open and isinstance(error, _DEFECTS)

    def add(self, error: BaseException | str) -> str | None:
        """Count one; its text, if that is the first of this text."""
        reason = error if isinstance(error, str) else f"{type(error).__name__}: {error}"[:300]
        self.in_a_row += 1
        if reason not in self.reasons and len(self.reasons) >= _MAX_REASONS:
            reason = "other errors"
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        return reason if self.reasons[reason] == 1 else None

    def pause(self, *, hurried: bool) -> float:
        """Seconds to wait before the next try: longer each time, and never the same for two followers."""
        longest = _BACKOFF_WAITED_FOR if hurried else _BACKOFF_MOST
        backoff = min(_BACKOFF_MOST, _BACKOFF_FIRST * 2.0 ** min(self.in_a_row, 10))
        return min(longest, backoff * random.uniform(0.5, 1.0))
