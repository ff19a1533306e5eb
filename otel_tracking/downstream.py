"""An SDK provider of the user's, fed from the journal.

Points go on without the step, so that every instrument and attribute set stays one time series.
Of a gauge the last value of a stretch is set, increments of a counter are added up first,
histograms get every value; each with the span in which it was recorded, for exemplars. An observable
instrument that observes nothing is registered first in the SDK: its callback runs at each collect,
before the SDK looks at the other instruments, and forwards what is pending; between collects a thread
does, so that no collect has much to do.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, CallbackT, Meter, MeterProvider, Observation
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.util.types import Attributes

from otel_tracking.errors import JournalError
from otel_tracking.instruments import TrackingInstrument, TrackingObservable
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.recorder import Recorder
from otel_tracking.records import Float64Array, Kind, Series
from otel_tracking.span_records import EnclosingSpan
from otel_tracking.values import Number, to_number

_LOG: Final = logging.getLogger(__name__)
_METER: Final = "otel_tracking"
_INTERVAL: Final = 1.0
_ILLEGAL: Final = re.compile(r"[^-_./a-zA-Z0-9]")
_MAX_NAME: Final = 255
_MAX_UNIT: Final = 63

Scope: TypeAlias = tuple[str | None, str | None, Attributes | None]
"""What a meter was asked for with, besides its name: version, schema URL, attributes."""


class Downstream:
    """Feeds one SDK meter provider.

    Args:
        provider: The user's.
        recorder: Whose journal to read.
        scopes: By meter, how it was first asked for; it is asked for likewise here.

    Attributes:
        provider: The user's.
        get_meter: Its own `get_meter`, whatever stands in its place now.
    """

    def __init__(self, provider: MeterProvider, recorder: Recorder, scopes: Mapping[str, Scope]) -> None:
        self.provider = provider
        self.get_meter = provider.get_meter
        self._recorder = recorder
        self._scopes = scopes
        self._meters: dict[str, Meter] = {}
        self._instruments: dict[tuple[str, str, Kind, str], Any] = {}
        self._forwarding = threading.RLock()
        self._busy = False
        self._journal: JournalWriter | None = None
        self._stream: RecordStream | None = None
        self._read = 0
        """Points of this process read from the journal."""
        self._repeated = 0
        """How many of them were read from the journal before, which this one repeats."""
        self._meter(_METER).create_observable_gauge("otel_tracking.pending", [self._before_collect])
        self.start()

    def start(self) -> None:
        """Forward between collects too."""
        threading.Thread(target=self._run, name="otel-tracking-downstream", daemon=True).start()

    def in_child(self) -> None:
        """This is a forked child: the journal is the parent's, and so is whoever holds the lock."""
        self._forwarding = threading.RLock()
        self._busy = False
        if self._stream is not None:
            self._stream.close()
        self._journal = self._stream = None

    def add(self, instrument: TrackingInstrument, boundaries: Sequence[float] | None) -> None:
        """Make an instrument's counterpart in the SDK."""
        key = (instrument.meter, instrument.name, instrument.kind, instrument.unit)
        with self._forwarding:
            if key not in self._instruments:
                self._instruments[key] = self._make(
                    instrument.meter,
                    instrument.name,
                    instrument.kind,
                    instrument.unit,
                    instrument.description,
                    boundaries,
                )

    def observe(self, instrument: TrackingObservable, callback: CallbackT) -> None:
        """Have the SDK ask an observable instrument, by that callback, at each collect."""
        meter = self._meter(instrument.meter)
        make = {
            Kind.OBSERVABLE_GAUGE: meter.create_observable_gauge,
            Kind.OBSERVABLE_COUNTER: meter.create_observable_counter,
            Kind.OBSERVABLE_UP_DOWN_COUNTER: meter.create_observable_up_down_counter,
        }[instrument.kind]
        make(_legal(instrument.name), [callback], _legal_unit(instrument.unit), instrument.description)

    def pass_on(self, instrument: TrackingInstrument, amount: object, attributes: Attributes) -> None:
        """Give one measurement to the SDK now."""
        counterpart = self._instruments.get(
            (instrument.meter, instrument.name, instrument.kind, instrument.unit)
        )
        number = to_number(amount)
        if counterpart is not None and isinstance(number, Number):
            value = int(number.value) if number.integer else number.value
            _give(counterpart, instrument.kind, value, attributes, None)

    def forward(self) -> None:
        """Give the SDK everything recorded until now."""
        with self._forwarding:
            if self._busy:  # a signal handler, in the middle of this, has the SDK collect
                return
            self._busy = True
            try:
                self._forward()
            finally:
                self._busy = False

    def _forward(self) -> None:
        if self._stream is not None:
            self._drain(self._stream)
        journal = self._recorder.journal
        if journal is self._journal or journal is None or journal.closed:
            return
        stream = RecordStream(journal.descriptor, enclosing=True)
        if self._stream is not None:
            self._stream.close()
        self._repeated = self._read if self._recorder.continued is self._journal else 0
        self._read = 0
        self._journal, self._stream = journal, stream
        self._drain(stream)

    def _drain(self, stream: RecordStream) -> None:
        assert self._journal is not None
        end = self._journal.position  # what comes while this runs is for the next time
        while stream.position < end and (items := stream.read()) is not None:
            for item in items:
                # What an earlier process of this run recorded is not this process's to report.
                if isinstance(item, Points) and item.positions[0] >= self._journal.start:
                    self._give_points(stream.series, item, first=max(0, self._repeated - self._read))
                    self._read += len(item)

    def _give_points(self, table: Sequence[Series], points: Points, *, first: int) -> None:
        integers = points.integers()
        contexts = [*map(_context_of, points.enclosing), Context()]  # the last one, -1, is none
        for index in np.unique(points.index[first:]).tolist():
            series = table[index]
            if series.kind.name.startswith("OBSERVABLE"):
                continue  # the SDK asks those itself
            mine = first + np.flatnonzero(points.index[first:] == index)
            whole = bool(integers[mine].all())
            mine = mine[np.isfinite(points.increments[mine])]  # the SDK takes no others, and warns of each
            values, inside = points.increments[mine], points.inside[mine]
            if series.kind is Kind.GAUGE:
                values, inside = values[-1:], inside[-1:]
            elif series.kind.accumulates:
                values, inside = _summed(values, inside)
            instrument = self._counterpart(series)
            for value, span in zip(values.tolist(), inside.tolist(), strict=True):
                amount = int(value) if whole else value
                _give(instrument, series.kind, amount, series.attributes, contexts[span])

    def _counterpart(self, series: Series) -> Any:
        key = (series.meter, series.name, series.kind, series.unit)
        known = self._instruments.get(key)
        if known is None:  # of `Tracking.log`, or from a span
            meter = series.meter or _METER
            known = self._make(meter, series.name, series.kind, series.unit, series.description, None)
            self._instruments[key] = known
        return known

    def _make(
        self,
        meter: str,
        name: str,
        kind: Kind,
        unit: str,
        description: str,
        boundaries: Sequence[float] | None,
    ) -> Any:
        of = self._meter(meter)
        legal, unit = _legal(name), _legal_unit(unit)
        if kind is Kind.GAUGE:
            return of.create_gauge(legal, unit, description)
        if kind is Kind.COUNTER:
            return of.create_counter(legal, unit, description)
        if kind is Kind.UP_DOWN_COUNTER:
            return of.create_up_down_counter(legal, unit, description)
        return of.create_histogram(legal, unit, description, explicit_bucket_boundaries_advisory=boundaries)

    def _meter(self, name: str) -> Meter:
        if name not in self._meters:
            self._meters[name] = self.get_meter(name, *self._scopes.get(name, ()))
        return self._meters[name]

    def _before_collect(self, options: CallbackOptions) -> Iterable[Observation]:
        self.forward()
        return ()

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(_INTERVAL):
            try:
                self.forward()
            except (JournalError, OSError) as error:
                _LOG.warning("nothing more goes on to the SDK provider: %s", error)
                return


