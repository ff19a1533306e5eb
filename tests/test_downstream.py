"""An SDK provider of the user's gets what it would get without us, and no step."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from opentelemetry.metrics import CallbackOptions, Meter, NoOpMeter, NoOpMeterProvider, Observation
from opentelemetry.metrics import _Gauge as Gauge
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    InMemoryMetricReader,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

import otel_tracking
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.reading import read_run
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

SITE = Path(otel_tracking.__file__).parent / "launcher" / "site"
RunScript = Callable[..., CompletedProcess[str]]


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def sdk(provider: TrackingMeterProvider, reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    """An SDK provider, attached."""
    sdk = MeterProvider([reader], shutdown_on_exit=False)
    provider.attach(sdk)
    yield sdk
    sdk.shutdown()


def metrics_of(data: MetricsData | None) -> dict[str, Any]:
    return {
        metric.name: metric
        for resource in (data.resource_metrics if data else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def collect(reader: InMemoryMetricReader) -> dict[str, Any]:
    return metrics_of(reader.get_metrics_data())


def values(metric: Any) -> list[tuple[dict[str, Any], Any]]:
    return [(dict(point.attributes), point.value) for point in metric.data.data_points]


def test_one_fresh_point_a_series_without_the_step(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    meter = provider.get_meter("train", "1.2", "https://example.org/schema", {"team": "a"})
    loss = meter.create_gauge("Train/Loss", "1", "the loss")
    samples = meter.create_counter("samples", "{sample}")
    queue = meter.create_up_down_counter("queue")
    seconds = meter.create_histogram("seconds", "s", explicit_bucket_boundaries_advisory=[1, 2])
    for step in range(100):
        loss.set(step / 2, {"training.step": step})
        loss.set(float(step), {"training.step": step, "class": "cat"})
        samples.add(2, {"global_step": step})
        queue.add(0.5 if step % 2 else -1.0, {"step": step})
        seconds.record(step % 3, {"training.step": step})
    data = reader.get_metrics_data()
    assert data is not None
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("train", "1.2")
    assert scope.scope.schema_url == "https://example.org/schema"
    assert dict(scope.scope.attributes or {}) == {"team": "a"}
    found = metrics_of(data)
    assert set(found) == {"train/loss", "samples", "queue", "seconds"}
    assert (found["train/loss"].unit, found["train/loss"].description) == ("1", "the loss")
    assert values(found["train/loss"]) == [({}, 49.5), ({"class": "cat"}, 99.0)]
    assert values(found["samples"]) == [({}, 200)]
    assert type(values(found["samples"])[0][1]) is int
    assert found["samples"].data.is_monotonic
    assert values(found["queue"]) == [({}, -25.0)]
    assert not found["queue"].data.is_monotonic
    (histogram,) = found["seconds"].data.data_points
    assert (histogram.sum, histogram.count, histogram.min, histogram.max) == (99, 100, 0, 2)
    assert type(histogram.sum) is int
    assert tuple(histogram.explicit_bounds) == (1, 2)
    assert tuple(histogram.bucket_counts) == (67, 33, 0)
    assert len(read_run("journal")) == 500


def test_each_collect_is_fresh_and_counts_once(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    meter = provider.get_meter("train")
    loss, samples = meter.create_gauge("loss"), meter.create_counter("samples")
    for step in range(20):
        loss.set(float(step), {"training.step": step})
        samples.add(3, {"training.step": step})
        found = collect(reader)
        assert values(found["loss"]) == [({}, float(step))]
        assert values(found["samples"]) == [({}, 3 * (step + 1))]


def test_what_was_made_and_recorded_before_the_sdk_was_set(
    provider: TrackingMeterProvider, reader: InMemoryMetricReader
) -> None:
    meter = provider.get_meter("train")
    loss = meter.create_gauge("loss")
    meter.create_observable_gauge("temperature", [lambda _: [Observation(40, {"training.step": 1})]])
    loss.set(1.0, {"training.step": 0})
    sdk = MeterProvider([reader], shutdown_on_exit=False)
    assert provider.attach(sdk)
    found = collect(reader)
    assert values(found["loss"]) == [({}, 1.0)]
    assert values(found["temperature"]) == [({}, 40)]
    sdk.shutdown()


def test_the_sdk_provider_itself_hands_out_recording_meters(
    sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    sdk.get_meter("train", "1").create_gauge("loss").set(2.0, {"training.step": 5})
    assert values(collect(reader)["loss"]) == [({}, 2.0)]
    assert read_run("journal").steps.tolist() == [5]


def test_a_second_sdk_provider_is_not_attached(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    other_reader = InMemoryMetricReader()
    other = MeterProvider([other_reader], shutdown_on_exit=False)
    assert not provider.attach(other)
    assert provider.attach(sdk)
    other.get_meter("train").create_gauge("loss").set(1.0)
    assert values(collect(other_reader)["loss"]) == [({}, 1.0)]
    assert collect(reader) == {}
    other.shutdown()


def test_two_readers_and_temporalities(provider: TrackingMeterProvider) -> None:
    cumulative = InMemoryMetricReader()
    delta = InMemoryMetricReader(
        preferred_temporality={
            Counter: AggregationTemporality.DELTA,
            Histogram: AggregationTemporality.DELTA,
        }
    )
    sdk = MeterProvider([cumulative, delta], shutdown_on_exit=False)
    provider.attach(sdk)
    samples = sdk.get_meter("train").create_counter("samples")
    for expected in (5, 10, 15):
        samples.add(5, {"training.step": expected})
        assert values(collect(cumulative)["samples"]) == [({}, expected)]
        assert values(collect(delta)["samples"]) == [({}, 5)]
    sdk.shutdown()


def test_views_are_honoured(provider: TrackingMeterProvider, reader: InMemoryMetricReader) -> None:
    views = [
        View(instrument_name="loss", name="objective", attribute_keys={"class"}),
        View(instrument_name="seconds", aggregation=ExplicitBucketHistogramAggregation([0.5])),
    ]
    sdk = MeterProvider([reader], views=views, shutdown_on_exit=False)
    provider.attach(sdk)
    meter = provider.get_meter("train")
    meter.create_gauge("loss").set(1.0, {"class": "a", "split": "b", "training.step": 1})
    meter.create_histogram("seconds", explicit_bucket_boundaries_advisory=[9]).record(0.1)
    found = collect(reader)
    assert values(found["objective"]) == [({"class": "a"}, 1.0)]
    assert tuple(found["seconds"].data.data_points[0].explicit_bounds) == (0.5,)
    sdk.shutdown()


def test_typed_attributes_arrive_as_they_are(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    gauge = provider.get_meter("train").create_gauge("gauge")
    for attributes in ({"a": 7}, {"a": "7"}, {"a": (1, 2)}, {"a": True, "b": 0.5}):
        gauge.set(1.0, {**attributes, "training.step": 3})
    found = [attributes for attributes, _ in values(collect(reader)["gauge"])]
    assert found == [{"a": 7}, {"a": "7"}, {"a": (1, 2)}, {"a": True, "b": 0.5}]


def test_what_the_sdk_would_refuse(
    provider: TrackingMeterProvider,
    sdk: MeterProvider,
    reader: InMemoryMetricReader,
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = provider.get_meter("train")
    loss = meter.create_gauge("loss")
    for value in (1.0, math.nan, math.inf):
        loss.set(value, {"training.step": 0})
    samples = meter.create_counter("samples")
    samples.add(1)
    samples.add(math.inf)
    seconds = meter.create_histogram("seconds")
    for value in (2.0, -1.0, math.nan):
        seconds.record(value)
    meter.create_gauge("Genauigkeit in %", "µs" * 40).set(0.5)
    meter.create_gauge("x" * 1000).set(0.25)
    meter.create_gauge("1st").set(0.125)
    found = collect(reader)
    assert values(found["loss"]) == [({}, 1.0)]
    assert values(found["samples"]) == [({}, 1)]
    assert found["seconds"].data.data_points[0].sum == 2.0
    assert values(found["genauigkeit_in__"]) == [({}, 0.5)]
    assert values(found["x" * 255]) == [({}, 0.25)]
    assert values(found["m_1st"]) == [({}, 0.125)]
    assert len(read_run("journal")) == 11
    assert not caplog.records


def test_what_log_records_goes_on_too(
    recorder: Recorder, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    recorder.log({"train": {"loss": 0.5}, "lr": 0.1}, step=3)
    recorder.log({"train": {"loss": 0.25}, "lr": 0.1}, step=4)
    found = collect(reader)
    assert values(found["train/loss"]) == [({}, 0.25)]
    assert values(found["lr"]) == [({}, 0.1)]


def test_numbers_of_other_packages(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    meter = provider.get_meter("train")
    meter.create_counter("samples").add(np.int64(3))  # type: ignore[arg-type]  # programs do that
    meter.create_gauge("loss").set(np.float32(0.5))  # type: ignore[arg-type]
    found = collect(reader)
    assert values(found["samples"]) == [({}, 3)]
    assert type(values(found["samples"])[0][1]) is int
    assert values(found["loss"]) == [({}, 0.5)]


# Observables


def test_the_sdk_asks_observables_itself(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    count = itertools.count(1)

    def callback(options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(next(count), {"training.step": 5, "gpu": 0})]

    meter = provider.get_meter("gpu")
    meter.create_observable_counter("joules", [callback], "J", "energy")
    for expected in (1, 2):
        found = collect(reader)["joules"]
        assert values(found) == [({"gpu": 0}, expected)]
        assert (found.unit, found.description, found.data.is_monotonic) == ("J", "energy", True)
    provider.sample()
    data = read_run("journal")
    assert data.values.tolist() == [1.0, 2.0, 3.0]
    assert data.steps.tolist() == [5, 5, 5]


def test_a_callback_may_make_instruments_while_others_do(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    meter = provider.get_meter("gpu")
    inside, go = threading.Event(), threading.Event()

    def callback(options: CallbackOptions) -> Iterable[Observation]:
        inside.set()
        go.wait(10)
        meter.create_gauge("made_inside").set(1.0)
        return ()

    meter.create_observable_gauge("observable", [callback])
    collecting = threading.Thread(target=reader.get_metrics_data, daemon=True)
    collecting.start()
    assert inside.wait(10)
    making = threading.Thread(target=meter.create_observable_gauge, args=("another", []), daemon=True)
    making.start()
    making.join(0.1)  # it waits for the SDK's lock, which the collecting thread has
    go.set()
    for thread in (collecting, making):
        thread.join(10)
        assert not thread.is_alive()


# Meters that are not recorded


@pytest.mark.parametrize("attached_first", [True, False])
def test_a_meter_that_is_left_out_is_the_sdks(
    provider: TrackingMeterProvider, reader: InMemoryMetricReader, attached_first: bool
) -> None:
    sdk = MeterProvider([reader], shutdown_on_exit=False)
    if attached_first:
        provider.attach(sdk)
    meter = provider.get_meter("opentelemetry.instrumentation.requests", "0.5")
    duration = meter.create_histogram("duration", explicit_bucket_boundaries_advisory=[1])
    meter.create_observable_gauge("open", [lambda _: [Observation(4, {"training.step": 1})]])
    if not attached_first:
        provider.attach(sdk)
    duration.record(0.5, {"training.step": 1, "code": 200})
    meter.create_counter("calls").add(2)
    data = reader.get_metrics_data()
    assert data is not None
    (scope,) = data.resource_metrics[0].scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("opentelemetry.instrumentation.requests", "0.5")
    found = metrics_of(data)
    (point,) = found["duration"].data.data_points
    assert dict(point.attributes) == {"training.step": 1, "code": 200}
    assert tuple(point.explicit_bounds) == (1,)
    assert values(found["open"]) == [({"training.step": 1}, 4)]
    assert values(found["calls"]) == [({}, 2)]
    provider.sample()
    assert len(read_run("journal")) == 0
    sdk.shutdown()


# What is not recorded


def test_measurements_that_are_not_recorded_go_on_at_once(
    provider: TrackingMeterProvider, recorder: Recorder, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    meter = provider.get_meter("train")
    loss, samples, seconds = (
        meter.create_gauge("loss"),
        meter.create_counter("samples"),
        meter.create_histogram("seconds"),
    )
    loss.set(1.0, {"training.step": 0})
    provider.before_end()
    samples.add(1, {"training.step": 0})  # by another thread, say, while the run ends
    recorder.close(RunStatus.FINISHED)
    loss.set(np.float64(2.0), {"training.step": 1})
    loss.set(math.nan, {"training.step": 2})
    samples.add(2, {"training.step": 1})
    seconds.record(-1.0)
    seconds.record(np.float32(0.5))  # type: ignore[arg-type]
    found = collect(reader)
    assert values(found["samples"]) == [({}, 3)]
    assert found["seconds"].data.data_points[0].count == 1
    assert len(read_run("journal")) == 2
    recorder.open(Path("next"))
    samples.add(4, {"training.step": 2})
    loss.set(5.0, {"training.step": 2})
    found = collect(reader)
    assert values(found["samples"]) == [({}, 7)]
    assert values(found["loss"]) == [({}, 5.0)]


def test_what_an_earlier_process_recorded_is_not_sent_again(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        recorder, reader = Recorder(), InMemoryMetricReader()
        recorder.open(tmp_path / "run")
        provider = TrackingMeterProvider(recorder)
        sdk = MeterProvider([reader], shutdown_on_exit=False)
        provider.attach(sdk)
        samples = provider.get_meter("train").create_counter("samples")
        samples.add(attempt, {"training.step": attempt})
        assert values(collect(reader)["samples"]) == [({}, attempt)]
        recorder.close(RunStatus.FINISHED)
        sdk.shutdown()
    assert read_run(tmp_path / "run").values.tolist() == [1.0, 3.0, 6.0]


@pytest.mark.parametrize("collected_before", [True, False])
def test_a_journal_that_takes_over_a_pending_one(tmp_path: Path, collected_before: bool) -> None:
    first = Recorder()
    first.open(tmp_path / "run")
    TrackingMeterProvider(first).get_meter("train").create_counter("samples").add(100)
    first.close(RunStatus.KILLED)

    recorder, reader = Recorder(), InMemoryMetricReader()
    recorder.open(tmp_path / "pending")
    provider = TrackingMeterProvider(recorder)
    sdk = MeterProvider([reader], shutdown_on_exit=False)
    provider.attach(sdk)
    samples = provider.get_meter("train").create_counter("samples")
    samples.add(1, {"training.step": 1})
    if collected_before:
        assert values(collect(reader)["samples"]) == [({}, 1)]
    samples.add(2, {"training.step": 2})
    recorder.move(tmp_path / "run")
    samples.add(4, {"training.step": 3})
    assert values(collect(reader)["samples"]) == [({}, 7)]
    assert read_run(tmp_path / "run").values.tolist() == [100.0, 101.0, 103.0, 107.0]
    recorder.close(RunStatus.FINISHED)
    sdk.shutdown()


# Threads


def test_collecting_while_recording_at_speed(
    provider: TrackingMeterProvider, sdk: MeterProvider, reader: InMemoryMetricReader
) -> None:
    samples = provider.get_meter("train").create_counter("samples")
    deadline = time.monotonic() + 20
    recorded: list[int] = []
    seen: set[int] = set()

    def is_enough() -> bool:
        return len(seen) > 5 or time.monotonic() > deadline

    def record() -> None:
        for step in itertools.count():
            samples.add(1, {"training.step": step})
            if step % 10_000 == 9_999:
                if is_enough():
                    recorded.append(step + 1)
                    return
                time.sleep(0.02)  # so that a collect has an end: it forwards what there is when it begins

    def look() -> None:
        while not is_enough():
            if found := collect(reader):
                seen.add(found["samples"].data.data_points[0].value)

    threads = [threading.Thread(target=work) for work in (record, record, look, look, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) > 5
    assert values(collect(reader)["samples"]) == [({}, sum(recorded))]
    assert len(read_run("journal")) == sum(recorded)


class WatchedGauge(Gauge):
    """Notes which threads call it."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.values: list[float] = []
        self.on_set: Callable[[], None] = lambda: None

    def set(self, amount: float, attributes: Any = None, context: Any = None) -> None:
        self.threads.add(threading.get_ident())
        self.values.append(amount)
        self.on_set()


