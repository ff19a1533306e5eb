"""Blocks of a segment as zstd frames, their columns taken apart before: what hardly changes lies together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal.format import SLOT
from otel_tracking.journal.seal import BLOCK_SLOTS
from otel_tracking.journal.source import Source

_LEVEL: Final = 3
_DIFFERENCES: Final = 3
_MOST: Final = BLOCK_SLOTS * SLOT


def available() -> bool:
    """Whether the library that compresses is installed."""
    try:
        import zstandard  # noqa: F401  # an extra
    except ImportError:
        return False
    return True


def pack(source: Source) -> list[bytes]:
    """The blocks of a segment, compressed."""
    import zstandard  # an extra

    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    slots = source.slots
    starts = range(0, slots, BLOCK_SLOTS)
    blocks: list[Any] = [_planes(source.read(at, min(BLOCK_SLOTS, slots - at))) for at in starts]
    # In one call: each that lets the training code run in between waits for it to let go again.
    compressed = compressor.multi_compress_to_buffer(blocks)
    return [compressed[number].tobytes() for number in range(len(blocks))]


def unpacker() -> Callable[[bytes, int], bytes]:
    """What gives the slots of a block, of which there are that many, from its frame.

    Raises:
        UnsupportedJournal: The library is not installed.
    """
    try:
        import zstandard  # an extra
    except ImportError as error:
        raise UnsupportedJournal(f"reading it needs pip install 'otel-tracking[zstd]' ({error})") from None
    decompressor = zstandard.ZstdDecompressor()
    return lambda frame, slots: _slots(decompressor.decompress(frame, max_output_size=_MOST))


def _planes(block: bytes) -> bytes:
    columns = np.frombuffer(block, "<i8").reshape(-1, 4).T.copy()
    columns[:_DIFFERENCES, 1:] = np.diff(columns[:_DIFFERENCES])
    return np.ascontiguousarray(columns.view(np.uint8).reshape(4, -1, 8).transpose(0, 2, 1)).tobytes()


def _slots(planes: bytes) -> bytes:
    columns = np.frombuffer(planes, np.uint8).reshape(4, 8, -1).transpose(0, 2, 1)
    words = columns.copy().view("<i8").reshape(4, -1)
    words[:_DIFFERENCES] = np.cumsum(words[:_DIFFERENCES], axis=1)
    return words.T.tobytes()
