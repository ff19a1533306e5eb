"""What a killed writer left, made fit to append to."""

from __future__ import annotations

import contextlib
import os

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, Header, segment_index, segment_name
from otel_tracking.journal.scan import scan


def segments(directory: int) -> list[int]:
    """The indices of the segments in a directory (a descriptor), rising."""
    indices = (segment_index(name) for name in os.listdir(directory))
    return sorted(index for index in indices if index is not None)


def repair(directory: int) -> int:
    """Cut the last segments to their last whole record: reserved ones to nothing but a header.

    None is removed: a reader that has one open already sees that it is finished and goes on.

    Returns:
        The index of the last segment, -1 if there is none.

    Raises:
        UnsupportedJournal: A segment of another version lies here; nothing is changed.
    """
    for name in os.listdir(directory):
        if name.endswith(".draft"):
            os.unlink(name, dir_fd=directory)
    last = -1
    for index in reversed(segments(directory)):
        data = _read(directory, index)
        try:
            Header.unpack(data)
        except UnsupportedJournal as error:
            raise UnsupportedJournal(f"{segment_name(index)}: {error}") from None
        whole = scan(data[HEADER_SLOTS * SLOT :]).stop
        cut(directory, index, HEADER_SLOTS + whole)
        last = max(last, index)
        if whole:
            break
    return last


def end(directory: int, index: int, slot: int) -> int:
    """Where the whole records of a segment end, looking from a slot on where one may begin."""
    with contextlib.suppress(FileNotFoundError):
        return slot + scan(_read(directory, index)[slot * SLOT :]).stop
    return slot


def cut(directory: int, index: int, slots: int) -> None:
    """Shorten a segment: it holds that many slots and will get no more."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(segment_name(index), os.O_RDWR | os.O_CLOEXEC, dir_fd=directory)
        try:
            os.ftruncate(descriptor, slots * SLOT)
        finally:
            os.close(descriptor)


def _read(directory: int, index: int) -> bytes:
    descriptor = os.open(segment_name(index), os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(descriptor, "rb") as file:
        return file.read()
