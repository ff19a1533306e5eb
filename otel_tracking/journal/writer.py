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
import mmap
import os
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from otel_tracking.errors import raised_here
from otel_tracking.journal import recovery
from otel_tracking.journal.compressed import FORMS
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, position, segment_name
from otel_tracking.journal.locking import NO_FORK, Lock
from otel_tracking.journal.ownership import lock_journal
from otel_tracking.journal.ring import Ring, measurements
from otel_tracking.journal.sealing import Sealer
from otel_tracking.journal.segment import SEGMENT_SLOTS, Reserve, Segment
from otel_tracking.journal.syncing import Syncer
from otel_tracking.journal.waiting import wait_until

_LOG = logging.getLogger(__name__)
_ROTATION_TIMEOUT: Final = 0.5
"""Seconds that a call waits for the next segment. Then its record waits in memory, and the call returns."""
_LOCK_PATIENCE: Final = 0.5
_SETTLE_PAUSE: Final = 0.01


class Outcome(enum.Enum):
    """What became of a record; what is lost is counted under the value."""

    STORED = "stored"
    HELD = "waiting in memory: no space for the journal"
    """It is appended as soon as there is space, before everything that comes later."""
    CLOSED = "the journal is closed"
    """It is nowhere, and not counted: the caller decides where it goes instead."""
    NO_SPACE = "no space for the journal"
    TOO_LARGE = "larger than a journal segment"


def _muted(data: bytes) -> int:
    """What a forked child writes with: nothing."""
    return len(data)


def _closed_map() -> mmap.mmap:
    """Its `write` always raises ValueError, from C."""
    closed = mmap.mmap(-1, 1)
    closed.close()
    return closed


