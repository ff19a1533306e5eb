"""What a Prometheus scrape and an OTLP agent cost the thread that records: `gauge.set` and `log` of ten
scalars, with and without them.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import socket
import statistics
import subprocess
import sysconfig
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawValue
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    InMemoryMetricReader,
    MetricExportResult,
    PeriodicExportingMetricReader,
)
from prometheus_client import start_http_server

from benchmarks.loops import log_ten, set_with_attribute, set_with_step
from benchmarks.measuring import PACE, Contender, Cost, Size, in_own_process, take_turns
from benchmarks.tables import Table, micros, verdict
from otel_tracking import Tracking

_AGENT = Path(sysconfig.get_path("purelib"), "rotel", "rotel-agent")
_INTERVAL = 0.1
"""Seconds between scrapes, and between exports: shorter than is usual, so that each round has several."""
_PATIENCE = 60.0
_AT_MOST = 1.1
_COLUMNS = ("", "alone", "with both", "ratio", "at most", "")
_TITLE = "A recording thread, alone and with a Prometheus scrape and a rotel agent"


@dataclass(frozen=True, slots=True)
class Measured:
    """By one process: of `gauge.set`, of `log` of ten, and at full speed of the SDK's `gauge.set`."""

    full_speed: Sequence[Cost]
    paced: Sequence[Cost]


def measure(size: Size) -> list[Table]:
    """A provider is attached for good, so each set-up has fresh processes, in turn."""
    if not _AGENT.exists():
        missing = f"not measured: there is no {_AGENT}, which the extra [dev] brings"
        return [Table(_TITLE, ("",), [(missing,)])]
    calls, apart = size(500_000, 10_000), size(300, 10)
    alone, attached = [], []
    with _agent() as address:
        for _ in range(size(15, 1)):
            alone.append(in_own_process(record, None, calls=calls, apart=apart))
            attached.append(in_own_process(record, address, calls=calls, apart=apart))
    gauge, log, sdk = _pairs([of.full_speed for of in alone], [of.full_speed for of in attached])
    full_speed = [
        _row("gauge.set", "CPU", gauge, at_most=_AT_MOST),
        _row("gauge.set", "wall", gauge),
        _row("log of ten scalars", "CPU", log, at_most=_AT_MOST),
        _row("log of ten scalars", "wall", log),
        _row("for contrast, the SDK's own gauge.set", "CPU", sdk),
        _row("for contrast, the SDK's own gauge.set", "wall", sdk),
    ]
    gauge, log = _pairs([of.paced for of in alone], [of.paced for of in attached])
    paced = [
        _row("gauge.set", "CPU", gauge),
        _row("gauge.set", "wall", gauge),
        _row("log of ten scalars", "CPU", log),
        _row("log of ten scalars", "wall", log),
    ]
    return [
        Table(_TITLE, _COLUMNS, full_speed),
        Table(f"The same, one call every {PACE * 1000:g} ms", _COLUMNS, paced),
    ]


