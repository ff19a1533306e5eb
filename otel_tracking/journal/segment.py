"""One mapped segment file, and the thread that reserves segments ahead of need."""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import threading
import time
from typing import Final

from otel_tracking.journal.format import HEADER_SLOTS, PADDING_SLOT, SLOT, Header, segment_name

SEGMENT_SLOTS: Final = 8 * 2**20 // SLOT
"""8 MiB: 262,142 points."""
FIRST_SEGMENT_SLOTS: Final = 2**20 // SLOT
"""1 MiB: small runs stay small, and a start does not wait for pages."""

_PREFAULT_CHUNK: Final = 128 * 2**10
_PREFAULT_PAUSE: Final = 0.0002
_POLL: Final = 0.0002
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; `mmap` has no name for it


class Segment:
    """A reserved, mapped file. `write` appends; ValueError says that the data does not fit."""

    __slots__ = ("_map", "_next", "index", "size", "write")

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
        self._next: dict[int, Segment] = {}
        name, draft = segment_name(header.index), f"{segment_name(header.index)}.draft"
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644, dir_fd=directory)
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

    def fits(self, length: int) -> bool:
        """Whether a segment of this size could hold a record of that many bytes."""
        return length <= self.size - HEADER_SLOTS * SLOT

    def prefault(self) -> None:
        """Give every page a frame, in pieces, so that no write waits for one."""
        for start in range(0, self.size, _PREFAULT_CHUNK):
            try:
                self._map.madvise(_MADV_POPULATE_WRITE, start, min(_PREFAULT_CHUNK, self.size - start))
            except (OSError, ValueError):  # an older kernel, or closed meanwhile
                return
            time.sleep(_PREFAULT_PAUSE)

    def seal(self) -> None:
        """Fill the rest with padding: from now on every `write` raises, whoever still holds it."""
        while True:
            try:
                room = self.size - self._map.tell()
                if not room:
                    return
                self._map.write(PADDING_SLOT * (room // SLOT))
            except ValueError:  # someone wrote between the two lines (or it is closed)
                if self._map.closed:
                    return

    def follow(self, segment: Segment) -> Segment:
        """Set what comes after this one, unless that is set; returns what it is. Atomic."""
        return self._next.setdefault(0, segment)

    @property
    def successor(self) -> Segment | None:
        """What comes after this one, once that is set."""
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


class Reserve:
    """Keeps one segment ready. Its thread is the only one that makes segments.

    That is what lets a writer rotate with no lock: a signal handler that interrupts a rotation, or
    another thread in the middle of its own, finds the same successor and none makes a second one.
    What writers call here uses no `threading` primitive either: those are Python code around a plain
    lock, and a handler that interrupts one would wait for itself. `SimpleQueue.put` is reentrant.
    """

    def __init__(self, directory: int, *, first_index: int, rank: int, segment_slots: int) -> None:
        self._directory = directory
        self._rank = rank
        self._slots = segment_slots
        self._index = first_index
        self._ready: Segment | None = None
        self._finished: list[Segment] = []
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._attempts = 0
        self._error: OSError | None = None
        self.current = self._make(min(FIRST_SEGMENT_SLOTS, segment_slots))
        self.current.prefault()
        self._thread = threading.Thread(target=self._run, name="otel-tracking-reserve", daemon=True)
        self._thread.start()
        self._requests.put(True)

    def _make(self, slots: int) -> Segment:
        segment = Segment(self._directory, Header(self._index, slots, time.time_ns(), self._rank))
        self._index += 1
        return segment

    def _run(self) -> None:
        while self._requests.get():
            if self._ready is None:
                try:
                    segment = self._make(self._slots)
                except OSError as error:
                    self._error = error
                else:
                    self._error = None
                    self._ready = segment
                self._attempts += 1
                if self._ready is not None:
                    self._ready.prefault()
            while self._finished:
                self._finished.pop().close()

    def successor(self, segment: Segment, timeout: float) -> Segment:
        """The segment after that one, waiting for it if it is not ready.

        Raises:
            OSError: It can't be made, or not within the timeout (seconds).
        """
        deadline = time.monotonic() + timeout
        attempts = self._attempts
        while (known := segment.successor) is None:
            ready = self._ready
            if ready is not None and ready.index == segment.index + 1:
                return segment.follow(ready)
            error = self._error
            if error is not None and self._attempts > attempts:
                raise error
            if time.monotonic() > deadline:
                raise TimeoutError(f"no new journal segment within {timeout:g} s")
            self._requests.put(True)
            time.sleep(_POLL)
        return known

    def taken(self, old: Segment, new: Segment) -> None:
        """`new` is being written: unmap the old one off-thread and reserve the next."""
        if self._ready is new:
            self._ready = None
        self._finished.append(old)
        self._requests.put(True)

    def close(self) -> Segment | None:
        """Stop; returns the segment that was kept ready, if any."""
        self._requests.put(False)
        self._thread.join(timeout=5)
        for segment in self._finished:
            segment.close()
        self._finished.clear()
        ready, self._ready = self._ready, None
        return ready
