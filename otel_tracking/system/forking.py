"""Keeps forks apart from what a sampler does.

A child that is forked while another thread imports a package, or is inside psutil, finds their locks held for
ever by a thread that it does not have, and hangs at its own first use of either. So a fork waits for the
sample that is being taken: milliseconds, or while packages are imported at the start of a run, some tenths
of a second.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Final

_LONGEST: Final = 5.0
"""Seconds that a fork waits. For one that hangs it waits once."""


class Turn:
    """What one thread does inside `taken()` happens before a fork or after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hangs = False
        _TURNS[id(self)] = self

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Do something now, and no fork meanwhile."""
        with self._lock:
            self._hangs = False
            yield

    def hold(self, until: float) -> bool:
        """Keep it from being taken; False if it is, and stays so until then (`time.monotonic()`)."""
        held = self._lock.acquire(timeout=0 if self._hangs else max(0.0, until - time.monotonic()))
        self._hangs = not held
        return held

    def give(self) -> None:
        """Let it be taken again."""
        self._lock.release()


# By id: `valuerefs` copies in one step, while a WeakSet must not grow while it is walked.
_TURNS: Final[weakref.WeakValueDictionary[int, Turn]] = weakref.WeakValueDictionary()
_held: Final[dict[int, list[Turn]]] = {}
"""By the thread that forks."""


def _before_fork() -> None:
    until = time.monotonic() + _LONGEST
    turns = [turn for reference in _TURNS.valuerefs() if (turn := reference()) is not None]
    _held[threading.get_ident()] = [turn for turn in turns if turn.hold(until)]


def _after_fork_in_parent() -> None:
    for turn in _held.pop(threading.get_ident(), ()):
        turn.give()


def _after_fork_in_child() -> None:
    _held.clear()  # whose turns these were is not here
    _TURNS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