class WatchedProvider(NoOpMeterProvider):
    """An SDK that makes failures, and sees who calls it."""

    def __init__(self) -> None:
        self.gauge = WatchedGauge()

    def get_meter(self, name: str, *args: Any, **kwargs: Any) -> Meter:
        meter = NoOpMeter(name)
        meter.create_gauge = lambda *_: self.gauge  # type: ignore[method-assign]
        return meter


def test_nothing_of_the_sdk_runs_on_the_recording_thread(provider: TrackingMeterProvider) -> None:
    watched = WatchedProvider()
    provider.attach(watched)
    loss = provider.get_meter("train").create_gauge("loss")
    deadline = time.monotonic() + 10
    step = itertools.count()
    while not watched.gauge.threads and time.monotonic() < deadline:
        for _ in range(100):
            loss.set(1.0, {"training.step": next(step)})
        loss.set(1.0, {"training.step": next(step), "class": "cat"})
        loss.set(np.float32(1.0))  # type: ignore[arg-type]  # not typed as a number of Python's
        time.sleep(0.01)
    assert watched.gauge.threads
    assert threading.get_ident() not in watched.gauge.threads


def test_a_signal_handler_that_collects_in_the_middle_of_forwarding(provider: TrackingMeterProvider) -> None:
    watched = WatchedProvider()
    provider.attach(watched)
    assert provider.downstream is not None
    watched.gauge.on_set = provider.downstream.forward
    loss = provider.get_meter("train").create_gauge("loss")
    for step in range(3):
        loss.set(float(step), {"training.step": step})
        provider.downstream.forward()
    assert watched.gauge.values == [0.0, 1.0, 2.0]


