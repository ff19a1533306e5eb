"""`opentelemetry-instrument`: we are there when asked for, and else not to be noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from otel_tracking.reading import RunData, read_run
from tests import readback

INSTRUMENT = str(Path(sys.executable).with_name("opentelemetry-instrument"))
COMMAND = str(Path(sys.executable).with_name("otel-tracking"))
Start = Callable[..., CompletedProcess[str]]

PROGRAM = """
from opentelemetry import metrics, trace

loss = metrics.get_meter("train").create_gauge("loss")
for step in range(20):
    with trace.get_tracer("train").start_as_current_span("epoch", attributes={"training.step": step}):
        loss.set(step / 4)
metrics.get_meter_provider().force_flush()
"""
QUIET = {  # opentelemetry-distro's defaults are exporters to an agent
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*",
}
LAST = 19 / 4


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """`start(source, *command, env=)`: the program, behind a command, in `tmp_path`."""

    def start(source: str, *command: str, env: dict[str, str] | None = None) -> CompletedProcess[str]:
        script = tmp_path / "train.py"
        script.write_text(source)
        done = subprocess.run(
            [*(command or (INSTRUMENT,)), sys.executable, str(script)],
            cwd=tmp_path,
            env={**os.environ, **QUIET, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done

    return start


def recorded() -> RunData:
    (description,) = Path("outputs").glob("*/*/run.json")
    return read_run(description.parent)


def losses(console: str) -> list[float]:
    """The values of the loss that the SDK's console exporter wrote."""
    values, decoder, at = [], json.JSONDecoder(), 0
    while (at := console.find("{", at)) >= 0:
        data, at = decoder.raw_decode(console, at)
        for resource in data["resource_metrics"]:
            for scope in resource["scope_metrics"]:
                for metric in scope["metrics"]:
                    if metric["name"] == "loss":
                        values += [point["value"] for point in metric["data"]["data_points"]]
    return values


def test_who_does_not_ask_does_not_notice(start: Start) -> None:
    source = """
import os, sys
from opentelemetry import metrics, trace
print(type(metrics.get_meter_provider()).__module__, type(trace.get_tracer_provider()).__module__)
print(os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL"))  # opentelemetry-distro was here
print([name for name in sys.modules if name.startswith(("otel_tracking.", "numpy"))])
"""
    done = start(source)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "opentelemetry.sdk.metrics._internal opentelemetry.sdk.trace",
        "grpc",
        "[]",
    ]
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("env", "series"),
    [
        ({"OTEL_PYTHON_DISTRO": "otel_tracking"}, {"loss", "time/epoch"}),
        ({"OTEL_PYTHON_METER_PROVIDER": "otel_tracking"}, {"loss"}),
        ({"OTEL_PYTHON_TRACER_PROVIDER": "otel_tracking"}, {"time/epoch"}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_one_variable_records_every_point(start: Start, env: dict[str, str], series: set[str]) -> None:
    """Beside the SDK pipeline that opentelemetry-distro's configurator sets up."""
    done = start(PROGRAM, env={**env, "OTEL_METRICS_EXPORTER": "console"})
    assert done.stderr == ""
    assert set(losses(done.stdout)) == {LAST}
    run = recorded()
    assert set(run["tag"]) == series
    if "loss" in series:
        assert run.of("loss").values.tolist() == [step / 4 for step in range(20)]
        steps = list(range(20))
        assert run.of("loss").steps.tolist() == steps  # counted, or of the span: both are these


def test_spans_give_their_steps(start: Start) -> None:
    source = PROGRAM.replace('"training.step": step', '"training.step": step * 10')
    start(source, env={"OTEL_PYTHON_DISTRO": "otel_tracking"})
    assert recorded().of("loss").steps.tolist() == list(range(0, 200, 10))


@pytest.mark.parametrize("distro", ["otel_tracking", "distro"])
def test_without_a_configurator(start: Start, distro: str) -> None:
    """None but ours sets up the SDK then; and an unknown name is nobody's."""
    env = {
        "OTEL_PYTHON_DISTRO": distro,
        "OTEL_PYTHON_CONFIGURATOR": "otel_tracking",
        "OTEL_METRICS_EXPORTER": "console",
    }
    source = PROGRAM.replace("metrics.get_meter_provider().force_flush()", "")
    done = start(source, env=env)
    assert losses(done.stdout) == ([LAST] if distro == "otel_tracking" else [])
    assert Path("outputs").exists() == (distro == "otel_tracking")


def test_instrumentations_that_are_loaded_stay_out(start: Start) -> None:
    env = {
        "OTEL_PYTHON_DISTRO": "otel_tracking",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "",
        "OTEL_METRICS_EXPORTER": "console",
    }
    done = start(PROGRAM, env=env)
    assert '"opentelemetry.instrumentation.system_metrics"' in done.stdout
    assert set(losses(done.stdout)) == {LAST}
    assert set(recorded()["tag"]) == {"loss", "time/epoch"}


def test_what_stops_us_stops_nobody_else(start: Start, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('no numpy here')")
    done = start(
        PROGRAM, env={"OTEL_PYTHON_METER_PROVIDER": "otel_tracking", "OTEL_METRICS_EXPORTER": "console"}
    )
    assert "otel-tracking: nothing is recorded" in done.stderr
    assert "no numpy here" in done.stderr
    assert set(losses(done.stdout)) == {LAST}


def test_trackers_as_exporters_of_a_program_that_knows_only_the_sdk(start: Start, tmp_path: Path) -> None:
    """Aggregates: of each interval the last value. Then, of the same program, every point."""
    env = {
        "OTEL_METRICS_EXPORTER": "tensorboard,mlflow",
        "OTEL_SERVICE_NAME": "train",
        "OTEL_METRIC_EXPORT_INTERVAL": "3600000",
    }
    done = start(PROGRAM, env=env)
    assert "rror" not in done.stderr
    (events,) = (run for run in (tmp_path / "outputs" / "train").iterdir() if readback.tensorboard(run))
    (run,) = readback.mlflow_runs(tmp_path / "outputs", "train")
    for points in (readback.tensorboard(events), readback.mlflow_points(tmp_path / "outputs", run)):
        assert [readback.double(point.value) for point in points["loss"]] == [LAST]


def test_under_the_launcher_every_point(start: Start, tmp_path: Path) -> None:
    """Also where `opentelemetry-instrument`, whose `sitecustomize` hides the launcher's, is between."""
    options = ("--log-with", "tensorboard,mlflow", "--project", "train", "--")
    done = start(PROGRAM, COMMAND, "run", *options, INSTRUMENT)
    assert done.stderr.count("delivered 40  pending 0  dropped 0") == 2, done.stderr
    (description,) = tmp_path.glob("outputs/train/*/run.json")
    (run,) = readback.mlflow_runs(tmp_path / "outputs", "train")
    for points in (
        readback.tensorboard(description.parent),
        readback.mlflow_points(tmp_path / "outputs", run),
    ):
        assert [(point.step, readback.double(point.value)) for point in points["loss"]] == [
            (step, step / 4) for step in range(20)
        ]
