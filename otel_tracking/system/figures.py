"""What the sources of system metrics give: figures, each of a metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from otel_tracking.records import AttributeValue, Kind

PREFIX: Final = "system/"
"""Of the series' names, so that trackers show them together and apart from the training's."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure is of: name, unit and description as OpenTelemetry's conventions have them."""

    name: str
    kind: Kind
    unit: str
    description: str

    @property
    def series(self) -> str:
        """What it is recorded as: `system.cpu.utilization` is `system/cpu.utilization`."""
        return PREFIX + self.name.removeprefix("system.")


@dataclass(frozen=True, slots=True)
class Figure:
    """One value of a metric."""

    metric: Metric
    value: float
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


class Source(ABC):
    """Something that can be asked for figures again and again, always by one and the same thread."""

    name: str
    """For people."""

    @abstractmethod
    def figures(self) -> Iterable[Figure]:
        """The figures now. What it raises costs those that it has not given yet, and nothing else."""

    def close(self) -> None:
        """It is asked no more."""
        return
