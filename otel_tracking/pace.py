"""How much time delivery may take, and whether it gets on."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Final

_WORK: Final = 0.02
"""CPU seconds that show that a call does something."""


class Budget:
    """How much of the trainer's GIL all followers together may take, as CPU seconds a second.

    Each has an equal share of it. What does not fit waits in the journal.
    """

    def __init__(self, fraction: float = 0.05, followers: int = 1) -> None:
        self._share = fraction / max(followers, 1)

    def pause(self, cpu: float) -> float:
        """Seconds to rest after having used that much CPU time."""
        return cpu / self._share - cpu if self._share < 1 else 0.0


class Progress:
    """When a thread last got on, for other threads to look at."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._clock: int | None = None
        self._cpu = 0.0
        self._schedule: Path | None = None
        self._queued: float | None = None
        """What `_queue_time` was when it was first looked at since then."""

    def watch(self) -> None:
        """From now on, this thread's CPU time may count; on systems that let others read it."""
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        self._schedule = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")

    def unwatch(self) -> None:
        """The thread ends, and its clock with it."""
        self._clock = self._schedule = None

    def made(self) -> None:
        """It got on."""
        self._at = time.monotonic()
        self._queued = None

    def idle(self, *, working_counts: bool) -> float:
        """Seconds since it last got on, without those in which it could have run and had no processor.

        The sidecar is nice, so on a busy machine it may get none for long.

        Args:
            working_counts: Whether using the CPU is getting on, seen from one call of this to the next.
        """
        now = time.monotonic()
        clock = self._clock
        if working_counts and clock is not None:
            with contextlib.suppress(OSError):
                cpu = time.clock_gettime(clock)
                if cpu - self._cpu > _WORK:
                    self._cpu, self._at, self._queued = cpu, now, None
        queued = self._queue_time()
        if self._queued is None:
            self._queued = queued
        return max(0.0, now - self._at - (queued - self._queued))

    def _queue_time(self) -> float:
        """Seconds that the thread has waited for a processor; 0 where the system does not say."""
        return 0.0 if self._schedule is None else _queue_time_of(self._schedule)


class Quiet:
    """How long this process has had little to do.

    While it is busy, a thread that does nothing may be waiting for the interpreter, or for a module that
    another thread imports.
    """

    def __init__(self) -> None:
        self._since = self._looked = time.monotonic()
        self._busy = _busy_time()

    def seconds(self) -> float:
        """Seconds since half a processor was used or wanted for a second, as seen by calls of this."""
        now = time.monotonic()
        if (passed := now - self._looked) >= 1:
            busy = _busy_time()
            if busy - self._busy > passed / 2:
                self._since = now
            self._looked, self._busy = now, busy
        return now - self._since


def _busy_time() -> float:
    """CPU seconds of this process, and those for which its threads have waited for a processor."""
    waited = 0.0
    with contextlib.suppress(OSError):
        waited = sum(_queue_time_of(task / "schedstat") for task in Path("/proc/self/task").iterdir())
    return time.process_time() + waited


def _queue_time_of(schedule: Path) -> float:
    """Seconds that a thread has waited for a processor; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(schedule.read_text().split()[1]) / 1e9
    return 0.0
