"""The instruments: OpenTelemetry's metrics API, every measurement a record in the journal.

Built on the API's public abstract classes alone.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar, Final, Protocol, TypeAlias

from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    CallbackT,
    Counter,
    Histogram,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    Observation,
    UpDownCounter,
)
from opentelemetry.metrics import _Gauge as Gauge  # the API exports it under this name only
from opentelemetry.util.types import Attributes

from otel_tracking.errors import raised_here
from otel_tracking.journal.format import SPAN_SHIFT, pack_point
from otel_tracking.open_spans import open_spans
from otel_tracking.recorder import Recorder
from otel_tracking.records import AttributeValue, Kind
from otel_tracking.registry import SeriesHandle, SeriesRegistry
from otel_tracking.span_records import STEP_ATTRIBUTE
from otel_tracking.steps import STEP_ALIASES, ambient, as_step
from otel_tracking.values import Number, to_number

_time_ns: Final = time.time_ns
_Getter: TypeAlias = Callable[[Mapping[str, Any]], Any]
_Question: TypeAlias = Callable[[CallbackOptions], Iterable[Observation]]


class Owner(Protocol):
    """What instruments need of the provider they come from."""

    recorder: Recorder

    def pass_on(self, instrument: TrackingInstrument, amount: float, attributes: Attributes) -> None:
        """Give a measurement that is not recorded to an SDK downstream, if there is one."""


class TrackingInstrument:
    """What all synchronous instruments share: identity, caches, and the way into the journal."""

    kind: ClassVar[Kind]

    def __init__(self, owner: Owner, meter: str, name: str, unit: str, description: str) -> None:
        self.owner = owner
        self._recorder = owner.recorder
        self.meter = meter
        self.name = name
        self.unit = unit or ""
        self.description = description or ""
        self._plain: SeriesHandle | None = None
        # names of the attributes -> (values of all but the step, values -> series)
        self._plans: dict[tuple[str, ...], tuple[_Getter, dict[Any, SeriesHandle]]] = {}
        self._recorder.add_cache(self)

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two instruments the same one; who records it is part of that."""
        return (self.owner, self.meter, self.name, self.kind, self.unit)

    def reset(self) -> None:
        """Forget the series of a journal that is closed."""
        self._plain = None
        self._plans.clear()

    def _record(self, amount: float, attributes: Attributes, context: Context | None) -> None:
        # The short way: a float (or small int) and a `training.step` among known attributes.
        if attributes.__class__ is dict:
            step = attributes.get(STEP_ATTRIBUTE)
            if step.__class__ is int:
                series = self._plain if len(attributes) == 1 else self._known(attributes)
                if series is not None:
                    if amount.__class__ is float:
                        word = series.word
                    elif amount.__class__ is int and -(2**53) <= amount <= 2**53:
                        word = series.integer_word
                    else:
                        return self._record_any(amount, attributes, context)
                    if open_spans:
                        word |= self._recorder.span_number(series.journal, context) << SPAN_SHIFT
                    try:
                        data = pack_point(word, step, _time_ns(), amount)
                    except struct.error as error:  # a step beyond 64 bits
                        if not raised_here(error):
                            raise
                        return self._record_any(amount, attributes, context)
                    try:
                        series.journal.write(data)
                    except ValueError as error:
                        if not raised_here(error):
                            raise
                        if not series.journal.overflow(data):  # the run has ended; maybe a next one began
                            self._record_any(amount, attributes, context)
                    return None
        return self._record_any(amount, attributes, context)

    def _known(self, attributes: dict[str, Any]) -> SeriesHandle | None:
        """The series of attributes that are the step and texts, if it was met before."""
        plan = self._plans.get(tuple(attributes))
        if plan is None:
            return None
        try:
            return plan[1].get(plan[0](attributes))
        except TypeError as error:  # a list among the values
            if not raised_here(error):
                raise
            return None

    def _record_any(self, amount: float, attributes: Attributes, context: Context | None) -> None:
        recorder = self._recorder
        try:
            registry = recorder.opened()
            if registry is None:
                self.owner.pass_on(self, amount, attributes)
                return
            step, rest = split_step(attributes)
            series = self._series(registry, attributes, rest)
            step = ambient(context) if step is None else step
            recorder.point(series, amount, step=step, context=context)
        except Exception as error:  # noqa: BLE001 - whose error it is decides `failed`
            recorder.failed(error)

    def _series(
        self, registry: SeriesRegistry, attributes: Attributes, rest: dict[str, AttributeValue]
    ) -> SeriesHandle:
        if not rest:
            plain = self._plain
            if plain is None or plain.journal is not registry.journal:  # set while a run ended: of that run
                plain = self._plain = self._define(registry, rest)
            return plain
        series = self._define(registry, rest)
        if (
            attributes
            and STEP_ATTRIBUTE in attributes
            and STEP_ATTRIBUTE not in rest
            and len(attributes) == len(rest) + 1
            # Only texts: 1, True and 1.0 are one key of a dict, and three series.
            and all(type(key) is str for key in attributes)
            and all(type(attributes[key]) is str for key in rest)
        ):
            names = tuple(attributes)
            plan = self._plans.get(names)
            if plan is None:
                getter = itemgetter(*(name for name in names if name != STEP_ATTRIBUTE))
                plan = self._plans[names] = (getter, {})
            plan[1][plan[0](attributes)] = series
        return series

    def _define(self, registry: SeriesRegistry, attributes: dict[str, AttributeValue]) -> SeriesHandle:
        return registry.series(
            name=self.name,
            kind=self.kind,
            unit=self.unit,
            description=self.description,
            meter=self.meter,
            attributes=attributes,
            group=self.name if attributes else "",
        )


