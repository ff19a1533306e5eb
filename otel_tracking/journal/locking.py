"""Locks between processes: files that the kernel unlocks when their holder dies.

A forked child gets a copy of every descriptor, and with it a lock that outlives its parent. So a child
gives its copies up before any code of the user's runs in it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path
from typing import Final

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the module or nothing; looked at where it is used

NO_FORK: Final = threading.RLock()
"""Held while a lock is taken: a child forked in the middle of it would keep it, and no one would know."""
_PAUSE: Final = 0.01


class Lock:
    """An exclusive lock on a file, which is made if it is missing and stays."""

    def __init__(self, path: str | Path, *, directory: int | None = None, patience: float = 0.0) -> None:
        """Take it.

        Args:
            path: The file.
            directory: Descriptor of the directory that the path is relative to.
            patience: Seconds to wait for it.

        Raises:
            BlockingIOError: Another process has it, or another lock of this one.
            OSError: The file can't be made, or can't be locked.
        """
        deadline = time.monotonic() + patience
        self._descriptor = -1
        with NO_FORK:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644, dir_fd=directory)
            _LOCKS.add(self)
            try:
                while not self._taken():
                    if time.monotonic() >= deadline:
                        raise BlockingIOError(f"{path} is locked")
                    time.sleep(_PAUSE)
            except BaseException:
                self._close()
                raise

    def _taken(self) -> bool:
        if fcntl is not None:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def release(self) -> None:
        """Give it up, for all copies of the descriptor: a child that was just forked still has one."""
        if fcntl is not None and self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody has that lock. Makes and changes nothing, and needs no right to write."""
    if fcntl is None:
        return False
    with NO_FORK:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            # Shared, so that several may look at once. Who takes the lock just then waits for a moment.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False


_LOCKS: Final[weakref.WeakSet[Lock]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    NO_FORK.release()
    for lock in list(_LOCKS):
        lock._close()
    _LOCKS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=NO_FORK.acquire,
        after_in_parent=NO_FORK.release,
        after_in_child=_after_fork_in_child,
    )
