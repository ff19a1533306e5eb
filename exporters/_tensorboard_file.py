"""The one event file that a run grows, and what earlier files of the run hold."""

from __future__ import annotations

import mmap
import os
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SourceMetadata  # type: ignore[import-untyped]

from otel_tracking.errors import TrackingError
from otel_tracking.names import NameRule
from otel_tracking_exporters._tensorboard_events import frame, position_of, records

_FILE_TIME = re.compile(r"tfevents\.(\d{10})\.")
_NAME_PART = NameRule(forbidden=r"^A-Za-z0-9._\-", max_length=100)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC


class TornWrite(OSError):
    """The file took a part of what was to be appended; it ends in a whole record again.

    Attributes:
        kept: The whole records that it took.
    """

    def __init__(self, kept: bytes, cause: OSError) -> None:
        self.kept = kept
        super().__init__(cause.errno, cause.strerror)


class EventFile:
    """A new event file, open for appending from any thread of this process.

    Every append goes to the operating system before it returns, so what was appended survives the
    death of the process. TensorBoard reads a directory's files in the order of their names and
    leaves a file for good once it has seen a later one: hence one growing file in a directory, and
    a name later than every name there.

    Args:
        directory: The run's directory.
        suffix: What the file's name ends in.

    Attributes:
        lock: Held while appending; take it to append what depends on what was appended before.
    """

    def __init__(self, directory: Path, suffix: str = "") -> None:
        self.lock = threading.RLock()
        self._pid = os.getpid()
        self._suffix = _NAME_PART.escape(suffix) if suffix else ""
        self.path = self._next_path(directory, self._suffix)
        self._fd: int | None = os.open(self.path, _NEW, 0o644)
        self._size = 0
        self.append(first_record())

    def _next_path(self, directory: Path, suffix: str) -> Path:
        times = [int(found[1]) for path in event_files(directory) if (found := _FILE_TIME.search(path.name))]
        seconds = max(int(time.time()), max(times, default=0) + 1)
        host = _NAME_PART.escape(socket.gethostname())
        return directory / f"events.out.tfevents.{seconds:010d}.{host}.{self._pid}.0{suffix}"

    def start_anew(self, content: Iterable[bytes], suffix: str) -> None:
        """Go on in a new file, which readers see once it holds all that it is to begin with.

        Args:
            content: Whole records, in pieces.
            suffix: What the new file's name ends in, after this one's own.

        Raises:
            OSError: There is no space for it; this file stays the one.
        """
        with self.lock:
            if self._fd is None:
                raise TrackingError(f"{self.path} is closed: the run has ended")
            draft = self.path.with_name("rewind.draft")
            draft.unlink(missing_ok=True)
            fd = os.open(draft, _NEW, 0o644)
            try:
                with os.fdopen(os.dup(fd), "wb") as file:
                    file.write(first_record())
                    file.writelines(content)
                path = self._next_path(self.path.parent, self._suffix + suffix)
                draft.rename(path)
            except BaseException:
                os.close(fd)
                draft.unlink(missing_ok=True)
                raise
            os.close(self._fd)
            self._fd, self.path, self._size = fd, path, os.fstat(fd).st_size

    @property
    def size(self) -> int:
        """Bytes appended: the end of the last record."""
        return self._size

    def append(self, data: bytes) -> None:
        """Append whole records.

        Raises:
            TornWrite: The disk is full, or failing.
            TrackingError: The file is closed, or belongs to the process this one was forked from.
        """
        if os.getpid() != self._pid:
            raise TrackingError(f"{self.path} is written by process {self._pid}; a forked process must not")
        with self.lock:
            if self._fd is None:
                raise TrackingError(f"{self.path} is closed: the run has ended")
            written = 0
            try:
                while written < len(data):
                    written += os.write(self._fd, data[written:] if written else data)
            except OSError as error:
                kept = max((end for end, _ in records(data[:written])), default=0)
                os.ftruncate(self._fd, self._size + kept)
                self._size += kept
                raise TornWrite(data[:kept], error) from error
            self._size += len(data)

    def append_event(self, event: Event, stamp: bytes = b"") -> None:
        """Append one event; without a wall time it gets the current one.

        Args:
            event: The event, which is changed when it has no wall time.
            stamp: Bytes that the payload begins with.
        """
        if not event.wall_time:
            event.wall_time = time.time()
        self.append(frame(stamp + event.SerializeToString()))

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self.lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None


def first_record() -> bytes:
    """What every event file begins with."""
    about = SourceMetadata(writer="otel_tracking")
    event = Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=about)
    return frame(event.SerializeToString())


def event_files(directory: Path) -> list[Path]:
    """A directory's event files, in the order in which TensorBoard reads them."""
    return sorted(path for path in directory.iterdir() if "tfevents" in path.name and path.is_file())


def stored_position(directory: Path, position: int, state: Mapping[str, Any]) -> int:
    """Up to which journal position the event files of a run hold everything.

    Args:
        directory: The run's directory.
        position: Up to where it was confirmed.
        state: The `file` that grew then and its `size`; empty if the run was never confirmed.

    Returns:
        More than `position` where later events are found; less where the file confirmed is gone or
        has been cut.
    """
    files = event_files(directory)
    known = next((path for path in files if path.name == state.get("file")), None)
    if known is not None and known.stat().st_size >= state["size"]:
        newer = files[files.index(known) + 1 :]
        return max([position, _last_position(known, state["size"]), *map(_last_position, newer)])
    found = max(map(_last_position, files), default=0)
    return found if state else max(found, position)


def last_position(data: bytes | mmap.mmap, start: int = 0) -> int:
    """The highest journal position among whole records from `start` on; 0 for none."""
    return max((position_of(payload) for _, payload in records(data, start)), default=0)


def _last_position(path: Path, start: int = 0) -> int:
    if path.stat().st_size <= start:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return last_position(data, start)


def read_event(path: Path, start: int) -> Event | None:
    """The event whose record begins at `start`, if one does."""
    with path.open("rb") as file:
        file.seek(start)
        header = file.read(12)
        length = int.from_bytes(header[:8], "little")
        whole = header + file.read(min(length, path.stat().st_size) + 4)
    return next((Event.FromString(payload) for _, payload in records(whole)), None)
