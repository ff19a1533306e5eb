"""The meter provider: hands out instruments that record, and keeps an SDK provider fed.

A `MeterProvider` of the user's is attached, before or after it was made the global one, and goes on
to get everything that is recorded: off the training thread, without the step, fresh at each collect.
"""

from __future__ import annotations

import fnmatch
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Final, TypeVar, cast

from opentelemetry.metrics import (
    CallbackOptions,
    CallbackT,
    Counter,
    Histogram,
    Meter,
    MeterProvider,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.metrics import _Gauge as Gauge  # the API exports it under this name only
from opentelemetry.util.types import Attributes

from otel_tracking.downstream import Downstream, Scope
from otel_tracking.instruments import (
    Owner,
    TrackingCounter,
    TrackingGauge,
    TrackingHistogram,
    TrackingInstrument,
    TrackingObservable,
    TrackingObservableCounter,
    TrackingObservableGauge,
    TrackingObservableUpDownCounter,
    TrackingUpDownCounter,
    split_step,
)
from otel_tracking.recorder import Recorder

DEFAULT_METERS: Final = ("*", "!opentelemetry.*")
"""All meters but those of OpenTelemetry's own instrumentations."""

_FIRST_SAMPLE: Final = 1.0
"""Seconds until observables are first looked at, so that a short run has them."""
_Made = TypeVar("_Made", bound=TrackingInstrument)
_Observed = TypeVar("_Observed", bound=TrackingObservable)


class TrackingMeterProvider(MeterProvider):
    """A meter provider whose instruments record every measurement.

    Args:
        recorder: Where to.
        meters: Patterns of meter names (`fnmatch`), the last that matches decides; one that begins
            with `!` excludes. Meters left out go to the SDK provider downstream alone, if any.
        sample_interval: Seconds between two looks at the observable instruments.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        meters: Sequence[str] = DEFAULT_METERS,
        sample_interval: float = 10.0,
    ) -> None:
        self.recorder = recorder
        self.meters = tuple(meters)
        self.downstream: Downstream | None = None
        self._left_out = _LeftOut(self)
        self._sample_interval = sample_interval
        self._scopes: dict[str, Scope] = {}
        self._instruments: dict[object, tuple[TrackingInstrument, Sequence[float] | None]] = {}
        self._observables: dict[object, TrackingObservable] = {}
        self._lock = threading.RLock()
        self._sampler: threading.Thread | None = None
        _PROVIDERS.add(self)

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> Meter:
        """A meter; one that `meters` leaves out is for the SDK provider alone, also one that comes later."""
        name = name or ""
        scope = (version, schema_url, attributes)
        recorded = self.records(name)
        if not recorded and self.downstream is not None:
            return self.downstream.get_meter(name, *scope)
        self._scopes.setdefault(name, scope)
        return TrackingMeter(self, self if recorded else self._left_out, name, version, schema_url)

    def records(self, meter: str) -> bool:
        """Whether that meter's instruments are recorded."""
        wanted = False
        for pattern in self.meters:
            if fnmatch.fnmatchcase(meter, pattern.removeprefix("!")):
                wanted = not pattern.startswith("!")
        return wanted

    def attach(self, provider: MeterProvider) -> bool:
        """Feed an SDK provider with what is recorded from now on.

        Its `get_meter` hands out recording meters too, so that code that holds the provider itself
        is recorded like code that asks for the global one. Instruments made before are not.

        Returns:
            False, and nothing is done, if another provider is attached already.
        """
        with self._lock:
            if self.downstream is not None:
                return self.downstream.provider is provider
            self.downstream = Downstream(provider, self.recorder, self._scopes)
            provider.get_meter = self.get_meter  # type: ignore[method-assign]  # the public method, of this one object
            instruments, observables = list(self._instruments.values()), list(self._observables.values())
        for instrument, boundaries in instruments:
            self.downstream.add(instrument, boundaries)
        for observable in observables:
            self._observe_from(self.downstream, observable)
        return True

    # The SDK is called with no lock held: it collects under one of its own, and calls callbacks of
    # the user's from there, which may make instruments.

    def made(self, instrument: _Made, *, boundaries: Sequence[float] | None = None) -> _Made:
        """Keep a new instrument for the SDK provider that is attached, or may be later.

        Returns:
            The instrument, or the same one made before.
        """
        with self._lock:
            known = self._instruments.setdefault(instrument.identity, (instrument, boundaries))[0]
        if known is instrument and self.downstream is not None:
            self.downstream.add(instrument, boundaries)
        return cast(_Made, known)

    def observed(self, instrument: _Observed) -> _Observed:
        """Sample a new observable instrument from now on.

        Returns:
            The instrument, or the same one made before, which now has the new one's callbacks too.
        """
        with self._lock:
            known = self._observables.setdefault(instrument.identity, instrument)
            known.add_callbacks(instrument.callbacks)
            if self._sampler is None:
                self._start_sampler()
        if known is instrument and self.downstream is not None:
            self._observe_from(self.downstream, instrument)
        return cast(_Observed, known)

    def _observe_from(self, downstream: Downstream, instrument: TrackingObservable) -> None:
        downstream.observe(
            instrument, instrument.ask if instrument.owner is self._left_out else instrument.observe
        )

    def pass_on(self, instrument: TrackingInstrument, amount: float, attributes: Attributes) -> None:
        """Give a measurement that is not recorded to the SDK provider at once, without the step."""
        if self.downstream is not None:
            self.downstream.pass_on(instrument, amount, split_step(attributes)[1])

    def _start_sampler(self) -> None:
        self._sampler = threading.Thread(target=self._sample, name="otel-tracking-sampler", daemon=True)
        self._sampler.start()

    def _sample(self) -> None:
        pause = threading.Event()
        pause.wait(min(_FIRST_SAMPLE, self._sample_interval))
        while True:
            self.sample()
            pause.wait(self._sample_interval)

    def sample(self) -> None:
        """Ask every observable instrument once."""
        for observable in list(self._observables.values()):
            if observable.owner is self:
                observable.observe(CallbackOptions(self._sample_interval * 1000))

    def before_end(self) -> None:
        """The run ends: ask the observables once more, and give the SDK provider what it has not got."""
        self.sample()
        if self.downstream is not None:
            self.downstream.forward()

    def in_child(self) -> None:
        """This is a forked child: renew the locks, which threads that are not here may hold."""
        self._lock = threading.RLock()
        self._sampler = None
        for observable in self._observables.values():
            observable.in_child()
        if self.downstream is not None:
            self.downstream.in_child()

    def revive(self) -> None:
        """The forked child becomes a rank of its own: start the threads it did not inherit."""
        with self._lock:
            if self._observables and self._sampler is None:
                self._start_sampler()
            if self.downstream is not None:
                self.downstream.start()

    def __getattr__(self, name: str) -> Any:
        """What this provider does not have is the attached SDK provider's (`force_flush`, `shutdown`)."""
        downstream = self.__dict__.get("downstream")
        if downstream is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(downstream.provider, name)


class _LeftOut:
    """Owns the instruments of meters that are not recorded: all they get is the SDK provider's, as it is."""

    def __init__(self, provider: TrackingMeterProvider) -> None:
        self.recorder = Recorder()
        self.recorder.mute("its meter is left out", quiet=True)
        self._provider = provider

    def pass_on(self, instrument: TrackingInstrument, amount: float, attributes: Attributes) -> None:
        if self._provider.downstream is not None:
            self._provider.downstream.pass_on(instrument, amount, attributes)


class TrackingMeter(Meter):
    """A meter whose instruments record into the journal, under their names as written."""

    def __init__(
        self,
        provider: TrackingMeterProvider,
        owner: Owner,
        name: str,
        version: str | None,
        schema_url: str | None,
    ) -> None:
        super().__init__(name, version, schema_url)
        self._provider = provider
        self._owner = owner

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        """A counter."""
        return self._provider.made(TrackingCounter(self._owner, self.name, name, unit, description))

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> UpDownCounter:
        """An up-down counter."""
        return self._provider.made(TrackingUpDownCounter(self._owner, self.name, name, unit, description))

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        """A gauge."""
        return self._provider.made(TrackingGauge(self._owner, self.name, name, unit, description))

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        """A histogram; the boundaries are for the SDK provider downstream."""
        return self._provider.made(
            TrackingHistogram(self._owner, self.name, name, unit, description),
            boundaries=explicit_bucket_boundaries_advisory,
        )

    def create_observable_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableCounter:
        """An observable counter; its callbacks give totals."""
        return self._provider.observed(
            TrackingObservableCounter(self._owner, self.name, name, callbacks, unit, description)
        )

    def create_observable_up_down_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableUpDownCounter:
        """An observable up-down counter; its callbacks give totals."""
        return self._provider.observed(
            TrackingObservableUpDownCounter(self._owner, self.name, name, callbacks, unit, description)
        )

    def create_observable_gauge(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableGauge:
        """An observable gauge."""
        return self._provider.observed(
            TrackingObservableGauge(self._owner, self.name, name, callbacks, unit, description)
        )


_PROVIDERS: Final[weakref.WeakSet[TrackingMeterProvider]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for provider in list(_PROVIDERS):
        provider.in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
