"""A sealed segment, compressed: the same slots in a quarter of the space or less.

Each block of 64 KiB is a zstd frame of its own. Before, its four columns are taken apart: in the first three
(word, step, time) a slot becomes its difference to the one before, and each column is stored byte plane by
byte plane, so that what hardly changes lies together.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal.format import SLOT, crc32c, segment_name
from otel_tracking.journal.seal import BLOCK_SLOTS
from otel_tracking.journal.source import PlainSource, Source

if TYPE_CHECKING:
    import zstandard

_MAGIC: Final = b"OTELZST\x00"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sIIQQ24xII")  # magic version blocks segment slots, crc of table, crc of it
_OFFSET: Final = np.dtype("<u8")
_LEVEL: Final = 3
_DIFFERENCES: Final = 3
_MOST: Final = BLOCK_SLOTS * SLOT


def compressed_name(index: int) -> str:
    """The file of a segment that is compressed."""
    return f"{segment_name(index)}.zst"


def available() -> bool:
    """Whether the library that compresses is installed."""
    try:
        import zstandard  # noqa: F401  # an extra
    except ImportError:
        return False
    return True


def compress(directory: int, index: int) -> None:
    """Replace a sealed segment by its compressed form, which is on the disk before the other goes.

    Args:
        directory: Descriptor of the journal's directory.
        index: Of the segment.

    Raises:
        OSError: There is no space, or no such segment.
    """
    import zstandard  # an extra

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    source = PlainSource(directory, segment_name(index))
    try:
        slots = source.slots
        starts = range(0, slots, BLOCK_SLOTS)
        blocks: list[Any] = [_planes(source.read(at, min(BLOCK_SLOTS, slots - at))) for at in starts]
    finally:
        source.close()
    # In one call: each that lets the training code run in between waits for it to let go again.
    compressed = compressor.multi_compress_to_buffer(blocks)
    frames = [compressed[number].tobytes() for number in range(len(blocks))]
    first = _HEADER.size + (len(frames) + 1) * _OFFSET.itemsize
    table = (first + np.cumsum([0, *map(len, frames)])).astype(_OFFSET).tobytes()
    head = _HEADER.pack(_MAGIC, _VERSION, len(frames), index, slots, crc32c(table), 0)[:-4]
    name, draft = compressed_name(index), f"{compressed_name(index)}.draft"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(draft, flags, 0o644, dir_fd=directory), "wb") as file:
            head += struct.pack("<I", crc32c(head))
            # Twice, as without it nothing can be read.
            file.writelines([head, table, *frames, table, head])
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise
    os.unlink(segment_name(index), dir_fd=directory)


def open_source(directory: int, index: int) -> Source:
    """A segment in whatever form it has now.

    Raises:
        FileNotFoundError: There is none.
        UnsupportedJournal: It is compressed, and damaged, of another version, or zstandard is missing.
    """
    try:
        return PlainSource(directory, segment_name(index))
    except FileNotFoundError:
        return CompressedSource(directory, index)


class CompressedSource:
    """A compressed segment. What is damaged in it reads as missing."""

    def __init__(self, directory: int, index: int) -> None:
        """Open.

        Args:
            directory: Descriptor of the journal's directory.
            index: Of the segment.

        Raises:
            FileNotFoundError: There is none.
            UnsupportedJournal: It is damaged, of another version, or zstandard is not installed.
        """
        name = compressed_name(index)
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        self.problem = ""
        """What is wrong with it, if it can be read all the same."""
        try:
            self._decompressor = _decompressor(name)
            tables = [_table(file, index, at_end=at_end) for at_end in (False, True)]
            found = [table for table in tables if table is not None]
            if not found:
                raise UnsupportedJournal(f"{name}: its header is damaged, or of another version")
        except BaseException:
            os.close(file)
            raise
        if len(found) < len(tables):
            self.problem = "one of the two copies of its table is damaged"
        self.slots, self._offsets = found[0]
        self._file = file
        self._last = -1, b""

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
        known, block = self._last
        if known == number:
            return block
        begin, end = self._offsets[number], self._offsets[number + 1]
        slots = min(BLOCK_SLOTS, self.slots - number * BLOCK_SLOTS)
        block = b""
        # Whatever the library says of damaged bytes; its own error class is not known here.
        with contextlib.suppress(Exception):
            frame = os.pread(self._file, end - begin, begin)
            planes = self._decompressor.decompress(frame, max_output_size=_MOST)
            if len(planes) == slots * SLOT:
                block = _slots(planes)
        self._last = number, block
        return block


def _decompressor(name: str) -> zstandard.ZstdDecompressor:
    try:
        import zstandard  # an extra
    except ImportError as error:
        raise UnsupportedJournal(
            f"{name} is compressed; reading it needs pip install 'otel-tracking[zstd]' ({error})"
        ) from None
    return zstandard.ZstdDecompressor()


def _table(file: int, index: int, *, at_end: bool) -> tuple[int, list[int]] | None:
    """How many slots there are, and where each block begins and the last one ends; None if damaged."""
    end = os.fstat(file).st_size
    head = os.pread(file, _HEADER.size, max(0, end - _HEADER.size) if at_end else 0)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        return None
    _, version, blocks, segment, slots, table_crc, crc = _HEADER.unpack(head)
    if crc != crc32c(head[:-4]) or (version, segment) != (_VERSION, index):
        return None
    size = (blocks + 1) * _OFFSET.itemsize
    table = os.pread(file, size, max(0, end - _HEADER.size - size) if at_end else _HEADER.size)
    return (slots, np.frombuffer(table, _OFFSET).tolist()) if table_crc == crc32c(table) else None


def _planes(block: bytes) -> bytes:
    columns = np.frombuffer(block, "<i8").reshape(-1, 4).T.copy()
    columns[:_DIFFERENCES, 1:] = np.diff(columns[:_DIFFERENCES])
    return np.ascontiguousarray(columns.view(np.uint8).reshape(4, -1, 8).transpose(0, 2, 1)).tobytes()


def _slots(planes: bytes) -> bytes:
    columns = np.frombuffer(planes, np.uint8).reshape(4, 8, -1).transpose(0, 2, 1)
    words = columns.copy().view("<i8").reshape(4, -1)
    words[:_DIFFERENCES] = np.cumsum(words[:_DIFFERENCES], axis=1)
    return words.T.tobytes()