class Collected(MetricExporter):
    def __init__(self) -> None:
        super().__init__()
        self.totals: list[int] = []

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        self.totals += [total for _, total in values(metrics_of(metrics_data)["samples"])]
        return MetricExportResult.SUCCESS

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        pass

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True


def test_a_periodic_reader_and_delegation(provider: TrackingMeterProvider) -> None:
    exporter = Collected()
    sdk = MeterProvider(
        [PeriodicExportingMetricReader(exporter, export_interval_millis=20)], shutdown_on_exit=False
    )
    provider.attach(sdk)
    samples = provider.get_meter("train").create_counter("samples")
    for step in range(50):
        samples.add(1, {"training.step": step})
        time.sleep(0.002)
    assert provider.force_flush()
    assert exporter.totals[-1] == 50
    assert len(exporter.totals) > 2
    samples.add(1)
    provider.shutdown()
    assert exporter.totals[-1] == 51
    assert exporter.totals == sorted(exporter.totals)


def test_without_an_sdk_there_is_nothing_to_delegate_to(provider: TrackingMeterProvider) -> None:
    assert not hasattr(provider, "force_flush")


# Whole processes

PROGRAM = """
import json, sys, threading
from opentelemetry import metrics
from opentelemetry.metrics import Observation, set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

order, how = sys.argv[1:]
reader = InMemoryMetricReader()
proxy = metrics.get_meter("train").create_counter("early") if order == "proxy" else None

def set_ours():
    if how == "tracking":
        import otel_tracking
        otel_tracking.Tracking([], "outputs").init_trackers("p")
    elif how == "environment":
        metrics.get_meter_provider()

if order == "sdk first":
    set_meter_provider(MeterProvider([reader]))
    set_ours()
else:
    set_ours()
    (set_meter_provider if order == "ours first" else metrics.set_meter_provider)(MeterProvider([reader]))

meter = metrics.get_meter("train", "3.1")
loss = meter.create_gauge("Train/Loss", "1", "the loss")
samples = meter.create_counter("samples")
seconds = meter.create_histogram("seconds", explicit_bucket_boundaries_advisory=[0.5])
meter.create_observable_gauge("temperature", [lambda options: [Observation(40, {"training.step": 1})]])
for step in range(1000):
    loss.set(step / 8, {"training.step": step})
    samples.add(2, {"training.step": step})
    seconds.record(step % 2, {"training.step": step})
    if proxy:
        proxy.add(1, {"training.step": step})
out = {}
for scope in reader.get_metrics_data().resource_metrics[0].scope_metrics:
    for metric in scope.metrics:
        for point in metric.data.data_points:
            value = point.value if hasattr(point, "value") else [point.sum, list(point.bucket_counts)]
            seen = [dict(point.attributes), value, metric.unit, scope.scope.version]
            out.setdefault(metric.name, []).append(seen)
provider = metrics.get_meter_provider()
assert provider.force_flush()
print(json.dumps(out))
"""

