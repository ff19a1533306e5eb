"""What a killed writer left, made fit to append to."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal import seal
from otel_tracking.journal.compressed import Form, compress, open_source, segment_names
from otel_tracking.journal.format import (
    HEADER_SLOTS,
    SLOT,
    Header,
    never_written,
    segment_index,
    segment_name,
)
from otel_tracking.journal.media import remove_drafts
from otel_tracking.journal.scan import scan


def segments(directory: int) -> list[int]:
    """The indices of the segments in a directory (a descriptor), rising."""
    indices = {segment_index(name) for name in os.listdir(directory)}
    return sorted(index for index in indices if index is not None)


def last_segment(journal: Path) -> int:
    """The index of the last segment of a journal; -1 if it has none."""
    try:
        descriptor = os.open(journal, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        return max(segments(descriptor), default=-1)
    finally:
        os.close(descriptor)


def repair(directory: int) -> int:
    """Cut the last segments to their last whole record, reserved ones to nothing but a header; seal all.

    None is removed: a reader that has one open already sees that it is finished and goes on. Nor is one
    cut that was sealed: what is damaged in it ends nothing.

    Returns:
        The index of the last segment, -1 if there is none.

    Raises:
        UnsupportedJournal: A segment of another version lies here; nothing is changed.
    """
    for name in os.listdir(directory):
        if name.endswith(".draft"):
            os.unlink(name, dir_fd=directory)
    remove_drafts(directory)
    indices = segments(directory)
    for index in reversed(indices):
        if seal.load(directory, index) is not None:
            break
        try:
            data = _read(directory, index)
        except FileNotFoundError:  # it is compressed, and its seal is damaged
            break
        whole = 0
        if not never_written(data):
            try:
                Header.unpack(data)
            except UnsupportedJournal as error:
                raise UnsupportedJournal(f"{segment_name(index)}: {error}") from None
            whole = scan(data[HEADER_SLOTS * SLOT :]).stop
        cut(directory, index, HEADER_SLOTS + whole)
        if whole:
            break
    seal_all(directory)
    there = set(os.listdir(directory))
    for index in indices:
        # A process was killed after it had compressed a segment, and before it had removed it.
        plain, *compressed = segment_names(index)
        if plain in there and there.intersection(compressed):
            os.unlink(plain, dir_fd=directory)
    return max(indices, default=-1)


def seal_all(directory: int, *, below: int | None = None, trusted: bool = False) -> None:
    """Seal the segments that are not, as far as there is space.

    Args:
        directory: Descriptor of the journal's; nothing is written into the segments any more.
        below: Leave out that segment and later ones.
        trusted: As for `seal.make`.
    """
    with contextlib.suppress(OSError):  # what has no seal is read by its records' own marks
        for index in segments(directory):
            if (below is None or index < below) and not seal.exists(directory, index):
                seal.make(directory, index, trusted=trusted, source=open_source(directory, index))


def compress_all(directory: int, form: Form) -> None:
    """Give the sealed segments that are as they were written another form, as far as there is space."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            index = segment_index(name)
            if index is not None and name == segment_name(index) and seal.exists(directory, index):
                compress(directory, index, form)


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
