"""Names, units, kinds and descriptions are those of OpenTelemetry's conventions, and are documented."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from unittest.mock import Mock

import pytest
from opentelemetry.metrics import Meter
from opentelemetry.semconv._incubating.metrics import hw_metrics, process_metrics, system_metrics

from otel_tracking.system import allocator, gpu, host
from otel_tracking.system.figures import Metric

OF_CONVENTIONS = [
    *host.METRICS.values(),
    *(value for value in vars(gpu).values() if isinstance(value, Metric)),
]
ALL = [*OF_CONVENTIONS, *(value for value in vars(allocator).values() if isinstance(value, Metric))]
DOCUMENT = Path(__file__).parents[2] / "docs" / "system-metrics.md"


def by_convention(metric: Metric) -> tuple[str, str, str]:
    """(kind, unit, description), from the function by which the conventions' package makes it."""
    modules = {"system": system_metrics, "process": process_metrics, "hw": hw_metrics}
    create = getattr(modules[metric.name.split(".")[0]], "create_" + metric.name.replace(".", "_"))
    meter = Mock(spec=Meter)
    create(meter, *[None] * (len(inspect.signature(create).parameters) - 1))
    ((method, _, made),) = meter.method_calls
    assert made["name"] == metric.name
    return method.removeprefix("create_").removeprefix("observable_"), made["unit"], made["description"]


@pytest.mark.parametrize("metric", OF_CONVENTIONS, ids=lambda m: m.name)
def test_metadata_are_the_conventions(metric: Metric) -> None:
    kind, unit, description = by_convention(metric)
    assert metric.kind.value.removeprefix("observable_").replace("updown", "up_down_") == kind
    assert (metric.unit, metric.description) == (unit, description)


def test_the_document_lists_every_series_with_its_unit() -> None:
    listed = re.findall(r"^\| `(system/[^`]+)` \| `([^`]*)` \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted((metric.series, metric.unit) for metric in ALL)