SEEN = {
    "train/loss": [[{}, 999 / 8, "1", "3.1"]],
    "samples": [[{}, 2000, "", "3.1"]],
    "seconds": [[{}, [500, [500, 500]], "", "3.1"]],
    "temperature": [[{}, 40, "", "3.1"]],
}


@pytest.mark.parametrize(
    ("order", "how"),
    [
        *itertools.product(("sdk first", "ours first", "proxy"), ("tracking", "launcher")),
        ("ours first", "environment"),
    ],
)
def test_a_program_with_its_own_provider(run_script: RunScript, order: str, how: str) -> None:
    env = {"OTEL_TRACKING_PROJECT_DIR": "outputs"}
    if how == "launcher":
        env["PYTHONPATH"] = str(SITE)
    elif how == "environment":
        env["OTEL_PYTHON_METER_PROVIDER"] = "otel_tracking"
    done = run_script(PROGRAM, order, how, env=env)
    seen = json.loads(done.stdout)
    # A proxy's meter came first, without a version.
    early = seen.pop("early", None)
    if order == "proxy":
        assert early is not None
        assert [point[:2] for point in early] == [[{}, 1000]]
        for points in seen.values():
            points[0][3] = "3.1"
    assert seen == SEEN
    assert not done.stderr
    (description,) = Path("outputs").glob("*/*/run.json")
    data = read_run(description.parent)
    assert data.of("Train/Loss").values.tolist() == [step / 8 for step in range(1000)]
    assert data.of("Train/Loss").steps.tolist() == list(range(1000))
    assert len(data.of("samples")) == len(data.of("seconds")) == 1000
    assert len(data.of("early")) == (1000 if order == "proxy" else 0)


