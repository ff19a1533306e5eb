"""How many points a run that is being recorded has."""

from __future__ import annotations

import threading

from otel_tracking.journal.reader import PointCounter
from otel_tracking.journal.writer import JournalWriter


class Recorded:
    """How many points the session's journal holds, for any thread and for signal handlers."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._journal: JournalWriter | None = None
        self._counter: PointCounter | None = None
        self._last = 0

    def follow(self, journal: JournalWriter) -> None:
        """Count that journal from now on, from its beginning."""
        with self._lock:
            self._close()
            self._journal = journal
            self._counter = PointCounter(journal.descriptor)

    def count(self) -> int:
        """Points recorded until now."""
        with self._lock:
            if self._journal is None:
                return self._last
            # Taken out meanwhile: a signal handler that asks in the middle of this counts anew, and so
            # does the next call after one that raises.
            counter = self._counter or PointCounter(self._journal.path)
            self._counter = None
            try:
                last = counter.count(until=self._journal.position)
            except BaseException:
                counter.close()
                raise
            self._close()
            self._last, self._counter = last, counter
            if self._journal is None:  # the handler ended the run
                self._close()
            return last

    def finish(self) -> None:
        """The journal is closed: keep the number, give up the descriptors."""
        with self._lock:
            self.count()
            self._journal = None
            self._close()

    def _close(self) -> None:
        if self._counter is not None:
            self._counter.close()
            self._counter = None
