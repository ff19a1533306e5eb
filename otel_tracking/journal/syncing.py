"""Making a journal survive the death of the machine, on a thread of its own.

`os.fdatasync` writes a file's mapped pages too, and lets other threads run meanwhile; `mmap.flush` does not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from otel_tracking.journal.format import segment_name
from otel_tracking.journal.waiting import wait_until

_LOG: Final = logging.getLogger(__name__)
_INTERVAL: Final = 1.0
_PATIENCE: Final = 30.0
_STOP_TIMEOUT: Final = 10.0
_PARENTS: Final = 4
"""Directories above the journal that may be new with it: the run's, the project's, that of all projects."""


class Syncer:
    """Keeps the segments of one writer on the disk: each second, and as soon as somebody waits for it.

    Attributes:
        failures: How often the disk refused.
    """

    def __init__(self, directory: Path, descriptor: int, first: int, current: Callable[[], int]) -> None:
        """Start the thread.

        Args:
            directory: The journal's.
            descriptor: Of the same.
            first: The index of the first segment to look after.
            current: The index of the one that is being written.
        """
        self.failures = 0
        self._path = directory
        self._directory = os.dup(descriptor)  # the thread may outlive the writer's
        self._first = first
        self._current = current
        self._named = -1
        """Up to this segment, names are on the disk as well."""
        self._begun = self._done = 0
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whose `put` is reentrant
        self._thread = threading.Thread(target=self._run, name="otel-tracking-sync", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when what this thread has written until now is on the disk, or the disk refuses."""
        wanted = self._begun + 1  # one that has begun may have passed it already
        self._requests.put(True)
        wait_until(lambda: self._done >= wanted, _PATIENCE)

    def moved(self, directory: Path) -> None:
        """The journal has another place: see that its name is on the disk, too."""
        self._path = directory
        self._named = -1
        self._requests.put(True)

    def close(self) -> None:
        """Do it a last time, and stop."""
        self._requests.put(False)
        self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        go_on = True
        while go_on:
            try:
                go_on = self._requests.get(timeout=_INTERVAL)
                while go_on:  # all that wait now are served at once
                    go_on = self._requests.get_nowait()
            except queue.Empty:
                pass
            self._begun += 1
            try:
                self._sync()
            except OSError as error:
                self.failures += 1
                if self.failures == 1:
                    _LOG.warning("the journal %s is written, but not durable: %s", self._path, error)
            self._done = self._begun
        os.close(self._directory)

    def _sync(self) -> None:
        current = self._current()
        for index in range(self._first, current + 1):
            self._sync_file(segment_name(index))
        if current > self._named:
            os.fsync(self._directory)
            for parent in list(self._path.parents)[:_PARENTS]:
                with contextlib.suppress(FileNotFoundError):  # it is being moved; `moved` has it done again
                    self._sync_directory(parent)
            self._named = current
        self._first = current  # those before it are full

    def _sync_file(self, name: str) -> None:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        except FileNotFoundError:  # it was compressed, and is on the disk as that
            return
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    @staticmethod
    def _sync_directory(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