AT_EXIT = """
import json, sys
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, PeriodicExportingMetricReader
import otel_tracking

def set_sdk():
    file = open("exported.json", "w")
    exporter = ConsoleMetricExporter(file, formatter=lambda data: data.to_json(indent=None) + "\\n")
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(exporter, 3_600_000)]))

if sys.argv[1] == "sdk first":
    set_sdk()
tracking = otel_tracking.Tracking([], "outputs")
tracking.init_trackers("p")
if sys.argv[1] == "ours first":
    set_sdk()
samples = metrics.get_meter("train").create_counter("samples")
for step in range(100):
    samples.add(1, {"training.step": step})
if sys.argv[2] == "ended":
    tracking.end_training()
    samples.add(1)
"""


@pytest.mark.parametrize("ending", ["open", "ended"])
@pytest.mark.parametrize("order", ["sdk first", "ours first"])
def test_at_exit_the_last_values_are_exported(run_script: RunScript, order: str, ending: str) -> None:
    done = run_script(AT_EXIT, order, ending)
    assert done.stderr.count("\n") == (ending == "ended")  # that one measurement came after the end
    last = json.loads(Path("exported.json").read_text().splitlines()[-1])
    (metric,) = (
        metric
        for scope in last["resource_metrics"][0]["scope_metrics"]
        for metric in scope["metrics"]
        if metric["name"] == "samples"
    )
    assert metric["data"]["data_points"][0]["value"] == (100 if ending == "open" else 101)


