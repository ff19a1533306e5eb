"""The writing end of a journal: one process, any of its threads and signal handlers.

The hot path is not here. It is `writer.write(packed)`: the bound `write` of a memory map, one C call
under the GIL that reserves and stores at once. It raises ValueError when the segment is full, and
`overflow` goes on in the next one. There is no lock anywhere on the way, so a signal handler that
records in mid-record can't deadlock, and one that raises leaves no hole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from otel_tracking.errors import JournalLocked
from otel_tracking.journal import recovery
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, position, segment_name
from otel_tracking.journal.segment import SEGMENT_SLOTS, Reserve, Segment

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the module or nothing; looked at where it is used

_LOG = logging.getLogger(__name__)
_LOCK_FILE: Final = "lock"
_ROTATION_TIMEOUT: Final = 2.0
_RETRY_PAUSE: Final = 1.0


def _muted(data: bytes) -> int:
    """What a forked child writes with: nothing."""
    return len(data)


class JournalWriter:
    """Appends records to a journal directory.

    Attributes:
        write: Takes whole records and appends them, all or nothing; raises ValueError when they do
            not fit, and then `overflow` is to be called with the same bytes. Changes at rotation:
            look it up for every call.
        start: Position of the first record of this writer; what lies before is an earlier one's.
        lost: Records that could not be kept, by reason.
    """

    def __init__(self, directory: Path, *, rank: int = 0, segment_slots: int = SEGMENT_SLOTS) -> None:
        """Open for writing, after repairing what a killed writer left.

        Args:
            directory: Made if missing.
            rank: Written into the segments' headers.
            segment_slots: Size of a segment in 32-byte slots.

        Raises:
            JournalLocked: Another process is writing here.
            UnsupportedJournal: What lies here was not written by this format's version.
            OSError: The directory can't be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory
        # Paths may change under us (a pending run gets its name), so all goes by descriptor.
        self._directory = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        self._lock = -1
        try:
            self._lock = _take_lock(directory, self._directory)
            last = recovery.repair(self._directory)
            self._reserve = Reserve(
                self._directory, first_index=last + 1, rank=rank, segment_slots=segment_slots
            )
        except BaseException:
            self._release()
            raise
        self._segment: Segment = self._reserve.current
        self.start = position(self._segment.index, HEADER_SLOTS)
        self.write: Callable[[bytes], int] = self._segment.write
        # `lost[reason] += 1` is atomic: CPython switches threads and runs handlers at calls and jumps only.
        self.lost: defaultdict[str, int] = defaultdict(int)
        self._end = 0
        self._closed = False
        self._failed_at = 0.0
        self._pid = os.getpid()
        _WRITERS.add(self)

    @staticmethod
    def repair(directory: Path) -> None:
        """Cut what a killed writer left after its last whole record.

        Raises:
            JournalLocked: A process is writing here.
        """
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            lock = _take_lock(directory, descriptor)
            try:
                recovery.repair(descriptor)
            finally:
                os.close(lock)
        finally:
            os.close(descriptor)

    @property
    def path(self) -> Path:
        """The journal's directory."""
        return self._path

    def rename(self, path: Path) -> None:
        """Move the directory, on the same file system; the writing goes on meanwhile.

        Raises:
            OSError: There is something at `path` already, or it can't be moved.
        """
        self._path.rename(path)
        self._path = path

    @property
    def descriptor(self) -> int:
        """The journal directory's descriptor: still right after the directory was renamed."""
        return self._directory

    @property
    def closed(self) -> bool:
        """Whether nothing can be appended any more."""
        return self._closed

    @property
    def position(self) -> int:
        """One past everything written so far; an upper bound while others write."""
        segment = self._segment
        try:
            return position(segment.index, segment.used)
        except ValueError:  # closed
            return self._end

    def append(self, data: bytes) -> bool:
        """`write`, with `overflow` where needed."""
        try:
            self.write(data)
        except ValueError:
            return self.overflow(data)
        return True

    def overflow(self, data: bytes) -> bool:
        """Append what did not fit into the current segment: go to the next one.

        Safe in any thread and in a signal handler in the middle of another `overflow`: every step
        may be done twice. Waits for the disk only when records come faster than segments can be
        reserved.

        Returns:
            False if the journal is closed; the caller decides where the measurement goes instead.
            True otherwise: the data is in the journal, or counted in `lost`.
        """
        while True:
            try:
                self.write(data)
                return True
            except ValueError:
                pass
            if self._closed:
                return False
            if len(data) > (SEGMENT_SLOTS - 2) * SLOT:
                self.lost["larger than a journal segment"] += 1
                return True
            if self._failed_at and time.monotonic() - self._failed_at < _RETRY_PAUSE:
                self.lost["no space for the journal"] += 1
                return True
            old = self._segment
            try:
                new = self._reserve.successor(old, _ROTATION_TIMEOUT)
            except OSError as error:
                self._full(error)
                return True
            self._failed_at = 0.0
            # From here to the end nothing fails; done twice, by a handler or a thread, it ends the same.
            old.seal()
            self._segment = new
            self.write = new.write
            self._reserve.taken(old, new)

    def _full(self, error: OSError) -> None:
        if not self._failed_at:
            _LOG.warning(
                "the journal %s can't grow: %s. Points are lost, and counted, until there is space.",
                self._path,
                error,
            )
        self._failed_at = time.monotonic()
        self.lost["no space for the journal"] += 1

    def close(self) -> None:
        """Cut the last segment to what is used and give up the lock. Later records are counted as lost."""
        if self._closed:
            return
        self._closed = True
        _WRITERS.discard(self)
        if os.getpid() != self._pid:
            return
        spare = self._reserve.close()
        segment = self._segment
        used = segment.used
        self._end = position(segment.index, used)
        segment.close()
        if spare is not None and spare is not segment:
            spare.close()
            with contextlib.suppress(OSError):
                os.unlink(segment_name(spare.index), dir_fd=self._directory)
        recovery.cut(self._directory, segment.index, used)
        self._release()

    def _release(self) -> None:
        for descriptor in (self._lock, self._directory):
            if descriptor >= 0:
                os.close(descriptor)
        self._lock = self._directory = -1

    def _mute_child(self) -> None:
        """In a forked child: its stores would land in the parent's journal, and its copy of the lock
        would outlive the parent."""
        self.write = _muted
        self._closed = True
        self._release()


def _take_lock(path: Path, directory: int) -> int:
    """The descriptor that holds the journal's lock."""
    lock = os.open(_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=directory)
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise JournalLocked(str(path)) from None
    return lock


_WRITERS: weakref.WeakSet[JournalWriter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_WRITERS):
        writer._mute_child()
    _WRITERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
