"""The thread that seals segments which are full, and packs them."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

from otel_tracking.journal import seal
from otel_tracking.journal.compressed import Form, compress

_STOP_TIMEOUT: Final = 5.0


class Sealer:
    """Seals the segments of one writer, in their order. What it leaves is done by who repairs next."""

    def __init__(self, directory: int, *, form: Form | None, after: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            directory: Descriptor of the journal's directory.
            form: Which one segments get as well; None if they stay as they are.
            after: Called when one is sealed.
        """
        self._after = after
        self._directory = os.dup(directory)  # the thread may outlive the writer's
        self._form = form
        self._requests: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # whose `put` is reentrant
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="otel-tracking-seal", daemon=True)
        self._thread.start()

    def seal(self, index: int) -> None:
        """Nothing more is written into that segment."""
        self._requests.put(index)

    def close(self) -> None:
        """Stop after the segment that is under way."""
        self._stopping = True
        self._requests.put(None)
        self._thread.join(_STOP_TIMEOUT)

    def in_child(self) -> None:
        """In a forked child, which has no such thread."""
        os.close(self._directory)

    def _run(self) -> None:
        while not self._stopping and (index := self._requests.get()) is not None:
            with contextlib.suppress(OSError):  # no space
                seal.make(self._directory, index, trusted=True)
                if self._form is not None:
                    compress(self._directory, index, self._form)
            self._after()
        os.close(self._directory)
