"""Where the bytes of a segment are read from."""

from __future__ import annotations

import os
from typing import Protocol

from otel_tracking.journal.format import SLOT


class Source(Protocol):
    """The slots of one segment file."""

    @property
    def slots(self) -> int:
        """How many whole slots there are now; a segment that is written is cut when it is closed."""

    def read(self, slot: int, count: int) -> bytes:
        """Those slots; fewer bytes where the file ends, or what holds them is damaged."""

    def close(self) -> None:
        """Give up the descriptor."""


class Missing:
    """A segment that was removed, or can't be read at all."""

    slots = 0

    def __init__(self, *, removed: bool) -> None:
        self.removed = removed

    def read(self, slot: int, count: int) -> bytes:
        """Nothing."""
        return b""

    def close(self) -> None:
        """Nothing is open."""


class PlainSource:
    """A segment file as it was written.

    Never mapped: a file cut short under a map is a SIGBUS, `pread` just returns less.
    """

    def __init__(self, directory: int, name: str) -> None:
        """Open.

        Args:
            directory: Descriptor of the journal's directory.
            name: Of the file.

        Raises:
            FileNotFoundError: There is none.
        """
        self._file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)

    @property
    def slots(self) -> int:
        """Whole slots in the file now."""
        return os.fstat(self._file).st_size // SLOT

    def read(self, slot: int, count: int) -> bytes:
        """Those slots; less where the file ends."""
        return os.pread(self._file, count * SLOT, slot * SLOT)

    def close(self) -> None:
        """Give up the descriptor."""
        os.close(self._file)
