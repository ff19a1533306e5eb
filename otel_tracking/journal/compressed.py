"""A sealed segment in less space: the same slots, each block of 64 KiB packed by itself.

Blocks have two forms: `pack`, which needs NumPy alone, and `zstd`, which takes less space and an extra.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal import packing, zstd_blocks
from otel_tracking.journal.format import SLOT, crc32c, segment_name
from otel_tracking.journal.seal import BLOCK_SLOTS
from otel_tracking.journal.source import PlainSource, Source

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQQ24xII")  # magic version blocks segment slots, crc of table, crc of it
_OFFSET: Final = np.dtype("<u8")
_KEPT: Final = 9
"""Blocks that a source keeps: those of one stretch of a reader's, which is looked at and then read."""


@dataclass(frozen=True, slots=True)
class Form:
    """How the blocks of a segment are packed."""

    suffix: str
    """Of the file, behind the name of the segment's."""
    magic: bytes
    """Its first eight bytes."""
    smallest: int
    """Bytes of a segment below which it stays as it is."""
    pack: Callable[[Source], list[bytes]]
    """The blocks of a segment."""
    unpacker: Callable[[], Callable[[bytes, int], bytes]]
    """Gives what gives a block's slots, of which there are that many; raises `UnsupportedJournal`."""


# A new file has to be on the disk before the old one goes, for which the end of a short run would wait.
FORMS: Final = {
    "pack": Form(".packed", b"OTELPAK\x00", 2**20, packing.pack, lambda: packing.unpack),
    "zstd": Form(".zst", b"OTELZST\x00", 0, zstd_blocks.pack, zstd_blocks.unpacker),
}


def segment_names(index: int) -> list[str]:
    """The files that a segment can be in: as it is written, then in each form."""
    name = segment_name(index)
    return [name, *(name + form.suffix for form in FORMS.values())]


def compress(directory: int, index: int, form: Form) -> None:
    """Replace a sealed segment by another form, which is on the disk before the other goes.

    Args:
        directory: Descriptor of the journal's directory.
        index: Of the segment.
        form: Which; a segment that is small for it stays.

    Raises:
        OSError: There is no space, or no such segment.
    """
    source = PlainSource(directory, segment_name(index))
    try:
        slots = source.slots
        if slots * SLOT < form.smallest:
            return
        frames = form.pack(source)
    finally:
        source.close()
    first = _HEADER.size + (len(frames) + 1) * _OFFSET.itemsize
    table = (first + np.cumsum([0, *map(len, frames)])).astype(_OFFSET).tobytes()
    head = _HEADER.pack(form.magic, _VERSION, len(frames), index, slots, crc32c(table), 0)[:-4]
    name = segment_name(index) + form.suffix
    draft = f"{name}.draft"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(draft, flags, 0o644, dir_fd=directory), "wb") as file:
            head += struct.pack("<I", crc32c(head))
            # Twice, as without it nothing can be read.
            file.writelines([head, table, *frames, table, head])
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise
    os.unlink(segment_name(index), dir_fd=directory)


def open_source(directory: int, index: int) -> Source:
    """A segment in whatever form it has now.

    Raises:
        FileNotFoundError: There is none.
        UnsupportedJournal: It is compressed, and damaged, of another version, or its library is missing.
    """
    with contextlib.suppress(FileNotFoundError):
        return PlainSource(directory, segment_name(index))
    for form in FORMS.values():
        with contextlib.suppress(FileNotFoundError):
            return CompressedSource(directory, index, form)
    raise FileNotFoundError(segment_name(index))


class CompressedSource:
    """A compressed segment. What is damaged in it reads as missing."""

    def __init__(self, directory: int, index: int, form: Form) -> None:
        """Open.

        Args:
            directory: Descriptor of the journal's directory.
            index: Of the segment.
            form: Of its file.

        Raises:
            FileNotFoundError: There is none.
            UnsupportedJournal: It is damaged, of another version, or its library is not installed.
        """
        name = segment_name(index) + form.suffix
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        self.problem = ""
        """What is wrong with it, if it can be read all the same."""
        try:
            self._unpack = form.unpacker()
            tables = [_table(file, form.magic, index, at_end=at_end) for at_end in (False, True)]
            found = [table for table in tables if table is not None]
            if not found:
                raise UnsupportedJournal("its header is damaged, or of another version")
        except UnsupportedJournal as error:
            os.close(file)
            raise UnsupportedJournal(f"{name}: {error}") from None
        except BaseException:
            os.close(file)
            raise
        if len(found) < len(tables):
            self.problem = "one of the two copies of its table is damaged"
        self.slots, self._offsets = found[0]
        self._file = file
        self._kept: dict[int, bytes] = {}

    def read(self, slot: int, count: int) -> bytes:
        """Those slots; less where they end, or a block is damaged."""
        pieces = []
        end = min(slot + count, self.slots)
        while slot < end:
            number = slot // BLOCK_SLOTS
            begin = slot - number * BLOCK_SLOTS
            piece = self._block(number)[begin * SLOT : (end - number * BLOCK_SLOTS) * SLOT]
            if not piece:
                break
            pieces.append(piece)
            slot += len(piece) // SLOT
        return b"".join(pieces)

    def close(self) -> None:
        """Give up the descriptor."""
        os.close(self._file)

    def _block(self, number: int) -> bytes:
        if number in self._kept:
            return self._kept[number]
        begin, end = self._offsets[number], self._offsets[number + 1]
        slots = min(BLOCK_SLOTS, self.slots - number * BLOCK_SLOTS)
        block = b""
        # Whatever a library says of damaged bytes; its own error class is not known here.
        with contextlib.suppress(Exception):
            found = self._unpack(os.pread(self._file, end - begin, begin), slots)
            if len(found) == slots * SLOT:
                block = found
        if len(self._kept) == _KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[number] = block
        return block


def _table(file: int, magic: bytes, index: int, *, at_end: bool) -> tuple[int, list[int]] | None:
    """How many slots there are, and where each block begins and the last one ends; None if damaged."""
    end = os.fstat(file).st_size
    head = os.pread(file, _HEADER.size, max(0, end - _HEADER.size) if at_end else 0)
    if len(head) < _HEADER.size or not head.startswith(magic):
        return None
    _, version, blocks, segment, slots, table_crc, crc = _HEADER.unpack(head)
    if crc != crc32c(head[:-4]) or (version, segment) != (_VERSION, index):
        return None
    size = (blocks + 1) * _OFFSET.itemsize
    table = os.pread(file, size, max(0, end - _HEADER.size - size) if at_end else _HEADER.size)
    return (slots, np.frombuffer(table, _OFFSET).tolist()) if table_crc == crc32c(table) else None