def _summed(
    increments: Float64Array, inside: npt.NDArray[np.int32]
) -> tuple[Float64Array, npt.NDArray[np.int32]]:
    """Increments added up, but for the last one that was recorded in a span: it is there as an exemplar."""
    spans = np.flatnonzero(inside >= 0)
    if not len(spans):
        return increments.sum(keepdims=True), np.full(1, -1, np.int32)
    last = spans[-1]
    rest = np.delete(increments, last)
    values = np.append(rest.sum(keepdims=True)[: len(rest)], increments[last])
    return values, np.append(np.full(len(values) - 1, -1, np.int32), inside[last])


def _context_of(span: EnclosingSpan) -> Context:
    context = SpanContext(
        span.trace_id, span.span_id, is_remote=False, trace_flags=TraceFlags(int(span.sampled))
    )
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def _give(
    instrument: Any, kind: Kind, amount: float, attributes: Attributes, context: Context | None
) -> None:
    # The SDK takes no others, and warns of each.
    if not math.isfinite(amount) or (kind is Kind.HISTOGRAM and amount < 0):
        return
    if kind is Kind.GAUGE:
        instrument.set(amount, attributes, context)
    elif kind.accumulates:
        instrument.add(amount, attributes, context)
    else:
        instrument.record(amount, attributes, context)


def _legal(name: str) -> str:
    """A name that the SDK takes; trackers get the original."""
    legal = _ILLEGAL.sub("_", name)[:_MAX_NAME]
    return legal if legal[:1].isalpha() else f"m_{legal}"[:_MAX_NAME]


def _legal_unit(unit: str) -> str:
    """A unit that the SDK takes: one that it doesn't take would make it refuse the instrument."""
    return unit if unit.isascii() and len(unit) <= _MAX_UNIT else ""
