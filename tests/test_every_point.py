"""The main promise: what is recorded through OpenTelemetry's API is in every tracker, point by point."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import readback
from tests.readback import Points, as_float32, bits

pytestmark = pytest.mark.mlflow_database("outputs")

TRACKERS = "tensorboard,mlflow,wandb"
LAUNCH = (str(Path(sys.executable).with_name("otel-tracking")), "run", "--log-with", TRACKERS)

UNMODIFIED = """
import sys
from opentelemetry import metrics

meter = metrics.get_meter("train")
gauges = [meter.create_gauge(f"Gauge/{i}") for i in range(8)]
counters = [meter.create_counter(f"counter/{i}", unit="{image}") for i in range(6)]
histograms = [meter.create_histogram(f"histogram/{i}") for i in range(6)]
for step in range(int(sys.argv[1]) // 20):
    at = {"training.step": step}
    for i, gauge in enumerate(gauges):
        gauge.set(step / 7 + i, at)
    for i, counter in enumerate(counters):
        counter.add(i + 0.1, at)
    for i, histogram in enumerate(histograms):
        histogram.record(step * 0.3 - 1000 * i, at)
"""


def launch(tmp_path: Path, source: str, *args: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """A program under `otel-tracking run`, in `tmp_path/outputs`, as the project `train`."""
    script = tmp_path / "train.py"
    script.write_text(source)
    done = subprocess.run(
        [*LAUNCH, "--project", "train", "--", sys.executable, str(script), *args],
        cwd=tmp_path,
        env={**os.environ, "OTEL_TRACKING_END_TIMEOUT": str(timeout)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done


def only_run(tmp_path: Path) -> Path:
    (description,) = tmp_path.glob("outputs/train/*/run.json")
    return description.parent


def stored(tmp_path: Path) -> dict[str, Points]:
    """What each of the three trackers holds of the only run."""
    run = only_run(tmp_path)
    (mlflow_run,) = readback.mlflow_runs(tmp_path / "outputs", "train")
    return {
        "tensorboard": readback.tensorboard(run),
        "mlflow": readback.mlflow_points(tmp_path / "outputs", mlflow_run),
        "wandb": readback.wandb(run),
    }


def steps_and_values(points: Points) -> dict[str, list[tuple[int, bytes]]]:
    return {tag: [(p.step, p.value) for p in of] for tag, of in points.items()}


def single(points: Points) -> dict[str, list[tuple[int, bytes]]]:
    return {tag: [(p.step, as_float32(p.value)) for p in of] for tag, of in points.items()}


def test_an_unmodified_program(tmp_path: Path, size: Callable[[int, int], int]) -> None:
    count = size(20_000, 100_000)
    receipt = launch(tmp_path, UNMODIFIED, str(count), timeout=300).stderr
    assert receipt.count(f"delivered {count:,}  pending 0  dropped 0") == 3

    expected: dict[str, list[tuple[int, bytes]]] = {}
    totals = [0.0] * 6
    for step in range(count // 20):
        for i in range(8):
            expected.setdefault(f"Gauge/{i}", []).append((step, bits(step / 7 + i)))
        for i in range(6):
            totals[i] += i + 0.1
            expected.setdefault(f"counter/{i}", []).append((step, bits(totals[i])))
        for i in range(6):
            expected.setdefault(f"histogram/{i}", []).append((step, bits(step * 0.3 - 1000 * i)))

    recorded = readback.journal(only_run(tmp_path))
    found = stored(tmp_path)
    assert steps_and_values(recorded) == expected
    assert steps_and_values(found["wandb"]) == expected
    assert steps_and_values(found["mlflow"]) == expected
    assert steps_and_values(found["tensorboard"]) == single(recorded)

    # Times, to the resolution that each stores: a double of seconds (0.24 us now), and milliseconds.
    for tag, points in recorded.items():
        times = [p.time_ns for p in points]
        for tracker in ("tensorboard", "wandb"):
            stored_times = [p.time_ns for p in found[tracker][tag]]
            assert max(abs(a - b) for a, b in zip(times, stored_times, strict=True)) < 1_000
        assert [p.time_ns for p in found["mlflow"][tag]] == [t // 1_000_000 * 1_000_000 for t in times]


IDENTICAL = """
import time
from unittest import mock
from opentelemetry import metrics

gauge = metrics.get_meter("train").create_gauge("same")
from otel_tracking import instruments, recorder
now = time.time_ns()
stopped = [mock.patch.object(module, "_time_ns", lambda: now) for module in (instruments, recorder)]
with stopped[0], stopped[1]:
    for _ in range(1000):
        gauge.set(0.5, {"training.step": 3})
"""


def test_a_thousand_identical_points_in_one_millisecond(tmp_path: Path) -> None:
    receipt = launch(tmp_path, IDENTICAL).stderr
    assert "delivered 1,000  pending 0  dropped 0  altered 999" in receipt
    for points in stored(tmp_path).values():
        assert [(p.step, p.value) for p in points["same"]] == [(3, bits(0.5))] * 1000
    times = [p.time_ns for p in stored(tmp_path)["mlflow"]["same"]]
    assert len(set(times)) == 1000


HARD = """
import math
import threading

from opentelemetry import baggage, context, metrics, trace

import otel_tracking as ot

meter = metrics.get_meter("train")
tracer = trace.get_tracer("train")
gauge = meter.create_gauge("Train/Loss")
for step, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308)):
    gauge.set(value, {"training.step": step})
