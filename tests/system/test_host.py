"""CPU, memory, disk and network, by the real instrumentation on this machine; and torch's allocator."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
from opentelemetry.metrics import CallbackOptions, Observation

from otel_tracking.system import host
from otel_tracking.system.allocator import TorchAllocator
from otel_tracking.system.figures import Figure
from otel_tracking.system.host import METRICS, HostMetric, open_host
from otel_tracking.system.observing import Observed, ObservingMeterProvider


@pytest.fixture(autouse=True)
def _shares_of_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_SHORTEST", 0)


@pytest.fixture
def figures() -> dict[str, list[Figure]]:
    return {source.name: list(source.figures()) for source in open_host()}


def test_all_that_is_asked_for_is_given(figures: dict[str, list[Figure]]) -> None:
    assert set(figures) == {metric.name for metric in METRICS.values()}
    for name in ("system.cpu.utilization", "system.memory.usage", "system.memory.utilization"):
        assert {f.attributes["state"] for f in figures[name]} >= (
            {"user", "system", "idle"} if "cpu" in name else {"used", "free"}
        )
    assert len(figures["process.cpu.utilization"]) == len(figures["process.memory.usage"]) == 1


def test_values_are_plausible(figures: dict[str, list[Figure]]) -> None:
    for name, given in figures.items():
        for figure in given:
            if name.endswith("utilization"):
                assert 0 <= figure.value <= 1, figure
            elif figure.metric.unit == "By" and name != "system.paging.usage":
                assert figure.value > 0, figure
            else:
                assert figure.value >= 0, figure


def test_all_cpus_are_one_figure(figures: dict[str, list[Figure]]) -> None:
    states = [f.attributes for f in figures["system.cpu.utilization"]]
    assert all(set(attributes) == {"state"} for attributes in states)
    assert len({attributes["state"] for attributes in states}) == len(states)
    assert asked(
        "system.cpu.utilization",
        [
            Observation(0.25, {"state": "user", "cpu": 1}),
            Observation(0.75, {"state": "idle", "cpu": 1}),
            Observation(0.75, {"state": "user", "cpu": 2}),
            Observation(0.25, {"state": "idle", "cpu": 2}),
        ],
    ) == [(0.5, {"state": "user"}), (0.5, {"state": "idle"})]


def test_devices_that_do_nothing_or_are_none_are_left_out() -> None:
    assert asked(
        "system.disk.io",
        [
            Observation(5, {"device": "nvme0n1", "direction": "read"}),
            Observation(0, {"device": "nvme0n1", "direction": "write"}),
            Observation(5, {"device": "loop12", "direction": "read"}),
            Observation(5, {"device": "looper", "direction": "read"}),
            Observation(5, {"device": "veth0a1b2c3", "direction": "read"}),
        ],
    ) == [
        (5, {"device": "nvme0n1", "direction": "read"}),
        (5, {"device": "looper", "direction": "read"}),
    ]
    assert asked("system.paging.usage", [Observation(0, {"state": "used"})]) == [(0, {"state": "used"})]


def asked(name: str, observations: list[Observation]) -> list[tuple[float, dict[str, Any]]]:
    def callback(options: CallbackOptions) -> Iterable[Observation]:
        return observations

    metric = next(metric for metric in METRICS.values() if metric.name == name)
    source = HostMetric(metric, Observed(name, (callback,)))
    return [(figure.value, dict(figure.attributes)) for figure in source.figures()]


def test_an_instrumentation_of_the_users_stays_as_it_is() -> None:
    provider = ObservingMeterProvider()
    users = SystemMetricsInstrumentor(config={"system.memory.usage": ["used"]})
    users.instrument(meter_provider=provider)
    try:
        assert open_host()
        (observed,) = provider.observed
        assert [observation.attributes for observation in observed.ask()] == [{"state": "used"}]
        assert SystemMetricsInstrumentor(config={"system.memory.usage": ["used"]}) is users
    finally:
        users.uninstrument()


def test_without_the_extra_there_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.system_metrics", None)
    with caplog.at_level(logging.WARNING):
        assert open_host() == []
    (record,) = caplog.records
    assert "otel-tracking[system]" in record.getMessage()


def test_a_share_of_no_time_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_SHORTEST", 3600)
    shares = [source for source in open_host() if source.name.endswith("cpu.utilization")]
    assert len(shares) == 2
    assert [list(source.figures()) for source in shares] == [[], []]


# torch


def allocator() -> list[tuple[str, float, dict[str, Any]]]:
    return [(f.metric.series, f.value, dict(f.attributes)) for f in TorchAllocator().figures()]


def test_torch_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert allocator() == []
    assert "torch" not in sys.modules


def test_torch_without_cuda_gives_nothing() -> None:
    import torch

    if not torch.cuda.is_available():
        assert allocator() == []


def test_torch_that_is_being_imported_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))
    assert allocator() == []


def test_torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """`memory_stats` as torch gives it: nothing of device 0, which the process has never used."""
    stats: list[dict[str, int]] = [
        {"reserved_bytes.all.peak": 0},
        {
            "allocated_bytes.all.current": 1 << 20,
            "allocated_bytes.all.peak": 3 << 20,
            "reserved_bytes.all.current": 2 << 20,
            "reserved_bytes.all.peak": 4 << 20,
            "num_alloc_retries": 0,
        },
    ]
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(  # type: ignore[attr-defined]
        is_initialized=lambda: True, device_count=lambda: 2, memory_stats=lambda device: stats[device]
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert allocator() == [
        ("system/torch.cuda.memory.usage", 1 << 20, {"device": "1", "state": "allocated"}),
        ("system/torch.cuda.memory.usage", 2 << 20, {"device": "1", "state": "reserved"}),
        ("system/torch.cuda.memory.peak", 3 << 20, {"device": "1"}),
        ("system/torch.cuda.memory.retries", 0, {"device": "1"}),
    ]
