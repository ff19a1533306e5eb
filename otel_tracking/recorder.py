"""What records: the one place of a process where measurements become journal records.

Every way in ends here: instruments of the meter provider, spans, `Tracking.log`. A recorder gets a
journal at its first record, from the `opener` it was given.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import struct
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from otel_tracking.errors import JournalError
from otel_tracking.journal.entries import entry_bytes
from otel_tracking.journal.format import RecordType, crc32c, pack_head, pack_point
from otel_tracking.journal.reader import read_records
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.records import Kind, RunStatus
from otel_tracking.registry import RowShape, SeriesHandle, SeriesRegistry
from otel_tracking.steps import ambient, as_step
from otel_tracking.values import Number, flatten, to_number

_LOG: Final = logging.getLogger(__name__)
_time_ns: Final = time.time_ns
_OUR_CODE: Final = ("otel_tracking", "opentelemetry", "numpy", "json", "struct", "weakref", "threading")
MAX_ROW: Final = 4096
"""Values in one row record; a longer `log` becomes several rows."""


class Cache(Protocol):
    """Something that holds on to series of a journal."""

    def reset(self) -> None:
        """Forget them: the journal has changed."""


class Recorder:
    """Turns measurements into records of one journal at a time.

    Attributes:
        registry: The series of the open journal; None before the first record, and when nothing is
            to be recorded.
        refused: Measurements that never became a record, by reason.
        rounded: Recorded numbers that no double holds exactly.
        lock: Held while the journal is opened, moved or closed; whoever begins or ends a run holds it.
        opener: Called with the recorder at the first record; it calls `open`, or `mute`.
    """

    def __init__(self) -> None:
        self.registry: SeriesRegistry | None = None
        self.journal: JournalWriter | None = None
        # `refused[reason] += 1` is atomic, as in JournalWriter.lost.
        self.refused: defaultdict[str, int] = defaultdict(int)
        self.rounded = 0
        self.opener: Callable[[Recorder], None] | None = None
        self.lock = threading.RLock()
        self._muted: str | None = None
        self._quiet = False
        self._moving = False
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()
        self._rows: dict[tuple[object, ...], tuple[RowShape, None] | tuple[None, SeriesHandle]] = {}
        self._warned: set[str] = set()
        _RECORDERS.add(self)

    # Life cycle

    def open(self, directory: Path, *, rank: int = 0, start: Mapping[str, Any] | None = None) -> None:
        """Record into a journal from now on.

        Args:
            directory: The journal's own.
            rank: This process's.
            start: What to note about this process in the journal.

        Raises:
            JournalLocked, UnsupportedJournal, OSError: As `JournalWriter`.
        """
        journal = JournalWriter(directory, rank=rank)
        journal.append(entry_bytes(RecordType.START, dict(start or {})))
        self.journal = journal
        self._muted = None
        self.registry = SeriesRegistry(journal)

    def move(self, directory: Path, *, rank: int = 0) -> None:
        """Give the open journal its place. The writing goes on meanwhile.

        If a journal of an earlier process lies there, this one's records are appended to it.

        Raises:
            JournalLocked, UnsupportedJournal, OSError: As `JournalWriter`.
        """
        journal = self.journal
        assert journal is not None
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            journal.rename(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            with self.lock:  # `opened` waits here
                self._moving = True
                try:
                    self._append_to(directory, journal, rank)
                finally:
                    self._moving = False

    def _append_to(self, directory: Path, old: JournalWriter, rank: int) -> None:
        new = JournalWriter(directory, rank=rank)
        self.registry = None
        self._forget()
        old.close()
        # Definitions travel along: ids are taken anew from here on, by readers and by the registry.
        for data in read_records(old.path):
            new.append(data)
        shutil.rmtree(old.path, ignore_errors=True)
        for reason, count in old.lost.items():
            new.lost[reason] += count
        self.journal = new
        self.registry = SeriesRegistry(new)

    def mute(self, reason: str, *, quiet: bool = False) -> None:
        """Record nothing any more; what comes is counted under the reason, unless `quiet`."""
        self.registry = None
        self._muted = reason
        self._quiet = quiet
        self._forget()

    def unmute(self) -> None:
        """Record again: the next record calls the opener."""
        self._muted = None

    def close(self, status: RunStatus) -> None:
        """Note how the run ended and close the journal."""
        journal = self.journal
        self.mute("recorded after the run had ended")
        if journal is not None and not journal.closed:
            journal.append(entry_bytes(RecordType.END, {"status": status.value}))
            journal.close()

    def add_cache(self, cache: Cache) -> None:
        """Have `cache.reset()` called when the journal changes."""
        self._caches.add(cache)

    def _forget(self) -> None:
        self._rows.clear()
        for cache in list(self._caches):
            cache.reset()

    def opened(self) -> SeriesRegistry | None:
        """The registry, opening the journal at the first record; None when nothing is recorded."""
        if self.registry is not None:
            return self.registry
        if self._moving:
            with self.lock:
                return self.registry
        if self._muted is None and self.opener is not None:
            with self.lock:
                if self.registry is None and self._muted is None:
                    try:
                        self.opener(self)
                    except (JournalError, OSError) as error:
                        self.warn_once(f"nothing is recorded: {error}")
                        self.mute(f"no journal: {error}")
        if self.registry is None and self._muted is not None and not self._quiet:
            self.refused[self._muted] += 1
            if self._muted.startswith("recorded after"):
                self.warn_once("measurements after the end of the run are not recorded, only counted")
        return self.registry

    def not_recorded(self) -> dict[str, int]:
        """Measurements that never reached the journal, by reason."""
        counts = dict(self.refused)
        if self.journal is not None:
            for reason, count in list(self.journal.lost.items()):
                counts[reason] = counts.get(reason, 0) + count
        return counts

    # What is refused

    def refuse(self, what: str, reason: str) -> None:
        """Count a measurement that can't be recorded, and say so once a reason."""
        self.refused[reason] += 1
        self.warn_once(f"{what} was not recorded: {reason}", key=reason)

    def warn_once(self, text: str, *, key: str | None = None) -> None:
        """Log a warning, the first time only."""
        if (key or text) not in self._warned:
            self._warned.add(key or text)
            _LOG.warning("%s", text)

    def failed(self, error: Exception) -> None:
        """An error while recording: counted and logged if it is ours, raised if it is the user's.

        A signal handler may raise in the middle of any of our calls, and that exception belongs to
        the training code.
        """
        if not _ours(error.__traceback__):
            raise error
        self.refused[f"internal error: {type(error).__name__}"] += 1
        if str(error) not in self._warned:
            self._warned.add(str(error))
            _LOG.exception("a measurement could not be recorded; training goes on")

    # What is recorded

    def point(
        self,
        series: SeriesHandle,
        value: object,
        *,
        step: int | None = None,
        time_ns: int | None = None,
    ) -> None:
        """Record one value of a series.

        Args:
            series: From `registry.series`.
            value: Anything that is a number; what is none is refused with a warning.
            step: None means a count of the series.
            time_ns: Nanoseconds since the epoch; None is now.
        """
        number = self._number(series.series.name, value)
        if number is None:
            return
        word = series.integer_word if number.integer else series.word
        if step is None:
            flag, step = series.automatic()
            word |= flag
        series.journal.append(pack_point(word, step, time_ns or _time_ns(), number.value))

    def log(
        self,
        values: Mapping[str, Any],
        *,
        step: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the values of one moment as a row.

        Args:
            values: Numbers (Python's, NumPy's, torch's), texts, and mappings of these.
            step: None means what `steps.ambient` says, else a count.
            options: By tracker: what its own call takes (`log_kwargs`).
        """
        try:
            if step.__class__ is int and not options:
                row = self._rows.get(tuple(values))
                if row is not None and self._known_row(row, values, step):
                    return
            self._log(values, step, options)
        except Exception as error:  # whose error it is decides `failed`
            self.failed(error)

    def _known_row(
        self,
        row: tuple[RowShape, None] | tuple[None, SeriesHandle],
        values: Mapping[str, Any],
        step: int,
    ) -> bool:
        numbers = values.values()
        for number in numbers:
            if number.__class__ is not float:
                return False
        shape, series = row
        try:
            if shape is not None:
                payload = shape.pack(*numbers)
                data = pack_head(shape.word, step, _time_ns(), crc32c(payload)) + payload
                journal = shape.journal
            else:
                assert series is not None
                (number,) = numbers
                data = pack_point(series.word, step, _time_ns(), number)
                journal = series.journal
        except struct.error:  # a step beyond 64 bits
            return False
        try:
            journal.write(data)
        except ValueError as error:
            if not full(error):
                raise
            return journal.overflow(data)
        return True

    def _log(self, values: Mapping[str, Any], step: object, options: Mapping[str, Any] | None) -> None:
        registry = self.opened()
        if registry is None:
            return
        if not isinstance(values, Mapping):
            self.refuse(f"log({values!r:.80})", f"log takes a mapping, not {type(values).__name__}")
            return
        number = ambient() if step is None else as_step(step)
        if step is not None and number is None:
            self.refuse(f"a row with step={step!r:.80}", "a step is an integer of 64 bits")
            return
        now = _time_ns()
        texts: list[bytes] = []
        columns: list[tuple[SeriesHandle, float]] = []
        for name, group, value in flatten(values):
            if isinstance(value, Number):
                self._note(name, value)
                columns.append((registry.series(name=name, kind=Kind.GAUGE, group=group), value.value))
            elif isinstance(value, str):
                text = {"tag": name, "text": value, "options": _jsonable(options)}
                texts.append(entry_bytes(RecordType.TEXT, text, step=number or 0, time_ns=now))
            else:
                self.refuse(repr(name), value.reason)
        journal = registry.journal
        if columns:
            for start in range(0, len(columns), MAX_ROW):
                part = columns[start : start + MAX_ROW]
                head = b""
                if options:
                    content = {"options": _jsonable(options), "points": len(part)}
                    head = entry_bytes(RecordType.OPTIONS, content, time_ns=now)
                journal.append(head + self._row_bytes(registry, part, number, now))
            if all(isinstance(value, float) for value in values.values()):
                self._remember(registry, tuple(values), columns)
        for text_bytes in texts:
            journal.append(text_bytes)

    def _row_bytes(
        self,
        registry: SeriesRegistry,
        columns: list[tuple[SeriesHandle, float]],
        step: int | None,
        now: int,
    ) -> bytes:
        if step is None:  # each series has a count of its own
            points = []
            for series, value in columns:
                flag, count = series.automatic()
                points.append(pack_point(series.word | flag, count, now, value))
            return b"".join(points)
        if len(columns) == 1:
            series, value = columns[0]
            return pack_point(series.word, step, now, value)
        shape = registry.shape(series for series, _ in columns)
        payload = shape.pack(*(value for _, value in columns))
        return pack_head(shape.word, step, now, crc32c(payload)) + payload

    def _remember(
        self,
        registry: SeriesRegistry,
        keys: tuple[str, ...],
        columns: list[tuple[SeriesHandle, float]],
    ) -> None:
        """Next time, a row of these keys takes the short way."""
        if len(columns) != len(keys) or len(keys) > MAX_ROW or not all(type(key) is str for key in keys):
            return
        if len(columns) == 1:
            self._rows[keys] = (None, columns[0][0])
        else:
            self._rows[keys] = (registry.shape(series for series, _ in columns), None)

    def text(self, tag: str, text: str, *, step: int | None = None) -> None:
        """Record a text under a name."""
        self.entry(RecordType.TEXT, {"tag": tag, "text": text, "options": {}}, step=step)

    def entry(self, type_: RecordType, content: Mapping[str, Any], *, step: int | None = None) -> None:
        """Record something that is no number."""
        registry = self.opened()
        if registry is not None:
            number = ambient() if step is None else step
            registry.journal.append(entry_bytes(type_, content, step=number or 0))

    def _number(self, name: str, value: object) -> Number | None:
        number = to_number(value)
        if isinstance(number, Number):
            self._note(name, number)
            return number
        self.refuse(f"a value of {name!r}", number.reason)
        return None

    def _note(self, name: str, number: Number) -> None:
        if number.altered:
            self.rounded += 1
            self.warn_once(f"{name!r}: {number.altered}", key=number.altered)


def full(error: ValueError) -> bool:
    """Whether a ValueError comes from the map's own `write`: a signal handler's has frames below."""
    return error.__traceback__ is None or error.__traceback__.tb_next is None


def _ours(traceback: TracebackType | None) -> bool:
    name = ""
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        traceback = traceback.tb_next
    return name.split(".")[0] in _OUR_CODE


def _jsonable(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options as JSON holds them; what it can't hold becomes its text."""
    return {
        str(tracker): {str(k): v if _plain(v) else str(v) for k, v in dict(of).items()}
        for tracker, of in (options or {}).items()
    }


def _plain(value: object) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


_RECORDERS: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for recorder in list(_RECORDERS):
        recorder.mute("recorded in a forked child", quiet=True)
        recorder.journal = None
        recorder.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