def record(agent: str | None, *, calls: int, apart: int) -> Measured:
    """Record with the pipelines attached, or with nothing but the journal if there is no agent.

    Args:
        agent: Where it takes OTLP.
        calls: A round at full speed.
        apart: Paced ones.
    """
    with contextlib.ExitStack() as stack:
        runs = stack.enter_context(tempfile.TemporaryDirectory(dir="."))
        # The SDK's own gauge: of a provider that is not attached, or made before it is.
        if agent is None:
            sdk, settle = (
                _sdk_gauge(MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)),
                _at_once,
            )
        else:
            pipelines = stack.enter_context(_pipelines(agent))
            sdk, settle = pipelines.gauge, pipelines.settle
        tracking = stack.enter_context(Tracking(project_dir=runs))
        tracking.init_trackers("pipelines")
        ours = [
            set_with_step(metrics.get_meter("train").create_gauge("train/loss")),
            log_ten(tracking.log),
        ]
        for make in ours:
            make(1)  # there is nothing to export before
        settle()
        contenders = zip([*ours, set_with_attribute(sdk)], [calls, calls // 5, calls // 10], strict=True)
        return Measured(
            take_turns([Contender(make, count, settle=settle) for make, count in contenders], rounds=1),
            take_turns([Contender(make, 1, settle=lambda: time.sleep(PACE)) for make in ours], rounds=apart),
        )


def _at_once() -> None:
    pass


def _sdk_gauge(provider: MeterProvider) -> Any:
    return provider.get_meter("sdk").create_gauge("sdk/loss")


# The pipelines


class _CountingExporter(OTLPMetricExporter):
    exports = 0

    def export(self, *args: Any, **kwargs: Any) -> MetricExportResult:
        result = super().export(*args, **kwargs)
        self.exports += result is MetricExportResult.SUCCESS
        return result


@dataclass(frozen=True, slots=True)
class _Pipelines:
    gauge: Any
    """One of the SDK's own, made before the provider was attached."""
    scrapes: ctypes.c_int64
    exporter: _CountingExporter

    def settle(self) -> None:
        """Wait until both have got what there is: a scrape and an export may be under way."""
        deadline = time.monotonic() + _PATIENCE
        scrapes, exports = self.scrapes.value + 2, self.exporter.exports + 2
        while self.scrapes.value < scrapes or self.exporter.exports < exports:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.scrapes.value} scrapes, {self.exporter.exports} exports: no more")
            time.sleep(0.01)


@contextlib.contextmanager
def _pipelines(agent: str) -> Iterator[_Pipelines]:
    """A provider of the user's that a process scrapes, and that exports to the agent."""
    exporter = _CountingExporter(agent)
    provider = MeterProvider(
        [
            PrometheusMetricReader(),
            PeriodicExportingMetricReader(exporter, export_interval_millis=_INTERVAL * 1000),
        ]
    )
    gauge = _sdk_gauge(provider)
    metrics.set_meter_provider(provider)
    server, _ = start_http_server(0, "127.0.0.1")
    scrapes = RawValue(ctypes.c_int64, 0)
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    spawn = multiprocessing.get_context("spawn")
    scraper = spawn.Process(target=scrape, args=(url, scrapes), daemon=True)
    scraper.start()
    try:
        yield _Pipelines(gauge, scrapes, exporter)
    finally:
        scraper.terminate()
        scraper.join()
        server.shutdown()
        provider.shutdown()


def scrape(url: str, count: ctypes.c_int64) -> None:
    """Scrape until there is nothing to be scraped any more."""
    with contextlib.suppress(OSError):
        while True:
            with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:
                answer.read()
            count.value += 1
            time.sleep(_INTERVAL)


@contextlib.contextmanager
def _agent() -> Iterator[str]:
    """The address of a rotel agent that takes OTLP over HTTP, and sends it nowhere."""
    with contextlib.ExitStack() as held:
        free = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        grpc, http = (f"127.0.0.1:{taken.getsockname()[1]}" for taken in free)
    endpoints = ["--otlp-grpc-endpoint", grpc, "--otlp-http-endpoint", http]
    with Path("rotel.log").open("w") as log:
        process = subprocess.Popen(
            [_AGENT, "start", *endpoints, "--exporter", "blackhole"], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(http.split(":")[1])), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"rotel: {Path('rotel.log').read_text()}") from None
                time.sleep(0.05)
        yield f"http://{http}/v1/metrics"
    finally:
        process.kill()
        process.wait()


# The tables


_Pairs: TypeAlias = Sequence[tuple[Cost, Cost]]
"""What one contender cost: alone, and in the process that came next, which had the pipelines."""


def _pairs(alone: Sequence[Sequence[Cost]], attached: Sequence[Sequence[Cost]]) -> list[_Pairs]:
    """By contender, from what each process measured."""
    of_contenders = zip(zip(*alone, strict=True), zip(*attached, strict=True), strict=True)
    return [list(zip(*costs, strict=True)) for costs in of_contenders]


def _row(what: str, clock: str, pairs: _Pairs, *, at_most: float | None = None) -> Sequence[str]:
    times = [tuple(map(attrgetter(clock.lower()), pair)) for pair in pairs]
    alone, attached = (statistics.median(of) for of in zip(*times, strict=True))
    ratio = statistics.median(
        b / a for a, b in times
    )  # neighbours': the machine's speed changes over minutes
    asked = (f"{at_most}", verdict(ratio <= at_most)) if at_most is not None else ("", "")
    return (f"{what}, {clock}", micros(alone), micros(attached), f"{ratio:.2f}", *asked)
