"""Every exception this project raises, in one tree.

::

    TrackingError
    ├── ConfigurationError (ValueError)      a setting or argument is wrong
    │   ├── LoggingDirectoryRequired         a tracker needs a directory and got none
    │   ├── UnknownTracker                   no tracker of that name is installed
    │   ├── TrackerNotInstalled              the tracker's own package is missing
    │   └── RunIdentityUnknown               the ranks can't agree on one run
    ├── NotStarted (RuntimeError)            `init_trackers` has not been called
    ├── JournalError
    │   ├── JournalLocked                    another process writes this journal
    │   ├── JournalFull                      a record has no place, or is larger than a segment can be
    │   └── UnsupportedJournal               the journal's format is not known here
    └── Retry                                a tracker took nothing; try again later

`Retry` is raised by trackers for the follower that feeds them; user code never sees it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # no types are published for it
import difflib
import functools
import signal
from collections.abc import Iterable
from types import CodeType
from typing import Final


class TrackingError(Exception):
    """Base of every error of this project."""


class ConfigurationError(TrackingError, ValueError):
    """A setting or an argument is wrong; the text says which and what to do."""


class LoggingDirectoryRequired(ConfigurationError):
    """A tracker that writes files was asked for, and no directory was given.

    Attributes:
        tracker: The tracker's name.
    """

    def __init__(self, tracker: str) -> None:
        self.tracker = tracker
        super().__init__(
            f"Logging with `{tracker}` requires a `logging_dir` to be passed in. "
            "Pass `project_dir=` (or `logging_dir=`), or set OTEL_TRACKING_PROJECT_DIR."
        )


class UnknownTracker(ConfigurationError):
    """No installed package declares a tracker of that name.

    Attributes:
        tracker: The name asked for.
        known: The names that exist.
    """

    def __init__(self, tracker: str, known: Iterable[str]) -> None:
        self.tracker = tracker
        self.known = sorted(known)
        close = difflib.get_close_matches(tracker, self.known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(
            f"unknown tracker {tracker!r}.{hint} Known: {', '.join(self.known) or 'none'}. "
            "A tracker is found by its entry point in the group 'otel_tracking_trackers'."
        )


class TrackerNotInstalled(ConfigurationError, ImportError):
    """The tracker is known, but the package it drives can't be imported.

    Attributes:
        tracker: The tracker's name.
        reason: What the import said.
    """

    def __init__(self, tracker: str, reason: str) -> None:
        self.tracker = tracker
        self.reason = reason
        super().__init__(
            f"Tried adding logger {tracker}, but package is unavailable in the system. "
            f"Install it: pip install 'otel-tracking[{tracker}]' ({reason})"
        )


class RunIdentityUnknown(ConfigurationError):
    """Several ranks are to be recorded and they can't agree on one run's name."""


class RunNotFound(ConfigurationError):
    """There is no such run.

    Attributes:
        run: What it was called.
        project: Where it was looked for.
    """

    def __init__(self, run: str, project: object, known: Iterable[str]) -> None:
        self.run = run
        self.project = project
        there = ", ".join(known)
        super().__init__(f"there is no run {run!r} in {project}. The runs there: {there or 'none'}")


class NotStarted(TrackingError, RuntimeError):
    """A call that needs `init_trackers` first."""


class NativeHandleUnavailable(ConfigurationError):
    """The tracker's own object lives in the process that delivers, and can't be had in this one.

    Attributes:
        tracker: The tracker's name.
    """

    def __init__(self, tracker: str) -> None:
        self.tracker = tracker
        super().__init__(
            f"{tracker} runs in the sidecar (delivery='process'), and its own object can't be had in two "
            "processes. Use delivery='thread' to have it here."
        )


class JournalError(TrackingError):
    """Base of what can be wrong with a journal."""


class JournalLocked(JournalError):
    """Another live process writes this journal.

    Attributes:
        path: The journal's directory.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(
            f"the journal {path} is being written by another process. One writer a journal: "
            "end that process, or start this one under another OTEL_TRACKING_RUN_ID."
        )


class JournalFull(JournalError):
    """A record has no place: the disk is full, or it is larger than a segment may be."""


class UnsupportedJournal(JournalError):
    """A file is no journal segment, or of a version this release does not read."""


class Retry(TrackingError):
    """Raised by a tracker's `write*`: none of it was taken, call again.

    Attributes:
        after: Seconds to wait at least; None leaves it to the follower's backoff.
    """

    def __init__(self, reason: str, *, after: float | None = None) -> None:
        self.after = after
        super().__init__(reason)


_SIGNALS: Final = tuple(map(int, signal.valid_signals()))


def raised_here(error: BaseException) -> bool:
    """Whether the line that caught an exception raised it, by a call into C.

    If not, code in Python ran inside that line. Where the line calls none, that was a signal handler.
    """
    return error.__traceback__ is None or error.__traceback__.tb_next is None


def raised_by_handler(error: BaseException) -> bool:
    """Whether a signal handler raised an exception: it is the training code's, whatever it interrupted."""
    # Not `signal.getsignal`: that wraps this in Python that catches ValueError and TypeError, also those that
    # the next handler raises in there.
    codes = {_code(_signal.getsignal(number)) for number in _SIGNALS} - {None}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False


def _code(handler: object) -> CodeType | None:
    """What a handler runs, if that is Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__code__") and not hasattr(handler, "__func__"):
        handler = getattr(type(handler), "__call__", None)  # noqa: B004  # the method is wanted, not whether
    code = getattr(getattr(handler, "__func__", handler), "__code__", None)
    return code if isinstance(code, CodeType) else None
