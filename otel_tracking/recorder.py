"""What records: the one place of a process where measurements become journal records.

Every way in ends here: instruments of the meter provider, spans, `Tracking.log`. A recorder gets a
journal at its first record, from the `opener` it was given.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import shutil
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from opentelemetry.context import Context

from otel_tracking import retention
from otel_tracking.errors import JournalError, JournalFull
from otel_tracking.journal.continuing import continued, next_steps
from otel_tracking.journal.entries import entry_bytes
from otel_tracking.journal.format import SPAN_SHIFT, RecordType, pack_point
from otel_tracking.journal.media import take_over
from otel_tracking.journal.waiting import Apart
from otel_tracking.journal.writer import JournalWriter, Outcome
from otel_tracking.open_spans import number_in, open_spans
from otel_tracking.records import RunStatus
from otel_tracking.registry import SeriesHandle, SeriesRegistry
from otel_tracking.retention import Keep
from otel_tracking.rows import Rows, as_it_is
from otel_tracking.steps import ambient
from otel_tracking.values import Number, to_number

_LOG: Final = logging.getLogger(__name__)
_time_ns: Final = time.time_ns
_OUR_CODE: Final = ("otel_tracking", "opentelemetry", "numpy", "json", "struct", "weakref", "threading")
_NO_SPAN: Final = Context()
_IN_BETWEEN: Final = "recorded by a signal handler while a run began or ended"


class Cache(Protocol):
    """Something that holds on to series of a journal."""

    def reset(self) -> None:
        """Forget them: the journal has changed."""


class Recorder:
    """Turns measurements into records of one journal at a time.

    Attributes:
        registry: The series of the open journal; None before the first record, and when nothing is
            to be recorded.
        log: Records the values of one moment: `Rows.log`.
        refused: Measurements that never became a record, by reason; a new mapping for each run.
        rounded: Recorded numbers that no double holds exactly.
        continued: The closed journal all of whose records the open one repeats, if it took one over.
        lock: Held while the journal is opened, moved or closed; whoever begins or ends a run holds it.
        fsync, compress: Of the journals that are opened from now on, as for `JournalWriter`.
        keep: What is kept of them.
        opener: Called with the recorder at the first record; it calls `open`, or `mute`.
    """

    def __init__(self) -> None:
        self.fsync = "off"
        self.compress = "pack"
        self.keep = Keep()
        self.registry: SeriesRegistry | None = None
        self.journal: JournalWriter | None = None
        self.continued: JournalWriter | None = None
        # `refused[reason] += 1` is atomic, as in JournalWriter.lost.
        self.refused: defaultdict[str, int] = defaultdict(int)
        self.rounded = 0
        self.opener: Callable[[Recorder], None] | None = None
        self.lock = threading.RLock()
        self._muted: str | None = None
        self._quiet = False
        self._apart = Apart()  # where the journal is opened and moved; all else waits
        # By id: `valuerefs` copies in one step, while a WeakSet must not grow while it is walked.
        self._caches: weakref.WeakValueDictionary[int, Cache] = weakref.WeakValueDictionary()
        self._rows = Rows(self)
        self.log = self._rows.log
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
        self._apart.do(functools.partial(self._open, directory, rank, dict(start or {})))

    def _open(self, directory: Path, rank: int, start: Mapping[str, Any]) -> None:
        journal = self._writer(directory, rank)
        try:
            journal.append(entry_bytes(RecordType.START, start))
            registry = SeriesRegistry(journal)
        except BaseException:
            journal.close()
            raise
        self._go_on(journal, registry)

    def _writer(self, directory: Path, rank: int) -> JournalWriter:
        keep = self.keep
        return JournalWriter(
            directory,
            rank=rank,
            fsync=self.fsync,
            compress=self.compress,
            after_seal=lambda writer: retention.apply(writer.path, keep, ended=False),
        )

    def _go_on(self, journal: JournalWriter, registry: SeriesRegistry) -> None:
        self.journal = journal
        self._muted = None
        self.registry = registry

    def move(self, directory: Path, *, rank: int = 0) -> None:
        """Give the open journal its place. The writing goes on meanwhile.

        If a journal of an earlier process lies there, this one's records are appended to it.

        Raises:
            JournalLocked, UnsupportedJournal, OSError: As `JournalWriter`; the journal stays where it is.
        """
        with self.lock:
            self._apart.do(functools.partial(self._move, directory, rank))

    def _move(self, directory: Path, rank: int) -> None:
        journal = self.journal
        assert journal is not None
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            journal.rename(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            self._append_to(directory, journal, rank)

    def _append_to(self, directory: Path, old: JournalWriter, rank: int) -> None:
        new = self._writer(directory, rank)
        try:
            reached = next_steps(new.descriptor)
        except BaseException:
            new.close()
            raise
        self.registry = None  # from here on `opened` waits
        self._forget()
        old.close()
        whole = True
        for records in continued(old.path, reached):
            whole = new.append(records) is Outcome.STORED and whole
        for reason, count in old.lost.items():
            new.lost[reason] += count
        take_over(old.path, new.path)
        if whole:
            self.continued = old
            shutil.rmtree(old.path, ignore_errors=True)
        else:
            _LOG.error("%s has no space for the records in %s: they stay where they are", directory, old.path)
        self._go_on(new, SeriesRegistry(new))

    def mute(self, reason: str, *, quiet: bool = False) -> None:
        """Record nothing any more; what comes is counted under the reason, unless `quiet`."""
        self.registry = None
        self._muted = reason
        self._quiet = quiet
        self._forget()

    def unmute(self) -> None:
        """Record again, for a next run: the next record calls the opener."""
        if self.journal is not None and self.journal.closed:  # what was refused till now is that run's
            self.refused = defaultdict(int)
        self._muted = None

    def close(self, status: RunStatus) -> None:
        """Note how the run ended and close the journal."""
        self._apart.wait()
        journal = self.journal
        self.mute("recorded after the run had ended")
        if journal is not None and not journal.closed:
            journal.append(entry_bytes(RecordType.END, {"status": status.value}))
            journal.close()

    def add_cache(self, cache: Cache) -> None:
        """Have `cache.reset()` called when the journal changes."""
        self._caches[id(cache)] = cache

    def _forget(self) -> None:
        self._rows.reset()
        for reference in self._caches.valuerefs():
            cache = reference()
            if cache is not None:
                cache.reset()

    def opened(self, measurements: int = 1) -> SeriesRegistry | None:
        """The registry, opening the journal at the first record; None when nothing is recorded.

        Args:
            measurements: How many to count as not recorded in that case.
        """
        asked = False
        while (registry := self.registry) is None:
            if self._apart.busy:
                self._apart.wait()
            elif self._muted is not None:
                self._count_muted(self._muted, measurements)
                return None
            elif self.opener is None or asked:
                return self.registry
            elif self._holds_lock():
                self.refused[_IN_BETWEEN] += measurements
                return None
            else:
                self._apart.do(self._ask_opener)
                asked = True
        return registry

    def _holds_lock(self) -> bool:
        """Whether this thread begins or ends a run just now, so that this is a signal handler in it."""
        try:
            threading.Condition(self.lock).notify()  # the public way to ask a lock
        except RuntimeError as error:
            if not _ours(error.__traceback__):
                raise
            return False
        return True

    def _ask_opener(self) -> None:
        with self.lock:
            if self.registry is None and self._muted is None and self.opener is not None:
                try:
                    self.opener(self)
                except (JournalError, OSError) as error:
                    self.warn_once(f"nothing is recorded: {error}")
                    self.mute(f"no journal: {error}")

    def _count_muted(self, reason: str, measurements: int) -> None:
        if self._quiet:
            return
        self.refused[reason] += measurements
        if reason.startswith("recorded after"):
            self.warn_once("measurements after the end of the run are not recorded, only counted")

    def not_recorded(self) -> dict[str, int]:
        """Measurements of this run that never reached the journal, by reason."""
        return not_recorded(self.refused, self.journal)

    # What is refused

    def refuse(self, what: str, reason: str, *, measurements: int = 1) -> None:
        """Count measurements that can't be recorded, and say so once a reason."""
        self.refused[reason] += measurements
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
        if isinstance(error, JournalFull):
            self.refused[str(error)] += 1
            return
        reason = f"internal error: {type(error).__name__}"
        self.refused[reason] += 1
        if reason not in self._warned:
            self._warned.add(reason)
            _LOG.exception("a measurement could not be recorded; training goes on")

    # What is recorded

    def point(
        self,
        series: SeriesHandle,
        value: object,
        *,
        step: int | None = None,
        time_ns: int | None = None,
        context: Context | None = _NO_SPAN,
    ) -> None:
        """Record one value of a series.

        Args:
            series: From `registry.series`.
            value: Anything that is a number; what is none is refused with a warning.
            step: None means a count of the series.
            time_ns: Nanoseconds since the epoch; None is now.
            context: With the span in which it is recorded; None is the current one.
        """
        integer = False
        if isinstance(value, float):
            number: float = value
        else:
            what = self._number(series.series.name, value)
            if what is None:
                return
            number, integer = what.value, what.integer
        now = time_ns or _time_ns()

        def point(series: SeriesHandle) -> bytes:
            first = series.integer_word if integer else series.word
            first |= self.span_number(series.journal, context) << SPAN_SHIFT
            if step is not None:
                return pack_point(first, step, now, number)
            flag, count = series.automatic()
            return pack_point(first | flag, count, now, number)

        if series.journal.append(point(series)) is Outcome.CLOSED:
            self.append(lambda registry: point(registry.again(series.series)), 1)

    def span_number(self, journal: JournalWriter, context: Context | None = None) -> int:
        """As `number_in`; 0, and a warning, if that fails: the point is recorded all the same."""
        if not open_spans:
            return 0
        try:
            return number_in(journal, context)
        except Exception as error:
            if not _ours(error.__traceback__):
                raise
            self.warn_once(f"points are linked to no span: {error!r:.200}", key="no span")
            return 0

    def beside(
        self, record: bytes, series: SeriesHandle, value: float, step: int | None, time_ns: int
    ) -> None:
        """Record something, and one value of a series with it, as `point` does."""
        if step is None:
            flag, count = series.automatic()
            point = pack_point(series.word | flag, count, time_ns, value)
        else:
            point = pack_point(series.word, step, time_ns, value)
        if series.journal.append(record + point) is Outcome.CLOSED:
            self.append(functools.partial(as_it_is, record), 1)
            self.point(series, value, step=step, time_ns=time_ns)

    def append(self, records: Callable[[SeriesRegistry], bytes], measurements: int) -> None:
        """Append what is made for the open journal; to the next one, if it is closed or moved meanwhile.

        Args:
            records: Makes the bytes, of the series of that journal; asked again for the next one.
            measurements: How many to count, if they can't be kept.
        """
        while (registry := self.opened(measurements)) is not None:
            try:
                outcome = registry.journal.append(records(registry))
            except JournalFull as error:
                self.refused[str(error)] += measurements
                return
            if outcome is not Outcome.CLOSED:
                return
            if self.registry is registry:
                self.refused[outcome.value] += measurements
                return

    def text(self, tag: str, text: str, *, step: int | None = None) -> None:
        """Record a text under a name."""
        self.entry(RecordType.TEXT, {"tag": tag, "text": text, "options": {}}, step=step)

    def entry(self, type_: RecordType, content: Mapping[str, Any], *, step: int | None = None) -> None:
        """Record something that is no number.

        Raises:
            TypeError, ValueError: The content has no JSON form.
        """
        number = ambient() if step is None else step
        self.append(functools.partial(as_it_is, entry_bytes(type_, content, step=number or 0)), 1)

    def _number(self, name: str, value: object) -> Number | None:
        number = to_number(value)
        if isinstance(number, Number):
            self.note(name, number)
            return number
        self.refuse(f"a value of {name!r}", number.reason)
        return None

    def note(self, name: str, number: Number) -> None:
        """Count a number that no double holds exactly, and warn once."""
        if number.altered:
            self.rounded += 1
            self.warn_once(f"{name!r}: {number.altered}", key=number.altered)


def not_recorded(refused: Mapping[str, int], journal: JournalWriter | None) -> dict[str, int]:
    """Measurements that never reached the journal, by reason: refused, and lost by the journal."""
    counts = dict(refused)
    if journal is not None:
        for reason, count in list(journal.lost.items()):
            counts[reason] = counts.get(reason, 0) + count
        if waiting := journal.waiting:
            counts[Outcome.HELD.value] = waiting
    return counts


def _ours(traceback: TracebackType | None) -> bool:
    """Whether all code on the way is ours or of what we call; other code is a handler's, or a value's."""
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if name.split(".")[0] not in _OUR_CODE:
            return False
        traceback = traceback.tb_next
    return True


_RECORDERS: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for recorder in list(_RECORDERS):
        recorder.mute("recorded in a forked child", quiet=True)
        recorder.journal = None
        recorder.refused = defaultdict(int)
        recorder.lock = threading.RLock()
        recorder._apart.in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
