"""A meter provider that only keeps what observes, for an instrumentation that is to be asked by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from opentelemetry.metrics import (
    CallbackOptions,
    CallbackT,
    Meter,
    NoOpMeter,
    NoOpMeterProvider,
    NoOpObservableCounter,
    NoOpObservableGauge,
    NoOpObservableUpDownCounter,
    ObservableCounter,
    ObservableGauge,
    ObservableUpDownCounter,
    Observation,
)
from opentelemetry.util.types import Attributes


@dataclass(frozen=True, slots=True)
class Observed:
    """An observable instrument."""

    name: str
    callbacks: tuple[CallbackT, ...]

    def ask(self) -> Iterable[Observation]:
        """What its callbacks observe now. They are functions: instrumentations pass no generators."""
        for callback in self.callbacks:
            function = cast("Callable[[CallbackOptions], Iterable[Observation]]", callback)
            yield from function(CallbackOptions())


class ObservingMeterProvider(NoOpMeterProvider):
    """Keeps the observable instruments that are made with it; nothing else comes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.observed: list[Observed] = []

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes | None = None,
    ) -> Meter:
        """A meter whose observable instruments are kept."""
        return _ObservingMeter(self.observed, name, version, schema_url)


class _ObservingMeter(NoOpMeter):
    def __init__(
        self, observed: list[Observed], name: str, version: str | None, schema_url: str | None
    ) -> None:
        super().__init__(name, version, schema_url)
        self._observed = observed

    def create_observable_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableCounter:
        self._observed.append(Observed(name, tuple(callbacks or ())))
        return NoOpObservableCounter(name, callbacks, unit, description)

    def create_observable_up_down_counter(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableUpDownCounter:
        self._observed.append(Observed(name, tuple(callbacks or ())))
        return NoOpObservableUpDownCounter(name, callbacks, unit, description)

    def create_observable_gauge(
        self, name: str, callbacks: Sequence[CallbackT] | None = None, unit: str = "", description: str = ""
    ) -> ObservableGauge:
        self._observed.append(Observed(name, tuple(callbacks or ())))
        return NoOpObservableGauge(name, callbacks, unit, description)