UNWANTED = """
import sys
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import otel_tracking

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
tracking = otel_tracking.Tracking([], "outputs")
tracking.init_trackers("p")
tracking.log({"only": 1.0}, step=1)
gauge = metrics.get_meter("train").create_gauge("gauge")
for step in range(10):
    gauge.set(float(step), {"training.step": step})
data = reader.get_metrics_data()
(metric,) = data.resource_metrics[0].scope_metrics[0].metrics
(point,) = metric.data.data_points
print(metric.name, point.value, dict(point.attributes), tracking.receipt().recorded)
"""


@pytest.mark.parametrize(
    "env", [{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "OTEL_TRACKING_RUN_ID": "r"}]
)
def test_a_rank_that_is_not_recorded_keeps_its_sdk(run_script: RunScript, env: dict[str, str]) -> None:
    assert run_script(UNWANTED, env=env).stdout == "gauge 9.0 {} 0\n"
    assert not list(Path("outputs").rglob("*.segment"))


DISABLED = """
from opentelemetry import metrics, trace
import otel_tracking
tracking = otel_tracking.Tracking([], "outputs")
tracking.init_trackers("p")
metrics.get_meter("train").create_gauge("gauge").set(1.0)
with trace.get_tracer("train").start_as_current_span("step"):
    tracking.log({"loss": 1.0}, step=1)
print(tracking.receipt().recorded)
"""


