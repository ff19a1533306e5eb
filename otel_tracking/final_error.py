"""The exception that ends a run: which one it is, and how it reads."""

from __future__ import annotations

import sys
import traceback
from types import FrameType
from typing import Final

from otel_tracking.records import Failure, RunStatus
from otel_tracking.redaction import redact_text

TAG: Final = "exception"
"""Of the text that says how a run failed."""
REASON: Final = "reason"
"""Among the content of that text's record; no other text has it."""
_BETWEEN: Final = ("otel_tracking", "accelerate")
"""Packages whose code may lie between a call that ends the run and what ends it."""
_LONGEST: Final = 20_000
_LONGEST_REASON: Final = 500


def status_of(error: BaseException | None) -> RunStatus:
    """How a run ended that an exception ended, or none."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return RunStatus.FINISHED
    return RunStatus.KILLED if isinstance(error, KeyboardInterrupt) else RunStatus.FAILED


def ending_error() -> BaseException | None:
    """The exception that ends the interpreter, whoever has replaced `sys.excepthook`.

    In a shell or notebook there is none: the last error of any input ends nothing there.
    """
    return None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)


def passing_error(*, begun_in_except: bool) -> BaseException | None:
    """The exception that code is handling now which ends a run: in a `finally`, or in an `except`.

    Args:
        begun_in_except: Whether the run began while one was handled, as a second try does in the `except` of
            the first. Then only one is meant that has come to the calling function itself.
    """
    error = sys.exc_info()[1]
    if error is None or not begun_in_except:
        return error
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    return error if error.__traceback__ is not None and error.__traceback__.tb_frame is frame else None


def failure_of(error: BaseException) -> Failure:
    """What is said of an exception: of bounded length, without what looks like a secret, and in characters
    that every store takes."""
    reason = "".join(traceback.format_exception_only(error)).rstrip("\n")
    whole = "".join(traceback.format_exception(error)).rstrip("\n")
    return Failure(_bounded(reason, _LONGEST_REASON), _bounded(whole, _LONGEST))


def _bounded(text: str, longest: int) -> str:
    near = _cut(text, 10 * longest)  # to look for secrets takes time
    storable = near.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")
    return _cut(redact_text(storable), longest)


def _cut(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}\n[...]\n{text[-half:]}"
