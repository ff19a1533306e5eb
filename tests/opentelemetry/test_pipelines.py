"""A Prometheus scrape and an OTLP agent see, after many steps, the values that the trackers end with."""

from __future__ import annotations

import gzip
import http.server
import json
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from prometheus_client.parser import text_string_to_metric_families

from tests import readback

AGENT = Path(sysconfig.get_path("purelib"), "rotel", "rotel-agent")

PROGRAM = """
import json, sys, urllib.request
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import AlwaysOnExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from prometheus_client import start_http_server

import otel_tracking as ot

n, agent = int(sys.argv[1]), sys.argv[2]
memory = InMemoryMetricReader()
provider = MeterProvider(
    [
        memory,
        PrometheusMetricReader(),
        PeriodicExportingMetricReader(OTLPMetricExporter(agent), export_interval_millis=3_600_000),
    ],
    resource=Resource.create({"service.name": "bert", "team": "vision"}),
    exemplar_filter=AlwaysOnExemplarFilter(),
    views=[
        View(instrument_name="rate", name="learning_rate", attribute_keys={"group"}),
        View(instrument_name="latency", aggregation=ExplicitBucketHistogramAggregation([1.0, 2.0])),
    ],
)
metrics.set_meter_provider(provider)
tracking = ot.Tracking(log_with="tensorboard", project_dir="runs")
tracking.init_trackers("train")
meter = metrics.get_meter("train", "1.2")
loss = meter.create_gauge("loss", "1", "the loss")
samples = meter.create_counter("samples", "{sample}", "seen so far")
latency = meter.create_histogram("latency", "s", "of a step")
rate = meter.create_gauge("rate")
for step in range(n):
    at = {"training.step": step}
    loss.set(step / 2, at)
    loss.set(step / 4, {"class": "cat", **at})
    samples.add(2, at)
    latency.record(step % 3, at)
rate.set(0.25, {"group": "head", "host": "a", "training.step": n})
exemplars = {
    metric.name: [[exemplar.value, dict(exemplar.filtered_attributes or {})] for exemplar in point.exemplars]
    for scope in memory.get_metrics_data().resource_metrics[0].scope_metrics
    for metric in scope.metrics
    for point in metric.data.data_points
}
server, thread = start_http_server(0, "127.0.0.1")
with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics", timeout=60) as answer:
    open("scrape.txt", "wb").write(answer.read())
server.shutdown()
provider.force_flush(60_000)  # after the scrape, which would else find two collects in Prometheus's reader
tracking.end_training(timeout=600)
print(tracking.receipt())
print(json.dumps(exemplars))
"""


@pytest.fixture
def behind() -> Iterator[tuple[str, list[bytes]]]:
    """What the agent sends to: an address, and the bodies that arrive."""
    bodies: list[bytes] = []

    class Backend(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
            answer = ExportMetricsServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(taken.getsockname()[1]) for taken in sockets]


