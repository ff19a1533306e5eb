"""OpenTelemetry's own instrumentations run beside us; their metrics are for the SDK unless let in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from otel_tracking.reading import read_run

PROGRAM = """
import http.server, json, logging, sys, threading
import requests
from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from opentelemetry.instrumentation.logging import LoggingInstrumentor
from opentelemetry.instrumentation.requests import RequestsInstrumentor
from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

import otel_tracking as ot

meters = json.loads(sys.argv[1])
logs = InMemoryLogRecordExporter()
logging_provider = LoggerProvider()
logging_provider.add_log_record_processor(SimpleLogRecordProcessor(logs))
set_logger_provider(logging_provider)
tracking = ot.Tracking(project_dir="runs", meters=meters)
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
trace.set_tracer_provider(TracerProvider())
tracking.init_trackers("train")
for instrumentor in (LoggingInstrumentor, RequestsInstrumentor, SystemMetricsInstrumentor):
    instrumentor().instrument()

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *arguments):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
threading.Thread(target=server.serve_forever, daemon=True).start()
loss = metrics.get_meter("train").create_gauge("loss")
for step in range(10):
    loss.set(float(step), {"training.step": step})
    requests.get(f"http://127.0.0.1:{server.server_port}/", timeout=30)
logging.getLogger("train").warning("said")
found = {
    metric.name: scope.scope.name
    for resource in reader.get_metrics_data().resource_metrics
    for scope in resource.scope_metrics
    for metric in scope.metrics
}
server.shutdown()
tracking.end_training()
print(json.dumps([found, [item.log_record.body for item in logs.get_finished_logs()]]))
"""
REQUESTS = "opentelemetry.instrumentation.requests"
SYSTEM = "opentelemetry.instrumentation.system_metrics"


@pytest.mark.parametrize(
    ("meters", "variable", "let_in"),
    [
        (None, "", set()),
        (["*"], "", {REQUESTS, SYSTEM}),
        (None, "*,!opentelemetry.*,*.requests", {REQUESTS}),
    ],
    ids=["default", "meters=", "OTEL_TRACKING_METERS"],
)
def test_their_metrics_stay_out_unless_let_in(
    run_script: Callable[..., CompletedProcess[str]],
    meters: list[str] | None,
    variable: str,
    let_in: set[str],
) -> None:
    done = run_script(PROGRAM, json.dumps(meters), env={"OTEL_TRACKING_METERS": variable})
    found, logs = json.loads(done.stdout.splitlines()[-1])
    assert "said" in logs
    assert found["loss"] == "train"
    assert {REQUESTS, SYSTEM} <= set(found.values())  # the user's SDK provider has them, let in or not
    of_requests = {name for name, meter in found.items() if meter == REQUESTS}
    assert of_requests
    (run,) = Path("runs/train").iterdir()
    data = read_run(run)
    recorded = {series.meter for series in data.series}
    assert recorded & {REQUESTS, SYSTEM} == let_in
    assert data.of("loss").steps.tolist() == list(range(10))
