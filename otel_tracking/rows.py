"""`log`: the values of one moment, as one row of the journal.

A row of keys that were logged before, all plain numbers, takes a short way: one look-up, one pack, one
CRC, one write. Everything else takes the long one once.
"""

from __future__ import annotations

import functools
import json
import struct
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Protocol, TypeAlias

from otel_tracking.errors import raised_here
from otel_tracking.journal.entries import entry_bytes
from otel_tracking.journal.format import SPAN_SHIFT, RecordType, crc32c, pack_head, pack_point
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.open_spans import open_spans
from otel_tracking.records import Kind
from otel_tracking.redaction import redact
from otel_tracking.registry import RowShape, SeriesHandle, SeriesRegistry
from otel_tracking.steps import ambient, as_step
from otel_tracking.values import Number, flatten, to_number

_time_ns: Final = time.time_ns
MAX_ROW: Final = 4096
"""Values in one row record; a longer `log` becomes several rows."""

_Column: TypeAlias = tuple[str, str, float]
"""name, group, value"""


class Host(Protocol):
    """What rows need of their recorder."""

    def opened(self, measurements: int = 1) -> SeriesRegistry | None:
        """The open journal's series; None when nothing is recorded."""

    def append(self, records: Callable[[SeriesRegistry], bytes], measurements: int) -> None:
        """Append what is made for the open journal."""

    def span_number(self, journal: JournalWriter) -> int:
        """The number of the current span, for points of that journal."""

    def refuse(self, what: str, reason: str, *, measurements: int = 1) -> None:
        """Count measurements that can't be recorded."""

    def note(self, name: str, number: Number) -> None:
        """Count a number that is not exact."""

    def failed(self, error: Exception) -> None:
        """Count an error of ours, raise one of the user's."""


class Rows:
    """Records what `log` is given."""

    def __init__(self, recorder: Host) -> None:
        self._recorder = recorder
        self._rows: dict[tuple[object, ...], tuple[RowShape, None] | tuple[None, SeriesHandle]] = {}

    def reset(self) -> None:
        """Forget the rows of a journal that is closed."""
        self._rows.clear()

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
            number = ambient() if step is None else step
            if number.__class__ is int and values.__class__ is dict and not options:
                row = self._rows.get(tuple(values))
                if row is not None and self._known_row(row, values, number):
                    return
            self._log(values, step, options)
        except Exception as error:  # noqa: BLE001 - whose error it is decides `failed`
            self._recorder.failed(error)

    def _known_row(
        self,
        row: tuple[RowShape, None] | tuple[None, SeriesHandle],
        values: Mapping[str, Any],
        step: int,
    ) -> bool:
        numbers: Collection[float] = values.values()
        for number in numbers:
            if number.__class__ is not float:
                exact = _exact(numbers)
                if exact is None:
                    return False
                numbers = exact
                break
        shape, series = row
        try:
            if shape is not None:
                journal = shape.journal
                payload = shape.pack(*numbers)
                last = crc32c(payload)
                if open_spans:
                    last |= self._recorder.span_number(journal) << 32
                data = pack_head(shape.word, step, _time_ns(), last) + payload
            else:
                assert series is not None
                journal, word = series.journal, series.word
                if open_spans:
                    word |= self._recorder.span_number(journal) << SPAN_SHIFT
                (number,) = numbers
                data = pack_point(word, step, _time_ns(), number)
        except struct.error as error:  # a step beyond 64 bits
            if not raised_here(error):
                raise
            return False
        try:
            journal.write(data)
        except ValueError as error:
            if not raised_here(error):
                raise
            return journal.overflow(data)
        return True

    def _log(self, values: Mapping[str, Any], step: object, options: Mapping[str, Any] | None) -> None:
        if self._recorder.opened(len(values) if isinstance(values, Mapping) else 1) is None:
            return
        if not isinstance(values, Mapping):
            self._recorder.refuse(f"log({values!r:.80})", f"log takes a mapping, not {type(values).__name__}")
            return
        number = ambient() if step is None else as_step(step)
        if step is not None and number is None:
            self._recorder.refuse(
                f"a row with step={step!r:.80}", "a step is an integer of 64 bits", measurements=len(values)
            )
            return
        now = _time_ns()
        texts: list[bytes] = []
        columns: list[_Column] = []
        for name, group, value in flatten(values):
            if isinstance(value, Number):
                self._recorder.note(name, value)
                columns.append((name, group, value.value))
            elif isinstance(value, str):
                text = {"tag": name, "text": value, "options": jsonable_options(options)}
                texts.append(entry_bytes(RecordType.TEXT, text, step=number or 0, time_ns=now))
            else:
                self._recorder.refuse(repr(name), value.reason)
        keys = () if any(isinstance(value, Mapping) for value in values.values()) else tuple(values)
        for start in range(0, len(columns), MAX_ROW):
            part = columns[start : start + MAX_ROW]
            self._recorder.append(functools.partial(self._row, part, number, now, options, keys), len(part))
        for text_bytes in texts:
            self._recorder.append(functools.partial(as_it_is, text_bytes), 1)

    def _row(
        self,
        columns: list[_Column],
        step: int | None,
        now: int,
        options: Mapping[str, Any] | None,
        keys: tuple[str, ...],
        registry: SeriesRegistry,
    ) -> bytes:
        series = [registry.series(name=name, kind=Kind.GAUGE, group=group) for name, group, _ in columns]
        values = [value for _, _, value in columns]
        span = self._recorder.span_number(registry.journal)
        if step is None:  # each series has a count of its own
            records = b""
            for handle, value in zip(series, values, strict=True):
                flag, count = handle.automatic()
                records += pack_point(handle.word | flag | span << SPAN_SHIFT, count, now, value)
        elif len(series) == 1:
            records = pack_point(series[0].word | span << SPAN_SHIFT, step, now, values[0])
        else:
            shape = registry.shape(series)
            payload = shape.pack(*values)
            records = pack_head(shape.word, step, now, crc32c(payload) | span << 32) + payload
        self._remember(registry, keys, series)
        if not options:
            return records
        content = {"options": jsonable_options(options), "points": len(columns)}
        return entry_bytes(RecordType.OPTIONS, content, time_ns=now) + records

    def _remember(
        self,
        registry: SeriesRegistry,
        keys: tuple[str, ...],
        series: list[SeriesHandle],
    ) -> None:
        """Next time, a row of these keys takes the short way."""
        if len(series) != len(keys) or not all(type(key) is str for key in keys):
            return
        self._rows[keys] = (None, series[0]) if len(series) == 1 else (registry.shape(series), None)


def _exact(values: Iterable[object]) -> list[float] | None:
    """Values as doubles; None if one of them is no number, or none that a double holds exactly."""
    numbers: list[float] = []
    for value in values:
        if value.__class__ is float or (value.__class__ is int and -(2**53) <= value <= 2**53):
            numbers.append(value)
            continue
        number = value if isinstance(value, str | Mapping) else to_number(value)
        if not isinstance(number, Number) or number.altered:
            return None
        numbers.append(number.value)
    return numbers


def as_it_is(record: bytes, registry: SeriesRegistry) -> bytes:
    """A record that needs no series, for `append`."""
    return record


def jsonable_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options as JSON holds them, without secrets; what it can't hold becomes its text."""
    return {
        str(tracker): redact({str(key): _json_value(value) for key, value in of.items()})[0]
        for tracker, of in (options or {}).items()
        if isinstance(of, Mapping)
    }


def _json_value(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return str(value)