class JournalWriter:
    """Appends records to a journal directory.

    Attributes:
        write: Takes whole records and appends them, all or nothing; raises ValueError when they do
            not fit, and then `overflow` is to be called with the same bytes. Changes at rotation:
            look it up for every call.
        start: Position of the first record of this writer; what lies before is an earlier one's.
        lost: Points, texts and configs that could not be kept, by reason.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rank: int = 0,
        segment_slots: int = SEGMENT_SLOTS,
        fsync: str = "off",
        compress: str = "off",
        after_seal: Callable[[JournalWriter], None] = lambda writer: None,
    ) -> None:
        """Open for writing, after repairing what a killed writer left.

        Args:
            directory: Made if missing.
            rank: Written into the segments' headers.
            fsync: What survives the death of the machine: nothing for sure (`off`), all but the last second
                or so (`interval`), every record whose call has returned (`always`).
            segment_slots: Size of a segment in 32-byte slots.
            compress: The form that segments get when they are full, and the last one at the end: `pack`,
                `zstd` (needs zstandard), or `off`, as they were written.
            after_seal: Called, on a thread, each time that a segment is sealed.

        Raises:
            JournalLocked: Another process is writing here.
            UnsupportedJournal: What lies here was not written by this format's version.
            OSError: The directory can't be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory
        # `lost[reason] += 1` is atomic: CPython switches threads and runs handlers at calls and jumps only.
        self.lost: defaultdict[str, int] = defaultdict(int)
        self._ring = Ring(self._lose_held)
        self._full = _closed_map().write
        self._warned = False
        self._slow = False
        """Whether a call has waited long enough for what waits in memory; the next ones do not."""
        self._stalled = False
        """Whether one has waited long enough for room there."""
        self._form = FORMS.get(compress)
        with NO_FORK:
            # Paths may change under us (a pending run gets its name), so all goes by descriptor.
            self._directory = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            self._lock: Lock | None = None
            self._sealer: Sealer | None = None
            try:
                self._lock = lock_journal(directory, self._directory, _LOCK_PATIENCE)
                last = recovery.repair(self._directory)
                self._sealer = Sealer(self._directory, form=self._form, after=lambda: after_seal(self))
                self._reserve = Reserve(
                    self._directory,
                    first_index=last + 1,
                    rank=rank,
                    segment_slots=segment_slots,
                    on_full=self._sealer.seal,
                    refill=self._refill,
                    warn=self._warn,
                )
            except BaseException:
                if self._sealer is not None:
                    self._sealer.close()
                self._release()
                raise
            _WRITERS.add(self)
        self._segment: Segment = self._reserve.current
        self.start = position(self._segment.index, HEADER_SLOTS)
        self._store: Callable[[bytes], int] = self._segment.write
        self._always = fsync == "always"
        # Where each record is to be on the disk, none is written without `overflow`, which waits for that.
        self.write: Callable[[bytes], int] = self._full if self._always else self._store
        self._syncer: Syncer | None = None
        if fsync != "off":
            self._syncer = Syncer(directory, self._directory, self._segment.index, lambda: self.segment)
        self._rotating = False
        """Whether the main thread goes to the next segment."""
        self._end = 0
        self._closed = False

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
        if self._syncer is not None:
            self._syncer.moved(path)

    @property
    def descriptor(self) -> int:
        """The journal directory's descriptor: still right after the directory was renamed."""
        return self._directory

    @property
    def segment(self) -> int:
        """The index of the segment into which records go."""
        return self._segment.index

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
        may be done twice. Waits, for a moment, only when records come faster than segments can be
        reserved.

        Returns:
            False if the journal is closed; the caller decides where the measurement goes instead.
            True otherwise: the data is in the journal, or waits for space, or is counted in `lost`.
        """
        return self._rotate(data) is not Outcome.CLOSED

    def _rotate(self, data: bytes) -> Outcome:
        outcome = self._in_next(data)
        if self._always and self._syncer is not None and outcome is Outcome.STORED:
            self._syncer.wait()
        return outcome

    def _in_next(self, data: bytes) -> Outcome:
        if self._closed:
            return Outcome.CLOSED
        main = threading.get_ident() == threading.main_thread().ident
        if main and self._rotating:
            # A signal handler in the middle of this. Waiting here as well would have no end where signals
            # come faster than segments: each handler would run several more, and each of those.
            return self._hold(data)
        if not main:
            return self._go_on(data)
        try:
            self._rotating = True
            return self._go_on(data)
        finally:
            self._rotating = False

    def _go_on(self, data: bytes) -> Outcome:
        """Append, in the next segment if need be, waiting a moment for it."""
        while True:
            if self._ring.held and not self._nothing_waits():
                return self._hold(data)
            try:
                self._store(data)
            except ValueError as error:
                if not raised_here(error):
                    raise
            else:
                return Outcome.STORED
            if self._closed:
                return Outcome.CLOSED
            old = self._segment
            new = self._reserve.successor(old, _ROTATION_TIMEOUT)
            if new is None:
                return Outcome.CLOSED
            if isinstance(new, OSError):
                self._slow = True
                old.seal()  # what comes later may be shorter, and is not to come before
                return self._hold(data)
            if len(data) > new.capacity:
                return self._hold(data)
            self._enter(new, old)

    def _nothing_waits(self) -> bool:
        """Whether what came before is appended by now, waiting a moment for that unless there is no space."""
        reserve, ring = self._reserve, self._ring
        if reserve.failing or self._stalled:
            return False
        if not self._slow:
            wait_until(lambda: not ring.held or reserve.failing or self._closed, _ROTATION_TIMEOUT)
            self._slow = ring.held
        elif ring.nearly_full:  # waiting is better than losing as long as it gets on
            wait_until(lambda: not ring.nearly_full or reserve.failing or self._closed, _ROTATION_TIMEOUT)
            self._stalled = ring.nearly_full
        return not ring.held

    def _hold(self, data: bytes) -> Outcome:
        """Have a record wait until there is a segment for it, and everything after it as well."""
        if len(data) > self._reserve.capacity:
            return self._lose(data, Outcome.TOO_LARGE)
        # Before and after: a handler may raise, and the other thread may find nothing to do, in between.
        self._ring.held = True
        self.write = self._full
        self._ring.put(data)
        self.write = self._full
        self._reserve.refill()
        return Outcome.HELD

    def _enter(self, new: Segment, old: Segment) -> None:
        """Go to the segment after the current one.

        Nothing fails in here. A handler or a thread that comes in between does the same; one that was
        held up sets back what others have done, and the next record finds its way along the successors
        again.
        """
        old.seal()
        self._segment = new
        self._store = new.write
        self._reopen()
        self._reserve.taken(new)

    def _reopen(self) -> None:
        """Let records go straight into the segment, if nothing waits. No other thread can come in between."""
        if not self._always and not self._ring.held:
            self.write = self._store

    def _refill(self) -> bool:
        """On the reserve's thread: append what waits; False if it needs one more segment."""
        done = self._ring.drain(self._stored)
        if done:
            self._warned = self._slow = self._stalled = False
            self._reopen()
        return done

    def _stored(self, data: bytes) -> bool:
        while True:
            try:
                self._store(data)
            except ValueError:  # no handler runs in this thread
                old = self._segment
                new = self._reserve.successor(old, 0.0)
                if new is None or isinstance(new, OSError):
                    return False
                self._enter(new, old)
                if len(data) > new.capacity:  # there is no space for it, but for others
                    self._lose(data, Outcome.NO_SPACE)
                    return True
            else:
                return True

    def _warn(self, error: OSError | str) -> None:
        if not self._warned:
            self._warned = True
            _LOG.warning(
                "the journal %s can't grow: %s. Records wait in memory until there is space; of more than "
                "fit there the oldest points are lost, and counted.",
                self._path,
                error,
            )

    def _lose(self, data: bytes, why: Outcome) -> Outcome:
        if count := measurements(data):
            self.lost[why.value] += count
        return why

    def _lose_held(self, count: int) -> None:
        if count:
            self.lost[Outcome.NO_SPACE.value] += count
            self._warn("the disk is too slow, or has too little space")

    @property
    def waiting(self) -> int:
        """Points, texts and configs that wait in memory for space."""
        return self._ring.waiting

    def settle(self, deadline: float) -> bool:
        """Wait until nothing waits for space; False at the deadline (of `time.monotonic`)."""
        while self._ring.held and time.monotonic() < deadline:
            time.sleep(_SETTLE_PAUSE)
        return not self._ring.held

    def close(self) -> None:
        """Cut the last segment to what is used and give up the lock. Later records find it closed."""
        if self._closed:
            return
        self._closed = True
        try:
            spare = self._reserve.close()
            if self._sealer is not None:
                self._sealer.close()
            self._ring.give_up()
            last = self._last_segment()
            used = last.used
            last.close()
            # Others were writing until this line.
            used = recovery.end(self._directory, last.index, used)
            self._end = position(last.index, used)
            if spare is not None and spare.index > last.index:
                self._drop(spare, reached=used * SLOT == last.size)
            recovery.cut(self._directory, last.index, used)
            recovery.seal_all(self._directory, trusted=True)
            if self._form is not None:
                recovery.compress_all(self._directory, self._form)
            if self._syncer is not None:
                self._syncer.close()
        finally:
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
        if self._lock is not None:
            self._lock.release()
        if self._directory >= 0:
            os.close(self._directory)
        self._lock, self._directory = None, -1

    def _mute_child(self) -> None:
        """In a forked child: its stores would land in the parent's journal, and its copy of the lock
        would outlive the parent."""
        self.write = _muted
        self._closed = True
        self._lock = None  # given up already
        if self._sealer is not None:
            self._sealer.in_child()
        self._reserve.in_child()  # the child may be a handler's, forked in the middle of a rotation
        self._release()


_WRITERS: Final[weakref.WeakSet[JournalWriter]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for writer in list(_WRITERS):
        writer._mute_child()
    _WRITERS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
