"""Log records as texts: which are wanted, what they are called, how they read, which step they have."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from opentelemetry._logs import LogRecord
from opentelemetry.trace import SpanContext, TraceFlags

from otel_tracking.span_records import STEP_ATTRIBUTE
from otel_tracking.steps import STEP_ALIASES, ambient, as_step, carried, open_span_step

_LEVELS: Final = {
    "debug": (logging.DEBUG, 5),
    "info": (logging.INFO, 9),
    "warning": (logging.WARNING, 13),
    "error": (logging.ERROR, 17),
    "critical": (logging.CRITICAL, 21),
}
"""By name: Python's level and OpenTelemetry's severity."""

_NEVER: Final = (
    "otel_tracking",
    "otel_tracking_exporters",
    "opentelemetry.attributes",
    "opentelemetry.context",
    "opentelemetry.exporter",
    "opentelemetry.sdk",
)
"""What says how records get on. As a record of its own it would say so again, for ever."""
_UNLESS_NAMED: Final = "opentelemetry"
_TAGS: Final = 100
_NAMES: Final = 10_000
_STEPS: Final = (STEP_ATTRIBUTE, *STEP_ALIASES)
_STACKTRACE: Final = "exception.stacktrace"


class LogFilter:
    """Which log records are wanted.

    Args:
        level: The lowest: `debug`, `info`, `warning`, `error` or `critical`.
        names: Loggers, each with those below it; `!name` leaves out. The longest that matches decides.
            If none is wanted by name, all are that are not left out.
        never: Loggers that are left out whatever is named.
        instrumentations: Whether OpenTelemetry's instrumentations are wanted without being named.
    """

    def __init__(
        self,
        level: str,
        names: Sequence[str] = (),
        never: Iterable[str] = (),
        *,
        instrumentations: bool = False,
    ) -> None:
        self.level, self.severity = _LEVELS[level]
        self._never = frozenset((*_NEVER, *never))
        self._rules = {} if instrumentations else {_UNLESS_NAMED: False}
        self._rules |= {name.removeprefix("!").strip(): not name.startswith("!") for name in names}
        self._others = not any(self._rules.values())
        self._known: dict[str, bool] = {}

    def wants(self, name: str) -> bool:
        """Whether records of the logger of that name are wanted."""
        known = self._known.get(name)
        if known is None:
            if len(self._known) >= _NAMES:  # some programs make names up as they go
                self._known = {}
            known = self._known[name] = self._decide(name)
        return known

    def _decide(self, name: str) -> bool:
        upward = [name]
        while "." in upward[-1]:
            upward.append(upward[-1].rpartition(".")[0])
        if not self._never.isdisjoint(upward):
            return False
        return next((self._rules[at] for at in upward if at in self._rules), self._others)

    def wants_severity(self, number: object) -> bool:
        """Whether a severity of OpenTelemetry's is high enough. One that is not given is."""
        severity = getattr(number, "value", number)
        return not isinstance(severity, int) or severity == 0 or severity >= self.severity


class LogTags:
    """The names of texts: one for each logger at the top, and no more than trackers can show."""

    def __init__(self) -> None:
        self._tags: dict[str, str] = {}

    def tag(self, name: str) -> str:
        """The tag of a logger's records. The logger's whole name is in the text."""
        top = name.partition(".")[0] or "root"
        tag = self._tags.get(top)
        if tag is None:
            if len(self._tags) >= _TAGS:
                return "logs/other"
            tag = self._tags[top] = f"logs/{top}"
        return tag


def text_of_python(record: logging.LogRecord) -> str:
    """A record of `logging`, as text.

    By no `logging.Formatter`: one leaves its trace of the exception in the record, for those of the user's
    handlers to find.
    """
    trace = ""
    if record.exc_info and record.exc_info[0] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info))
    elif record.exc_text:
        trace = record.exc_text
    lines = [_line(record.levelname, record.name, record.getMessage()), trace, record.stack_info or ""]
    return "\n".join(line.rstrip("\n") for line in lines if line)


def text_of_api(record: LogRecord, name: str) -> str:
    """A record of OpenTelemetry's, as text: with the exception's trace, and of an event its attributes."""
    attributes: Mapping[str, Any] = record.attributes or {}
    body = record.body
    if record.event_name and body is None:
        content = {key: value for key, value in attributes.items() if key.partition(".")[0] != "exception"}
        for key in _STEPS:
            content.pop(key, None)
        said = _as_text(content) if content else ""
    else:
        said = _as_text(body)
    said = " ".join(part for part in (record.event_name or "", said) if part)
    severity = str(record.severity_text or getattr(record.severity_number, "name", ""))
    if severity == "UNSPECIFIED":
        severity = ""
    trace = str(attributes.get(_STACKTRACE) or "")
    if not trace and "exception.type" in attributes:
        trace = f"{attributes['exception.type']}: {attributes.get('exception.message', '')}"
    lines = [_line(severity, name, said), trace]
    return "\n".join(line.rstrip("\n") for line in lines if line)


def _line(severity: str, name: str, said: str) -> str:
    head = " ".join(part for part in (severity, name) if part)
    return f"{head}: {said}" if head else said


def _as_text(body: object) -> str:
    if body is None:
        return ""
    if isinstance(body, str):
        return body
    if isinstance(body, bytes):
        return body.decode(errors="replace")
    if isinstance(body, Mapping | Sequence):
        try:
            return json.dumps(_plain(body), ensure_ascii=False, default=str)
        except (TypeError, ValueError):  # keys of other types, or what holds itself
            return str(body)
    return str(body)


def _plain(value: object) -> object:
    """With the mappings and sequences that JSON knows; OpenTelemetry's bounded ones are none of them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value


def step_in(attributes: Mapping[str, Any] | None) -> int | None:
    """The step that a record says itself."""
    if not attributes:
        return None
    for name in _STEPS:
        value = attributes.get(name)
        if value is not None and (step := as_step(value)) is not None:
            return step
    return None


def step_of(record: LogRecord, *, now: bool) -> int | None:
    """The step of a record: its own, that of its context, that of the open span that it names.

    Args:
        now: Whether it is just being made, so that `set_step` speaks of it too.
    """
    step = step_in(record.attributes)
    if step is None:
        step = ambient(record.context) if now else carried(record.context)
    if step is None and record.trace_id and record.span_id:
        span = SpanContext(record.trace_id, record.span_id, is_remote=False, trace_flags=TraceFlags())
        step = open_span_step(span)
    return step
