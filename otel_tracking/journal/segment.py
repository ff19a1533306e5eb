"""One mapped segment file, and the thread that reserves segments ahead of need."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from otel_tracking.errors import raised_here
from otel_tracking.journal.format import HEADER_SLOTS, PADDING_SLOT, SLOT, Header, segment_name
from otel_tracking.journal.waiting import wait_until

SEGMENT_SLOTS: Final = 8 * 2**20 // SLOT
"""8 MiB: 262,142 points."""
FIRST_SEGMENT_SLOTS: Final = 2**20 // SLOT
"""1 MiB: small runs stay small, and a start does not wait for pages."""

_PREFAULT_CHUNK: Final = 128 * 2**10
_PREFAULT_PAUSE: Final = 0.0002
_STOP_TIMEOUT: Final = 5.0
_LEAST_SLOTS: Final = 64 * 2**10 // SLOT
"""64 KiB: the smallest segment, on a disk that is nearly full."""
_RETRY_PAUSE: Final = 1.0
"""Seconds between looks for records that wait."""
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; `mmap` has no name for it


class Segment:
    """A reserved, mapped file. `write` appends; ValueError says that the data does not fit."""

    __slots__ = ("_map", "_next", "capacity", "index", "size", "write")

    def __init__(self, directory: int, header: Header) -> None:
        """Create the file.

        Args:
            directory: Descriptor of the journal's directory.
            header: Its index and size.

        Raises:
            OSError: The disk is full or read-only; nothing is left behind.
        """
        self.index = header.index
        self.size = header.slots * SLOT
        self.capacity = self.size - HEADER_SLOTS * SLOT
        self._next: dict[int, Segment | None] = {}
        name, draft = segment_name(header.index), f"{segment_name(header.index)}.draft"
        descriptor = os.open(
            draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=directory
        )
        try:
            # Reserved now, so that a full disk is an exception here and not SIGBUS in a training loop.
            _reserve(descriptor, self.size)
            self._map = mmap.mmap(descriptor, self.size)
            self._map.write(header.pack())
            os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=directory)
            raise
        finally:
            os.close(descriptor)
        self.write = self._map.write

    @property
    def used(self) -> int:
        """Slots written, the header's and padding included."""
        return self._map.tell() // SLOT

    def prefault(self, wanted: Callable[[], bool] = lambda: True) -> None:
        """Give every page a frame, in pieces, so that no write waits for one; as long as that is wanted."""
        for start in range(0, self.size, _PREFAULT_CHUNK):
            if not wanted():
                return
            try:
                self._map.madvise(_MADV_POPULATE_WRITE, start, min(_PREFAULT_CHUNK, self.size - start))
            except (OSError, ValueError):  # an older kernel, or closed meanwhile
                return
            time.sleep(_PREFAULT_PAUSE)

    def seal(self) -> None:
        """Fill the rest with padding: from now on every `write` raises, whoever still holds it."""
        while not self._map.closed:
            try:
                room = self.size - self._map.tell()
                if not room:
                    return
                self._map.write(PADDING_SLOT * (room // SLOT))
            except ValueError as error:  # someone wrote between the two lines, or it is closed now
                if not raised_here(error):
                    raise

    def follow(self, segment: Segment | None) -> Segment | None:
        """Set what comes after this one, None being nothing, unless that is set; returns what it is.

        Atomic, so that a rotation and the journal's end can't both have their way.
        """
        return self._next.setdefault(0, segment)

    @property
    def followed(self) -> bool:
        """Whether it is settled what comes after this one."""
        return bool(self._next)

    @property
    def successor(self) -> Segment | None:
        """What comes after this one; None if that is nothing, or not settled."""
        return self._next.get(0)

    def close(self) -> None:
        """Unmap; every later `write` raises ValueError."""
        self._map.close()


def _reserve(descriptor: int, size: int) -> None:
    """Blocks for the whole file, or OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    zeros = bytes(_PREFAULT_CHUNK)  # macOS has no posix_fallocate
    for start in range(0, size, len(zeros)):
        os.write(descriptor, zeros[: size - start])
    os.fsync(descriptor)


def _fitting(directory: int, slots: int) -> int:
    """How large a segment may be, in slots."""
    if hasattr(os, "fstatvfs"):
        disk = os.fstatvfs(directory)
        while disk.f_blocks and slots * SLOT > disk.f_bavail * disk.f_frsize // 2 and slots > _LEAST_SLOTS:
            slots //= 2
    return slots


class Reserve:
    """Keeps one segment ready. Its thread is the only one that makes segments.

    That is what lets a writer rotate with no lock: a signal handler that interrupts a rotation, or
    another thread in the middle of its own, finds the same successor and none makes a second one.
    `SimpleQueue.put`, which writers call here, is reentrant.

    Attributes:
        current: The first segment.
        capacity: The largest record, in bytes.
    """

    def __init__(
        self,
        directory: int,
        *,
        first_index: int,
        rank: int,
        segment_slots: int,
        on_full: Callable[[int], None],
        refill: Callable[[], bool],
        warn: Callable[[OSError], None],
    ) -> None:
        """Make the first segment and start the thread.

        Args:
            directory: Descriptor of the journal's directory.
            first_index: Of the first segment.
            rank: As in the header.
            segment_slots: Size of the segments after the first one.
            on_full: Called with the index of each segment into which nothing more is written.
            refill: Appends the records that wait; False if they need a segment that is not made yet.
            warn: Called when records wait, and there is no space.

        Raises:
            OSError: The directory can't be written.
        """
        self._directory = os.dup(directory)  # the thread may outlive the writer's descriptor
        self._rank = rank
        self._slots = segment_slots
        self._on_full = on_full
        self._refill = refill
        self._warn = warn
        self._index = self._full = first_index
        self._ready: Segment | None = None
        self._mapped: list[Segment] = []
        # The index of a segment that is needed; -1 if records wait; None ends the thread.
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._attempts = 0
        self._asked = False
        self._retry_at = 0.0
        self._error: OSError | None = None
        self.capacity = (segment_slots - HEADER_SLOTS) * SLOT
        self._thread = threading.Thread(target=self._run, name="otel-tracking-reserve", daemon=True)
        try:
            self.current = self._make(min(FIRST_SEGMENT_SLOTS, segment_slots))
            self.current.prefault()
            self._thread.start()
        except BaseException:
            self._unmap(self._index)
            self._give_up_directory()
            raise
        self._requests.put(first_index + 1)

    def _make(self, slots: int) -> Segment:
        """A segment; a smaller one where that would take more than half of the space that is left."""
        slots = _fitting(self._directory, slots)
        segment = Segment(self._directory, Header(self._index, slots, time.time_ns(), self._rank))
        self._mapped.append(segment)
        self._index += 1
        return segment

    def _run(self) -> None:
        while (request := self._next_request()) is not None:
            if request >= 0:
                self._provide(request)
            else:
                self._refilled()
        self._retry_at = 0.0
        self._refilled()
        self._give_up_directory()

    def _next_request(self) -> int | None:
        """Once a second, see also to what a handler that raised has left waiting."""
        try:
            return self._requests.get(timeout=_RETRY_PAUSE)
        except queue.Empty:
            self._retry_at = 0.0
            return -1

    def _refilled(self) -> bool:
        """Append what waits, making the segments for it; False if there is no space."""
        self._asked = False
        if time.monotonic() < self._retry_at:
            return False
        while not self._refill():
            attempts = self._attempts
            self._provide(self._index)
            if self._attempts > attempts:
                if self._error is not None:
                    self._warn(self._error)
                self._retry_at = time.monotonic() + _RETRY_PAUSE
                return False
        return True

    def _provide(self, needed: int) -> None:
        """See that the segment of that index exists."""
        if self._index <= needed:
            try:
                segment = self._make(self._slots)
            except OSError as error:
                self._error = error
                self._attempts += 1
            else:
                self._error = None
                self._ready = segment
                # A request means that it is being written already, and the next one is missing.
                segment.prefault(self._requests.empty)
        self._give_back(needed - 1)  # who needs one more is writing the one before it

    def _give_up_directory(self) -> None:
        directory, self._directory = self._directory, -1
        if directory >= 0:
            os.close(directory)

    def _give_back(self, below: int) -> None:
        """The segments below that index are full."""
        self._unmap(below)
        for index in range(self._full, below):
            self._on_full(index)
        self._full = max(self._full, below)

    def _unmap(self, below: int) -> None:
        for segment in [segment for segment in self._mapped if segment.index < below]:
            segment.close()
            self._mapped.remove(segment)

    def successor(self, segment: Segment, timeout: float) -> Segment | OSError | None:
        """The segment after that one, waiting for it if it is not ready.

        Errors are returned: what is raised in here is a signal handler's, and the training code's.

        Returns:
            None if there is none because the journal has ended; an error if it can't be made, or not
            within the timeout (seconds).
        """
        following = segment.index + 1
        attempts = self._attempts

        def settled() -> bool:
            ready = self._ready
            return (
                segment.followed
                or (ready is not None and ready.index == following)
                or self._attempts > attempts
            )

        if not settled():
            self._requests.put(following)
            wait_until(settled, timeout)
        ready = self._ready
        if ready is not None and ready.index == following:
            return segment.follow(ready)
        if segment.followed:
            return segment.successor
        return self._error or TimeoutError(f"no new journal segment within {timeout:g} s")

    def taken(self, segment: Segment) -> None:
        """A segment is being written: unmap what lies before it and reserve the next, off-thread."""
        self._requests.put(segment.index + 1)

    @property
    def failing(self) -> bool:
        """Whether the last segment that was wanted could not be made."""
        return self._error is not None

    def refill(self) -> None:
        """Have the thread append what waits, as soon as there is a segment for it."""
        if not self._asked:
            self._requests.put(-1)
            self._asked = True

    def close(self) -> Segment | None:
        """Stop; returns the segment that was made last, unless that is the first."""
        self._requests.put(None)
        self._thread.join(timeout=_STOP_TIMEOUT)
        return self._ready

    def in_child(self) -> None:
        """In a forked child: let go of maps that the parent writes; its own stay as they are."""
        for segment in self._mapped:
            segment.close()
        self._give_up_directory()
