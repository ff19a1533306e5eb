"""CPU, memory, disk, network and this process, through OpenTelemetry's instrumentation of them."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from opentelemetry.metrics import Observation

from otel_tracking.records import AttributeValue, Kind
from otel_tracking.system.figures import Figure, Metric, Source
from otel_tracking.system.observing import Observed, ObservingMeterProvider

_LOG: Final = logging.getLogger(__name__)

# What the instrumentation is asked for. Of its metrics these are what tells why a training is slow; the
# others are counts of the interpreter, or cost too much (`system.network.connections` walks all sockets).
_CONFIG: Final[dict[str, list[str] | None]] = {
    "system.cpu.utilization": ["user", "system", "iowait", "idle"],
    "system.memory.usage": ["used", "free", "cached"],
    "system.memory.utilization": ["used", "free", "cached"],
    "system.swap.usage": ["used", "free"],
    "system.disk.io": ["read", "write"],
    "system.disk.operations": ["read", "write"],
    "system.network.io": ["transmit", "receive"],
    "system.network.errors": ["transmit", "receive"],
    "system.network.dropped.packets": ["transmit", "receive"],
    "process.cpu.utilization": None,
    "process.memory.usage": None,
}

# The conventions' metrics by the instrumentation's names, which follow older conventions.
METRICS: Final[Mapping[str, Metric]] = {
    "system.cpu.utilization": Metric(
        "system.cpu.utilization",
        Kind.OBSERVABLE_GAUGE,
        "1",
        "For each logical CPU, the utilization is calculated as the change in cumulative CPU time (cpu.time) "
        "over a measurement interval, divided by the elapsed time.",
    ),
    "system.memory.usage": Metric(
        "system.memory.usage", Kind.OBSERVABLE_UP_DOWN_COUNTER, "By", "Reports memory in use by state."
    ),
    "system.memory.utilization": Metric(
        "system.memory.utilization", Kind.OBSERVABLE_GAUGE, "1", "Percentage of memory bytes in use."
    ),
    "system.swap.usage": Metric(
        "system.paging.usage", Kind.OBSERVABLE_UP_DOWN_COUNTER, "By", "UNIX swap or windows pagefile usage."
    ),
    "system.disk.io": Metric("system.disk.io", Kind.OBSERVABLE_COUNTER, "By", "Disk bytes transferred."),
    "system.disk.operations": Metric(
        "system.disk.operations", Kind.OBSERVABLE_COUNTER, "{operation}", "Disk operations count."
    ),
    "system.network.io": Metric(
        "system.network.io",
        Kind.OBSERVABLE_COUNTER,
        "By",
        "The number of bytes transmitted and received.",
    ),
    "system.network.errors": Metric(
        "system.network.errors", Kind.OBSERVABLE_COUNTER, "{error}", "Count of network errors detected."
    ),
    "system.network.dropped_packets": Metric(
        "system.network.packet.dropped",
        Kind.OBSERVABLE_COUNTER,
        "{packet}",
        "Count of packets that are dropped or discarded even though there was no error.",
    ),
    "process.cpu.utilization": Metric(
        "process.cpu.utilization",
        Kind.OBSERVABLE_GAUGE,
        "1",
        "Difference in process.cpu.time since the last measurement, divided by the elapsed time and number "
        "of CPUs available to the process.",
    ),
    "process.memory.usage": Metric(
        "process.memory.usage",
        Kind.OBSERVABLE_UP_DOWN_COUNTER,
        "By",
        "The amount of physical memory in use.",
    ),
}
_SINCE_LAST_ASKED: Final = ("system.cpu.utilization", "process.cpu.utilization")
_SHORTEST: Final = 0.1
"""Seconds of which a share is a figure: the system counts CPU time in ticks of some 10 ms."""
_CPU: Final = "cpu"
_DEVICE: Final = "device"
_NO_DEVICES: Final = re.compile(r"(loop|ram|zram|veth)[0-9a-f]+")
"""Files mounted as disks, memory, and containers' ends of a network: machines have dozens."""


def open_host() -> list[Source]:
    """The sources, one for each metric, so that one that fails leaves the others.

    The instrumentation is imported here and not before.
    """
    try:
        from opentelemetry.instrumentation.system_metrics import (  # an extra
            SystemMetricsInstrumentor,
        )
    except ImportError as error:
        _LOG.warning(
            "CPU, memory, disk and network are not recorded (%s): pip install 'otel-tracking[system]'", error
        )
        return []

    # One of our own: the constructor gives the process's single one, which may be the user's, and would
    # be configured anew.
    instrumentor = object.__new__(SystemMetricsInstrumentor)
    SystemMetricsInstrumentor.__init__(instrumentor, config=dict(_CONFIG))
    provider = ObservingMeterProvider()
    instrumentor.instrument(meter_provider=provider, skip_dep_check=True)
    return [HostMetric(METRICS[each.name], each) for each in provider.observed if each.name in METRICS]


class HostMetric(Source):
    """One metric of the instrumentation."""

    def __init__(self, metric: Metric, observed: Observed) -> None:
        self.name = metric.name
        self._metric = metric
        self._observed = observed
        self._share = metric.name in _SINCE_LAST_ASKED
        self._last = time.monotonic()
        if self._share:  # the first answer to this thread is always 0
            with contextlib.suppress(Exception):
                list(observed.ask())

    def figures(self) -> Iterator[Figure]:
        """The figures now."""
        if self._share:
            now = time.monotonic()
            if now - self._last < _SHORTEST:
                return
            self._last = now
        for attributes, value in _over_cpus(self._observed.ask()):
            device = attributes.get(_DEVICE)
            # Devices that never do anything, and errors that never come, would be charts of 0.
            if device is None or (value and not _NO_DEVICES.fullmatch(str(device))):
                # Ticks are rounded: of a process that has all CPUs it may be a little more than 1.
                yield Figure(self._metric, min(value, 1.0) if self._share else value, attributes)


def _over_cpus(observations: Iterable[Observation]) -> Iterator[tuple[dict[str, AttributeValue], float]]:
    """One value for all CPUs, the mean: some machines have 200 of them, and each would be a chart."""
    cpus: defaultdict[tuple[tuple[str, Any], ...], list[float]] = defaultdict(list)
    for observation in observations:
        attributes: dict[str, Any] = dict(observation.attributes or {})
        if attributes.pop(_CPU, None) is None:
            yield attributes, observation.value
        else:
            cpus[tuple(attributes.items())].append(observation.value)
    for items, values in cpus.items():
        yield dict(items), sum(values) / len(values)