gauge.set(4.0, {"training.step": 2})
meter.create_histogram("signed").record(-1.0, {"training.step": 1})

# Two axes: the global step goes on while epochs are counted from 0.
per_step, per_epoch = meter.create_gauge("train/loss"), meter.create_gauge("epoch/avg_loss")
global_step = 0
for epoch in range(3):
    for _ in range(50):
        per_step.set(1 / (global_step + 1), {"training.step": global_step})
        global_step += 1
    per_epoch.set(0.5 - epoch / 10, {"training.step": epoch})

# A step from each of its sources.
meter.create_gauge("by/attribute").set(1.0, {"training.step": 11})
with ot.step(12):
    meter.create_gauge("by/scope").set(1.0)
ot.set_step(13)
meter.create_gauge("by/set_step").set(1.0)
ot.set_step(None)
token = context.attach(baggage.set_baggage("training.step", "14"))
meter.create_gauge("by/baggage").set(1.0)
context.detach(token)
with tracer.start_as_current_span("outer", attributes={"training.step": 15}):
    with tracer.start_as_current_span("inner"):
        meter.create_gauge("by/span").set(1.0)
counted = meter.create_gauge("by/count")
for value in (1.0, 2.0, 3.0):
    counted.set(value)

shared, tokens = meter.create_gauge("shared"), meter.create_counter("tokens")
def work(thread):
    for i in range(250):
        shared.set(float(thread * 1000 + i), {"training.step": i, "thread": str(thread)})
        tokens.add(1, {"training.step": i})
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Points]]:
    tmp_path = tmp_path_factory.mktemp("hard")
    receipt = launch(tmp_path, HARD).stderr
    assert receipt.count("pending 0  dropped 0") == 3, receipt
    return tmp_path, stored(tmp_path)


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "wandb"])
class TestHardPoints:
    def test_values_no_sdk_takes(self, hard: tuple[Path, dict[str, Points]], tracker: str) -> None:
        values = [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308, 4.0]
        expected = list(zip((0, 1, 2, 3, 4, 5, 2), map(bits, values), strict=True))
        if tracker == "tensorboard":
            expected = [(step, as_float32(value)) for step, value in expected]
        if tracker == "mlflow":  # its largest double stands for infinity, and its store drops a zero's sign
            expected[1], expected[2] = (1, bits(1.7976931348623157e308)), (2, bits(-1.7976931348623157e308))
            expected[3] = (3, bits(0.0))
        points = [(p.step, p.value) for p in hard[1][tracker]["Train/Loss"]]
        if tracker == "mlflow":  # within a millisecond it lists by step
            assert Counter(points) == Counter(expected)
        else:
            assert points == expected

    def test_a_negative_histogram_value(self, hard: tuple[Path, dict[str, Points]], tracker: str) -> None:
        assert [(p.step, p.value) for p in hard[1][tracker]["signed"]] == [(1, bits(-1.0))]

    def test_two_axes(self, hard: tuple[Path, dict[str, Points]], tracker: str) -> None:
        points = hard[1][tracker]
        exact = as_float32 if tracker == "tensorboard" else bytes
        assert [(p.step, p.value) for p in points["train/loss"]] == [
            (step, exact(bits(1 / (step + 1)))) for step in range(150)
        ]
        assert [(p.step, p.value) for p in points["epoch/avg_loss"]] == [
            (epoch, exact(bits(0.5 - epoch / 10))) for epoch in range(3)
        ]

    @pytest.mark.parametrize(
        ("source", "steps"),
        [
            ("attribute", [11]),
            ("scope", [12]),
            ("set_step", [13]),
            ("baggage", [14]),
            ("span", [15]),
            ("count", [0, 1, 2]),
        ],
    )
    def test_steps(
        self, hard: tuple[Path, dict[str, Points]], tracker: str, source: str, steps: list[int]
    ) -> None:
        assert [p.step for p in hard[1][tracker][f"by/{source}"]] == steps

    def test_spans_are_timed(self, hard: tuple[Path, dict[str, Points]], tracker: str) -> None:
        assert [p.step for p in hard[1][tracker]["time/outer"]] == [15]
        assert [p.step for p in hard[1][tracker]["time/inner"]] == [15]

    def test_four_threads(self, hard: tuple[Path, dict[str, Points]], tracker: str) -> None:
        points = hard[1][tracker]
        for thread in range(4):
            assert [(p.step, p.value) for p in points[f"shared/thread.{thread}"]] == [
                (i, bits(float(thread * 1000 + i))) for i in range(250)
            ]
        totals = [p.value for p in points["tokens"]]
        if tracker == "mlflow":  # within a millisecond it lists by step, and threads share milliseconds
            assert Counter(totals) == Counter(bits(float(n)) for n in range(1, 1001))
        else:
            assert totals == [bits(float(n)) for n in range(1, 1001)]
