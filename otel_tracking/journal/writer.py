"""The writing end of a journal: one process, any of its threads and signal handlers.

The hot path is not here. It is `writer.write(packed)`: the bound `write` of a memory map, one C call
under the GIL that reserves and stores at once. It raises ValueError when the segment is full, and
`overflow` goes on in the next one. There is no lock anywhere on the way, so a signal handler that
records in mid-record can't deadlock, and one that raises leaves no hole.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from otel_tracking.errors import JournalLocked, raised_here
from otel_tracking.journal import recovery
from otel_tracking.journal.format import HEADER_SLOTS, RECORD, SLOT, RecordType, position, segment_name
from otel_tracking.journal.scan import points_in, scan
from otel_tracking.journal.segment import SEGMENT_SLOTS, Reserve, Segment
from otel_tracking.journal.waiting import waits_inside_a_wait

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the module or nothing; looked at where it is used

_LOG = logging.getLogger(__name__)
_LOCK_FILE: Final = "lock"
_ROTATION_TIMEOUT: Final = 2.0
_RETRY_PAUSE: Final = 1.0


class Outcome(enum.Enum):
    """What became of a record; what is lost is counted under the value."""

    STORED = "stored"
    CLOSED = "the journal is closed"
    """It is nowhere, and not counted: the caller decides where it goes instead."""
    NO_SPACE = "no space for the journal"
    TOO_LARGE = "larger than a journal segment"


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
        lost: Points, texts and configs that could not be kept, by reason.
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
        # A child forked in the middle of this would keep the lock, and no one would know.
        with _NO_FORK:
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
            _WRITERS.add(self)
        self._segment: Segment = self._reserve.current
        self.start = position(self._segment.index, HEADER_SLOTS)
        self.write: Callable[[bytes], int] = self._segment.write
        # `lost[reason] += 1` is atomic: CPython switches threads and runs handlers at calls and jumps only.
        self.lost: defaultdict[str, int] = defaultdict(int)
        self._held: deque[bytes] = deque()
        self._end = 0
        self._closed = False
        self._failed_at = 0.0

    @staticmethod
    def repair(directory: Path) -> None:
        """Cut what a killed writer left after its last whole record.

        Raises:
            JournalLocked: A process is writing here.
        """
        with _NO_FORK:
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                lock = _take_lock(directory, descriptor)
                try:
                    recovery.repair(descriptor)
                finally:
                    _unlock(lock)
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
        while (after := segment.successor) is not None:
            segment = after
        try:
            return position(segment.index, segment.used)
        except ValueError:  # closed
            return self._end

    def append(self, data: bytes) -> Outcome:
        """`write`, going to the next segment where needed."""
        try:
            self.write(data)
        except ValueError as error:
            if not raised_here(error):
                raise
            return self._rotate(data)
        return Outcome.STORED

    def overflow(self, data: bytes) -> bool:
        """Append what did not fit into the current segment: go to the next one.

        Safe in any thread and in a signal handler in the middle of another `overflow`: every step
        may be done twice. Waits for the disk only when records come faster than segments can be
        reserved.

        Returns:
            False if the journal is closed; the caller decides where the measurement goes instead.
            True otherwise: the data is in the journal, or counted in `lost`.
        """
        return self._rotate(data) is not Outcome.CLOSED

    def _rotate(self, data: bytes) -> Outcome:
        while True:
            try:
                self.write(data)
            except ValueError as error:
                if not raised_here(error):
                    raise
            else:
                if self._held:
                    self._give_held()
                return Outcome.STORED
            if self._closed:
                return Outcome.CLOSED
            if len(data) > self._reserve.capacity:
                return self._lose(data, Outcome.TOO_LARGE)
            if self._failed_at and time.monotonic() - self._failed_at < _RETRY_PAUSE:
                return self._lose(data, Outcome.NO_SPACE)
            old = self._segment
            crowded = waits_inside_a_wait()
            new = self._reserve.successor(old, 0.0 if crowded else _ROTATION_TIMEOUT)
            if new is None:
                return Outcome.CLOSED
            if crowded and isinstance(new, TimeoutError):
                self._held.append(data)  # the record that this handler is in the middle of goes first
                return Outcome.STORED
            if isinstance(new, OSError):
                self._warn(new)
                self._failed_at = time.monotonic()
                return self._lose(data, Outcome.NO_SPACE)
            self._failed_at = 0.0
            # From here to the end nothing fails. A handler or a thread that comes in between does the
            # same; one that was held up sets back what others have done, and the next record finds its
            # way along the successors again.
            old.seal()
            self._segment = new
            self.write = new.write
            self._reserve.taken(new)

    def _give_held(self) -> None:
        """Append what signal handlers could not wait to append."""
        while True:
            try:
                data = self._held.popleft()
            except IndexError:
                return
            try:
                self.write(data)
            except ValueError as error:
                if not raised_here(error):
                    raise
                if self._rotate(data) is Outcome.CLOSED:
                    self._lose(data, Outcome.NO_SPACE)

    def _warn(self, error: OSError) -> None:
        if not self._failed_at:
            _LOG.warning(
                "the journal %s can't grow: %s. Points are lost, and counted, until there is space.",
                self._path,
                error,
            )

    def _lose(self, data: bytes, why: Outcome) -> Outcome:
        if count := _measurements(data):
            self.lost[why.value] += count
        return why

    def close(self) -> None:
        """Cut the last segment to what is used and give up the lock. Later records find it closed."""
        if self._closed:
            return
        self._give_held()
        self._closed = True
        try:
            spare = self._reserve.close()
            last = self._last_segment()
            used = last.used
            last.close()
            # Others were writing until this line.
            used = recovery.end(self._directory, last.index, used)
            self._end = position(last.index, used)
            if spare is not None and spare.index > last.index:
                self._drop(spare, reached=used * SLOT == last.size)
            recovery.cut(self._directory, last.index, used)
        finally:
            _unlock(self._lock)
            self._release()
            _WRITERS.discard(self)

    def _last_segment(self) -> Segment:
        """The segment after which nothing follows any more."""
        segment = self._segment
        while (after := segment.follow(None)) is not None:
            segment.seal()  # another thread may be about to
            segment = after
        return segment

    def _drop(self, spare: Segment, *, reached: bool) -> None:
        """Take away the segment that was kept ready."""
        spare.close()
        if reached:
            # A reader may be in it already. It can't be at the next segment of this name, too.
            recovery.cut(self._directory, spare.index, HEADER_SLOTS)
            return
        with contextlib.suppress(OSError):
            os.unlink(segment_name(spare.index), dir_fd=self._directory)

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
        self._reserve.in_child()  # the child may be a handler's, forked in the middle of a rotation
        self._release()


def _measurements(data: bytes) -> int:
    """How many points, texts and configs the records hold."""
    runs = scan(data).runs
    told = (RecordType.TEXT, RecordType.CONFIG)
    return points_in(runs) + sum(run.kind == RECORD and run.id in told for run in runs)


def _take_lock(path: Path, directory: int) -> int:
    """The descriptor that holds the journal's lock."""
    lock = os.open(_LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=directory)
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise JournalLocked(str(path)) from None
        except OSError:  # a file system without locks
            os.close(lock)
            raise
    return lock


def _unlock(lock: int) -> None:
    """Give up the lock for all copies of the descriptor: a child that was just forked still has one."""
    if fcntl is not None and lock >= 0:
        fcntl.flock(lock, fcntl.LOCK_UN)


_WRITERS: Final[weakref.WeakSet[JournalWriter]] = weakref.WeakSet()
_NO_FORK: Final = threading.RLock()


def _after_fork_in_child() -> None:
    _NO_FORK.release()
    for writer in list(_WRITERS):
        writer._mute_child()
    _WRITERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_NO_FORK.acquire,
        after_in_parent=_NO_FORK.release,
        after_in_child=_after_fork_in_child,
    )
