"""The meter provider: hands out instruments that record, and keeps an SDK provider fed.

A `MeterProvider` of the user's is attached, before or after it was made the global one, and goes on
to get everything that is recorded: off the training thread, without the step, fresh at each collect.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry.metrics import (
    CallbackOptions,
    CallbackT,
    Counter,
    Histogram,
    Meter,
    MeterProvider,
    NoOpMeter,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    UpDownCounter,
)
from opentelemetry.metrics import _Gauge as Gauge  # the API exports it under this name only
from opentelemetry.util.types import Attributes

from otel_tracking.downstream import Downstream
from otel_tracking.instruments import (
    TrackingCounter,
    TrackingGauge,
    TrackingHistogram,
    TrackingInstrument,
    TrackingObservable,
    TrackingObservableCounter,
    TrackingObservableGauge,
    TrackingObservableUpDownCounter,
    TrackingUpDownCounter,
)
from otel_tracking.recorder import Recorder

DEFAULT_METERS: Final = ("*", "!opentelemetry.*")
"""All meters but those of OpenTelemetry's own instrumentations."""


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
        self._sample_interval = sample_interval
        self._instruments: list[tuple[TrackingInstrument, Sequence[float] | None]] = []
        self._observables: list[TrackingObservable] = []
        self._lock = threading.RLock()
        self._sampler: threading.Thread | None = None

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> Meter:
        """A meter; one that `meters` leaves out is the SDK provider's own, or does nothing."""
        if self.records(name):
            return TrackingMeter(self, name, version, schema_url)
        if self.downstream is not None:
            return self.downstream.get_meter(name, version, schema_url, attributes)
        return NoOpMeter(name, version, schema_url)

    def records(self, meter: str) -> bool:
        """Whether that meter's instruments are recorded."""
        wanted = False
        for pattern in self.meters:
            if fnmatch.fnmatchcase(meter, pattern.removeprefix("!")):
                wanted = not pattern.startswith("!")
        return wanted

    def attach(self, provider: MeterProvider) -> None:
        """Feed an SDK provider with what is recorded from now on.

        Its `get_meter` hands out recording meters too, so that code that holds the provider itself
        is recorded like code that asks for the global one. Instruments made before are not.
        """
        with self._lock:
            if self.downstream is not None and self.downstream.provider is provider:
                return
            self.downstream = Downstream(provider, self.recorder)
            provider.get_meter = self.get_meter  # type: ignore[method-assign]  # the public method, of this one object
            for instrument, boundaries in self._instruments:
                self.downstream.add(instrument, boundaries)
            for observable in self._observables:
                self.downstream.observe(observable)

    def made(self, instrument: TrackingInstrument, *, boundaries: Sequence[float] | None = None) -> None:
        """Keep a new instrument for the SDK provider that is attached, or may be later."""
        with self._lock:
            self._instruments.append((instrument, boundaries))
            if self.downstream is not None:
                self.downstream.add(instrument, boundaries)

    def observed(self, instrument: TrackingObservable) -> None:
        """Sample a new observable instrument from now on."""
        with self._lock:
            self._observables.append(instrument)
            if self.downstream is not None:
                self.downstream.observe(instrument)
            if self._sampler is None:
                self._sampler = threading.Thread(target=self._sample, name="otel-tracking-sampler", daemon=True)
                self._sampler.start()

    def pass_on(self, instrument: TrackingInstrument, amount: float, attributes: Attributes) -> None:
        """Give a measurement that is not recorded to the SDK provider at once."""
        if self.downstream is not None:
            self.downstream.pass_on(instrument, amount, attributes)

    def _sample(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._sample_interval):
            self.sample()

    def sample(self) -> None:
        """Ask every observable instrument once."""
        for observable in list(self._observables):
            observable.observe(CallbackOptions(self._sample_interval * 1000))

    def before_end(self) -> None:
        """The run ends: ask the observables once more, and give the SDK provider what it has not got."""
        if self._observables:
            self.sample()
        if self.downstream is not None:
            self.downstream.forward()

    def __getattr__(self, name: str) -> Any:
        """What this provider does not have is the attached SDK provider's (`force_flush`, `shutdown`)."""
        downstream = self.__dict__.get("downstream")
        if downstream is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(downstream.provider, name)


class TrackingMeter(Meter):
    """A meter whose instruments record into the journal, under their names as written."""

    def __init__(
        self, provider: TrackingMeterProvider, name: str, version: str | None, schema_url: str | None
    ) -> None:
        super().__init__(name, version, schema_url)
        self._provider = provider

    def create_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        """A counter."""
        counter = TrackingCounter(self._provider, self.name, name, unit, description)
        self._provider.made(counter)
        return counter

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> UpDownCounter:
        """An up-down counter."""
        counter = TrackingUpDownCounter(self._provider, self.name, name, unit, description)
        self._provider.made(counter)
        return counter

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        """A gauge."""
        gauge = TrackingGauge(self._provider, self.name, name, unit, description)
        self._provider.made(gauge)
        return gauge

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> Histogram:
        """A histogram; the boundaries are for the SDK provider downstream."""
        histogram = TrackingHistogram(self._provider, self.name, name, unit, description)
        self._provider.made(histogram, boundaries=explicit_bucket_boundaries_advisory)
        return histogram

    def create_observable_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableCounter:
        """An observable counter; its callbacks give totals."""
        made = TrackingObservableCounter(self._provider, self.name, name, callbacks, unit, description)
        self._provider.observed(made)
        return made

    def create_observable_up_down_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableUpDownCounter:
        """An observable up-down counter; its callbacks give totals."""
        made = TrackingObservableUpDownCounter(self._provider, self.name, name, callbacks, unit, description)
        self._provider.observed(made)
        return made

    def create_observable_gauge(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableGauge:
        """An observable gauge."""
        made = TrackingObservableGauge(self._provider, self.name, name, callbacks, unit, description)
        self._provider.observed(made)
        return made