@pytest.mark.parametrize("how", ["tracking", "launcher", "environment"])
def test_the_sdk_is_disabled(run_script: RunScript, how: str) -> None:
    env = {"OTEL_SDK_DISABLED": "TRUE"}
    if how == "launcher":
        env["PYTHONPATH"] = str(SITE)
    elif how == "environment":
        env["OTEL_PYTHON_METER_PROVIDER"] = env["OTEL_PYTHON_TRACER_PROVIDER"] = "otel_tracking"
    done = run_script(DISABLED, env=env)
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert not list(Path().rglob("*.segment"))


FORK = """
import os, sys, threading, time
from opentelemetry import metrics
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
import otel_tracking

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
tracking = otel_tracking.Tracking([], "outputs")
tracking.init_trackers("p")
meter = metrics.get_meter("train")
samples = meter.create_counter("samples")
asked = threading.Event()
parent = os.getpid()

def slow(options):
    if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
        asked.set()
        time.sleep(1)
    return [Observation(1)]

meter.create_observable_gauge("slow", [slow])
for step in range(100):
    samples.add(1, {"training.step": step})
threading.Thread(target=otel_tracking.process.process().provider.sample, daemon=True).start()
assert asked.wait(10)  # its lock is held, by a thread that the child does not have
child = os.fork()
if not child:
    time.sleep(0.2)
    samples.add(1000)
    data = reader.get_metrics_data()
    totals = [p.value for s in data.resource_metrics[0].scope_metrics for m in s.metrics
              if m.name == "samples" for p in m.data.data_points]
    # Its own, and whatever the parent had forwarded at the time of the fork.
    os._exit(0 if totals and totals[0] in (1000, 1100) else 1)
for step in range(100):
    samples.add(10, {"training.step": step})
    time.sleep(0.001)
deadline = time.monotonic() + 20
while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
    time.sleep(0.01)
if not done[0]:
    os.kill(child, 9)
print(done[1] if done[0] else "the child hangs")
tracking.end_training()
print(tracking.receipt().recorded - 2)
"""


def test_a_forked_child_neither_hangs_nor_reports_the_parents_points(run_script: RunScript) -> None:
    done = run_script(FORK)
    status, recorded = done.stdout.splitlines()
    assert status == "0"
    assert int(recorded) >= 198
