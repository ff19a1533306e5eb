"""Who may change a journal: one process that writes it, or one that repairs it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from otel_tracking.errors import JournalLocked
from otel_tracking.journal import recovery
from otel_tracking.journal.locking import NO_FORK, Lock, is_locked

_LOCK_FILE: Final = "lock"
_REPAIR_FILE: Final = "repair.lock"
_REPAIR_PATIENCE: Final = 60.0


def lock_journal(path: Path, directory: int, patience: float = 0.0) -> Lock:
    """The lock of the journal in a directory, of which this is a descriptor, too.

    Args:
        path: For the error.
        directory: The descriptor.
        patience: Seconds to wait for who only looks whether it is locked.

    Raises:
        JournalLocked: Another process has it.
    """
    try:
        return Lock(_LOCK_FILE, directory=directory, patience=patience)
    except BlockingIOError:
        raise JournalLocked(str(path)) from None


def is_written(directory: Path) -> bool:
    """Whether a process is writing a journal; nothing is changed."""
    return is_locked(directory / _LOCK_FILE)


@contextlib.contextmanager
def not_written(directory: Path) -> Iterator[int]:
    """A descriptor of a journal's directory, while no other process writes or repairs it.

    Raises:
        JournalLocked: A process is writing there.
        OSError: There is no such directory, or it can't be written.
    """
    with NO_FORK:
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Who repairs waits for others that do, and for them only: who records keeps its lock.
            repairing = Lock(_REPAIR_FILE, directory=descriptor, patience=_REPAIR_PATIENCE)
            try:
                lock = lock_journal(directory, descriptor)
                try:
                    yield descriptor
                finally:
                    lock.release()
            finally:
                repairing.release()
        finally:
            os.close(descriptor)


def repair(directory: Path) -> int:
    """Cut what a killed writer left after its last whole record, and seal what is not.

    Returns:
        The index of the last segment, -1 if there is none.

    Raises:
        JournalLocked: A process is writing there.
        UnsupportedJournal: A segment of another version lies there; nothing is changed.
    """
    with not_written(directory) as descriptor:
        return recovery.repair(descriptor)