@pytest.fixture
def agent(behind: tuple[str, list[bytes]], tmp_path: Path) -> Iterator[str]:
    """The address of a rotel agent that takes OTLP over HTTP and sends it on."""
    address, _ = behind
    grpc, port = free_ports(2)
    options = {
        "otlp-grpc-endpoint": f"127.0.0.1:{grpc}",
        "otlp-http-endpoint": f"127.0.0.1:{port}",
        "exporter": "otlp",
        "otlp-exporter-endpoint": address,
        "otlp-exporter-protocol": "http",
    }
    command = [
        str(AGENT),
        "start",
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]
    with (tmp_path / "rotel.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "rotel.log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1/metrics"
    finally:
        process.terminate()
        process.wait(60)


def resources_of(bodies: list[bytes]) -> list[Any]:
    found: list[Any] = []
    for body in bodies:
        found += ExportMetricsServiceRequest.FromString(body).resource_metrics
    return found


def attributes_of(pairs: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in pairs}


def test_the_last_values_are_those_of_the_trackers(
    run_script: Callable[..., CompletedProcess[str]],
    size: Callable[[int, int], int],
    behind: tuple[str, list[bytes]],
    agent: str,
    tmp_path: Path,
) -> None:
    n = size(20_000, 1_000_000)
    done = run_script(PROGRAM, str(n), agent, timeout=1200)
    assert f"delivered {4 * n + 1:,}  pending 0  dropped 0" in done.stdout, done.stdout + done.stderr

    (run,) = (tmp_path / "runs" / "train").iterdir()
    points = readback.tensorboard(run)
    stored = {tag: [readback.double(point.value) for point in points[tag]] for tag in points}
    assert {tag: len(values) for tag, values in stored.items()} == {
        "loss": n,
        "loss/class.cat": n,
        "samples": n,
        "latency": n,
        "rate/group.head/host.a": 1,
    }
    last = {tag: values[-1] for tag, values in stored.items()}
    count, total = len(stored["latency"]), sum(stored["latency"])
    assert (last["loss"], last["samples"]) == ((n - 1) / 2, 2 * n)

    # Prometheus: one time series an instrument and attribute set, and no step.
    families = {f.name: f for f in text_string_to_metric_families((tmp_path / "scrape.txt").read_text())}
    scraped: dict[tuple[Any, ...], float] = {}
    for family in families.values():
        if not family.name.startswith(("python_", "process_", "target")):
            for sample in family.samples:
                # A label that only other series of the name have is there, and empty.
                labels = sorted(
                    (k, v) for k, v in sample.labels.items() if v and not k.startswith("otel_scope")
                )
                assert (sample.name, *labels) not in scraped
                scraped[sample.name, *labels] = sample.value
    assert scraped == {
        ("loss",): last["loss"],
        ("loss", ("class", "cat")): last["loss/class.cat"],
        ("samples_total",): last["samples"],
        ("latency_seconds_bucket", ("le", "1.0")): sum(value <= 1 for value in stored["latency"]),
        ("latency_seconds_bucket", ("le", "2.0")): count,
        ("latency_seconds_bucket", ("le", "+Inf")): count,
        ("latency_seconds_count",): count,
        ("latency_seconds_sum",): total,
        ("learning_rate", ("group", "head")): last["rate/group.head/host.a"],
    }
    assert families["loss"].documentation == "the loss"
    assert families["target_info"].samples[0].labels["team"] == "vision"

    # The agent: what it sent on, which is the last of what it got.
    _, bodies = behind
    for _ in range(600):  # it sends in batches
        if bodies:
            break
        time.sleep(0.1)
    resources = resources_of(bodies)
    assert resources
    for resource in resources:
        about = attributes_of(resource.resource.attributes)
        assert (about["service.name"], about["team"]) == ("bert", "vision")
    by_name = {m.name: m for r in resources for scope in r.scope_metrics for m in scope.metrics}
    assert set(by_name) == {"loss", "samples", "latency", "learning_rate"}
    assert {(m.name, m.unit, m.description) for m in by_name.values()} == {
        ("loss", "1", "the loss"),
        ("samples", "{sample}", "seen so far"),
        ("latency", "s", "of a step"),
        ("learning_rate", "", ""),
    }
    gauges = {
        json.dumps([name, attributes_of(point.attributes)]): point.as_double
        for name in ("loss", "learning_rate")
        for point in by_name[name].gauge.data_points
    }
    assert gauges == {
        '["loss", {}]': last["loss"],
        '["loss", {"class": "cat"}]': last["loss/class.cat"],
        '["learning_rate", {"group": "head"}]': last["rate/group.head/host.a"],
    }
    (of_samples,) = by_name["samples"].sum.data_points
    assert of_samples.as_int == last["samples"]
    (of_latency,) = by_name["latency"].histogram.data_points
    assert (of_latency.count, of_latency.sum, list(of_latency.explicit_bounds)) == (count, total, [1.0, 2.0])
    assert not any("step" in pair.key for m in by_name.values() for pair in _all_attributes(m))

    # Exemplars, which this agent takes from gauges: one keeps what a view takes away; each bucket has one.
    exemplars = json.loads(done.stdout.splitlines()[-1])
    assert exemplars["learning_rate"] == [[last["rate/group.head/host.a"], {"host": "a"}]]
    assert sorted(value for value, _ in exemplars["latency"]) in ([0, 2], [1, 2])
    assert not any(attributes for _, attributes in exemplars["latency"])


def _all_attributes(metric: Any) -> list[Any]:
    data = getattr(metric, metric.WhichOneof("data"))
    return [pair for point in data.data_points for pair in point.attributes]
