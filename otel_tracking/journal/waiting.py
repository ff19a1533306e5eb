"""Waiting for another thread, also in the middle of a training step that signal handlers interrupt."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable
from typing import Final

_FIRST_PAUSE: Final = 0.0001
_LONGEST_PAUSE: Final = 0.05
_FOREVER: Final = 1e9

_waits = 0
"""How many waits of the main thread lie inside each other."""


def wait_until(done: Callable[[], bool], timeout: float) -> None:
    """Return when `done()` is true, or after `timeout` seconds.

    A signal handler that records in here waits in here too, and the next signal's inside that one,
    until Python's stack is full: an inner wait begins with a longer pause, so that few lie inside each
    other. Signals are not held back meanwhile: processes that trackers start now would inherit that, and
    could not be ended by SIGTERM.

    Nothing of `threading` waits: that is Python code around a plain lock, and a handler that
    interrupts it would wait for itself.

    Args:
        done: Looked at again and again.
        timeout: Seconds.
    """
    global _waits
    deadline = time.monotonic() + timeout
    main = threading.get_ident() == threading.main_thread().ident
    outer = _waits
    try:
        if main:
            _waits = outer + 1
        pause = min(_FIRST_PAUSE * 2**outer, _LONGEST_PAUSE)
        while not done() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    finally:
        if main:
            _waits = outer


class Apart:
    """Work that no signal handler may interrupt. They run in the main thread, so it is done in another."""

    def __init__(self) -> None:
        self._workers: set[int] = set()

    @property
    def busy(self) -> bool:
        """Whether a thread other than this one is at work."""
        return bool(self._workers - {threading.get_ident()})

    def wait(self) -> None:
        """Wait until no other thread is at work."""
        wait_until(lambda: not self.busy, _FOREVER)

    def do(self, work: Callable[[], None]) -> None:
        """Do it and wait for it. A signal handler that raises meanwhile ends the wait alone.

        Raises:
            BaseException: What the work raised.
        """
        if threading.get_ident() != threading.main_thread().ident:
            self._do(work)
            return
        results: list[BaseException | None] = []

        def run() -> None:
            try:
                self._do(work)
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread that asked
                results.append(error)
            else:
                results.append(None)

        _thread.start_new_thread(run, ())
        wait_until(lambda: bool(results), _FOREVER)
        if results[0] is not None:
            raise results[0]

    def _do(self, work: Callable[[], None]) -> None:
        me = threading.get_ident()
        nested = me in self._workers
        self._workers.add(me)
        try:
            work()
        finally:
            if not nested:
                self._workers.discard(me)

    def in_child(self) -> None:
        """This is a forked child: the threads are not here."""
        self._workers.clear()
