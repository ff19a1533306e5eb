"""An SDK provider that was there first is attached to, and the log says what that loses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from otel_tracking.reading import read_run

PROGRAM = """
import json, logging, sys
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
import otel_tracking

logging.basicConfig(level=logging.INFO, format="%(message)s")
reader = InMemoryMetricReader()

def set_sdk():
    metrics.set_meter_provider(MeterProvider([reader]))
    trace.set_tracer_provider(TracerProvider())

if sys.argv[1] == "first":
    set_sdk()
    early = metrics.get_meter("train").create_gauge("early")
    open_span = trace.get_tracer("train").start_as_current_span("open", attributes={"training.step": 70})
    open_span.__enter__()
tracking = otel_tracking.Tracking([], "outputs")
if sys.argv[1] == "later":
    set_sdk()
    early = metrics.get_meter("train").create_gauge("early")
    open_span = trace.get_tracer("train").start_as_current_span("open", attributes={"training.step": 70})
    open_span.__enter__()
tracking.init_trackers("p")
late = metrics.get_meter("later").create_gauge("late")
early.set(1.0)
late.set(2.0)
open_span.__exit__(None, None, None)
tracking.end_training()
otel_tracking.Tracking([], "outputs").init_trackers("p")
print(json.dumps(sorted(
    metric.name
    for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics
    for metric in scope.metrics
    if not metric.name.startswith("time/")
)))
"""


@pytest.mark.parametrize("sdk", ["first", "later"])
def test_what_attaching_late_loses_is_said_once(
    run_script: Callable[..., CompletedProcess[str]], sdk: str
) -> None:
    done = run_script(PROGRAM, sdk)
    assert done.stdout == '["early", "late"]\n'  # the SDK loses nothing either way
    first = min(Path("outputs/p").iterdir(), key=lambda run: run.stat().st_ctime_ns)
    data = read_run(first)
    late = sdk == "first"
    assert done.stderr.count("an SDK meter provider was set before us") == late
    assert len(data.of("late")) == 1
    assert len(data.of("early")) == (0 if late else 1)
    assert data.of("late").steps.tolist() == data.of("time/open").steps.tolist() == [70]
