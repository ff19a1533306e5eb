"""Waiting for another thread, also in the middle of a training step that signal handlers interrupt."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

_FIRST_PAUSE: Final = 0.0001
_LONGEST_PAUSE: Final = 0.05
_FOREVER: Final = 1e9
# What a fault raises is for the thread that has it: held back, it ends the process without a trace.
_FAULTS: Final = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGTRAP"}
_HELD: Final = frozenset(int(s) for s in signal.valid_signals() if getattr(s, "name", "") not in _FAULTS)
# The C function inside: `signal` wraps it in Python that makes enums of all signals, slowly, and that
# a handler may leave by raising. None on Windows.
_set_mask: Final[Any] = getattr(getattr(signal, "pthread_sigmask", None), "__wrapped__", None)


_waits = 0
"""How many waits of the main thread lie inside each other."""


def waits_inside_a_wait() -> bool:
    """Whether this is a signal handler in the middle of another's wait.

    It must not wait as well: where a wait is longer than the time to the next signal, each would run
    several more, and each of those.
    """
    return _waits > 1 and threading.get_ident() == threading.main_thread().ident


def wait_until(
    done: Callable[[], bool], timeout: float, *, begin: Callable[[], object] | None = None
) -> None:
    """Return when `done()` is true, or after `timeout` seconds.

    A signal handler that records in here waits in here too, and the next signal's inside that one,
    until Python's stack is full. So the main thread holds signals back meanwhile. Those that another
    thread gets run a handler here all the same, one each time that a pause is over: an inner wait
    begins with a longer pause, so that few lie inside each other.

    Nothing of `threading` waits: that is Python code around a plain lock, and a handler that
    interrupts it would wait for itself.

    Args:
        done: Looked at again and again.
        begin: Called first, when signals are held back already; threads that it starts never get any.
    """
    global _waits
    deadline = time.monotonic() + timeout
    masked = _set_mask is not None and threading.get_ident() == threading.main_thread().ident
    before = _set_mask(signal.SIG_BLOCK, ()) if masked else None
    outer = _waits
    try:
        if masked:
            _set_mask(signal.SIG_BLOCK, _HELD)
            _waits = outer + 1
        if begin is not None:
            begin()
        pause = min(_FIRST_PAUSE * 2**outer, _LONGEST_PAUSE)
        while not done() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    finally:
        if masked:
            _waits = outer
            # One C call: if a handler raises right after it, signals are let through again.
            _set_mask(signal.SIG_SETMASK, before)


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

        wait_until(lambda: bool(results), _FOREVER, begin=lambda: _thread.start_new_thread(run, ()))
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