class TrackingGauge(TrackingInstrument, Gauge):
    """A gauge every value of which is kept."""

    kind = Kind.GAUGE

    def set(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record a value; NaN and infinities are values."""
        self._record(amount, attributes, context)


class TrackingCounter(TrackingInstrument, Counter):
    """A counter; trackers get its running total after each add."""

    kind = Kind.COUNTER

    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record an increment; a negative one is refused, as OpenTelemetry says."""
        if amount.__class__ is float or amount.__class__ is int:
            negative = amount < 0
        else:
            what = to_number(amount)
            negative = isinstance(what, Number) and what.value < 0
        if negative:
            reason = "a counter only rises; use an up-down counter"
            self._recorder.refuse(f"add({amount!r:.80}) on {self.name!r}", reason)
            return
        self._record(amount, attributes, context)


class TrackingUpDownCounter(TrackingInstrument, UpDownCounter):
    """A counter that also falls; trackers get its running total after each add."""

    kind = Kind.UP_DOWN_COUNTER

    def add(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record an increment or decrement."""
        self._record(amount, attributes, context)


class TrackingHistogram(TrackingInstrument, Histogram):
    """A histogram every value of which is kept, negative ones too."""

    kind = Kind.HISTOGRAM

    def record(self, amount: float, attributes: Attributes = None, context: Context | None = None) -> None:
        """Record a value."""
        self._record(amount, attributes, context)


class TrackingObservable(TrackingInstrument):
    """An instrument that is asked for its values: by us on an interval, by an SDK at each collect."""

    def __init__(
        self,
        owner: Owner,
        meter: str,
        name: str,
        callbacks: Sequence[CallbackT] | None,
        unit: str,
        description: str,
    ) -> None:
        super().__init__(owner, meter, name, unit, description)
        self.callbacks: list[CallbackT] = []
        self._questions: list[_Question] = []
        self._asking = threading.RLock()  # a generator can't be asked by two threads at once
        self.add_callbacks(callbacks or ())

    def add_callbacks(self, callbacks: Iterable[CallbackT]) -> None:
        """Ask these too, from now on."""
        for callback in callbacks:
            if callback not in self.callbacks:
                self.callbacks.append(callback)
                self._questions.append(_as_function(callback))

    def in_child(self) -> None:
        """This is a forked child: the lock may be held by a thread that is not here."""
        self._asking = threading.RLock()

    def observe(self, options: CallbackOptions) -> list[Observation]:
        """Ask the callbacks and record what they say.

        Returns:
            What they said, without the step.
        """
        observations = self.ask(options)
        for observation in observations:
            self._record(observation.value, observation.attributes, observation.context)
        return [
            Observation(observation.value, split_step(observation.attributes)[1], observation.context)
            for observation in observations
        ]

    def ask(self, options: CallbackOptions) -> list[Observation]:
        """Ask the callbacks; what is wrong with one of them does not keep the others from being asked."""
        observations: list[Observation] = []
        with self._asking:
            for question in list(self._questions):
                try:
                    observations.extend(question(options))
                except Exception as error:  # noqa: BLE001 - the user's callback may raise anything
                    self._recorder.refuse(f"{self.name!r}", f"its callback raised {type(error).__name__}")
        sound = [observation for observation in observations if isinstance(observation, Observation)]
        if len(sound) < len(observations):
            self._recorder.refuse(f"{self.name!r}", "its callback gave something that is no Observation")
        return sound


class TrackingObservableGauge(TrackingObservable, ObservableGauge):
    """An observable gauge."""

    kind = Kind.OBSERVABLE_GAUGE


class TrackingObservableCounter(TrackingObservable, ObservableCounter):
    """An observable counter; what it observes is a total already."""

    kind = Kind.OBSERVABLE_COUNTER


class TrackingObservableUpDownCounter(TrackingObservable, ObservableUpDownCounter):
    """An observable up-down counter; what it observes is a total already."""

    kind = Kind.OBSERVABLE_UP_DOWN_COUNTER


def split_step(attributes: Attributes) -> tuple[int | None, dict[str, AttributeValue]]:
    """The step among the attributes, and the rest as series are told apart by it.

    The first of `training.step`, `step`, `global_step` that is an integer is the step; one that is
    none stays an attribute.
    """
    if not isinstance(attributes, Mapping):
        return None, {}
    step = None
    taken = ""
    for key in (STEP_ATTRIBUTE, *STEP_ALIASES):
        value = attributes.get(key)
        if value is not None and (step := as_step(value)) is not None:
            taken = key
            break
    return step, {str(key): _attribute(value) for key, value in attributes.items() if key != taken}


def _attribute(value: object) -> AttributeValue:
    """The value as one of the types of which a journal keeps every one apart, and no others."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # an enum's member would read back as something else
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        items = (_attribute(item) for item in value)
        return tuple(str(item) if isinstance(item, tuple) else item for item in items)
    number = to_number(value)
    if isinstance(number, Number):
        return int(number.value) if number.integer else number.value
    return str(value)


def _as_function(callback: CallbackT) -> _Question:
    """A generator is asked as the SDK asks it: run to its first `yield`, then sent the options."""
    if callable(callback):
        return callback
    generator = callback
    started = False

    def ask(options: CallbackOptions) -> Iterable[Observation]:
        nonlocal started
        try:
            if not started:
                started = True
                next(generator)
            return generator.send(options) or ()
        except StopIteration:
            return ()

    return ask
