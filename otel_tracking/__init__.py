"""Experiment tracking through OpenTelemetry: record once, every point exactly once in every tracker."""

from otel_tracking.errors import (
    ConfigurationError,
    JournalError,
    JournalFull,
    JournalLocked,
    LoggingDirectoryRequired,
    NativeHandleUnavailable,
    NotStarted,
    Retry,
    RunIdentityUnknown,
    RunNotFound,
    TrackerNotInstalled,
    TrackingError,
    UnknownTracker,
    UnsupportedJournal,
)
from otel_tracking.reading import RunData, read_run, read_spans
from otel_tracking.records import Receipt, TrackerReceipt
from otel_tracking.span_records import RecordedSpan, SpanEvent, SpanLink
from otel_tracking.steps import set_step, step
from otel_tracking.tracker import Tracker
from otel_tracking.tracking import Tracking

__version__ = "0.1.0"

__all__ = [
    "ConfigurationError",
    "JournalError",
    "JournalFull",
    "JournalLocked",
    "LoggingDirectoryRequired",
    "NativeHandleUnavailable",
    "NotStarted",
    "Receipt",
    "RecordedSpan",
    "Retry",
    "RunData",
    "RunIdentityUnknown",
    "RunNotFound",
    "SpanEvent",
    "SpanLink",
    "Tracker",
    "TrackerNotInstalled",
    "TrackerReceipt",
    "Tracking",
    "TrackingError",
    "UnknownTracker",
    "UnsupportedJournal",
    "__version__",
    "read_run",
    "read_spans",
    "set_step",
    "step",
]
