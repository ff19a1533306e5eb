"""Instruments: every measurement is a point, whatever made it and however often."""

from __future__ import annotations

import ast
import enum
import gc
import logging
import math
import re
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk import metrics as sdk_metrics

import otel_tracking
import otel_tracking_exporters
from otel_tracking.instruments import TrackingGauge
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.reading import RunData, read_run
from otel_tracking.recorder import Recorder
from otel_tracking.records import AttributeValue, Kind, RunStatus

OPTIONS = CallbackOptions()


@pytest.fixture
def meter(provider: TrackingMeterProvider) -> Meter:
    return provider.get_meter("train")


def read() -> RunData:
    return read_run("journal")


def points(name: str, attributes: dict[str, AttributeValue] | None = None) -> list[tuple[int, float]]:
    found = read().of(name, attributes)
    return list(zip(found.steps.tolist(), found.values.tolist(), strict=True))


# Synchronous instruments


@pytest.mark.parametrize(
    ("create", "record", "api", "kind"),
    [
        ("create_gauge", "set", metrics._Gauge, Kind.GAUGE),
        ("create_counter", "add", metrics.Counter, Kind.COUNTER),
        ("create_up_down_counter", "add", metrics.UpDownCounter, Kind.UP_DOWN_COUNTER),
        ("create_histogram", "record", metrics.Histogram, Kind.HISTOGRAM),
    ],
)
def test_an_instrument_is_the_apis(meter: Meter, create: str, record: str, api: type, kind: Kind) -> None:
    instrument = getattr(meter, create)("Train/Loss", "1", "what it is")
    assert isinstance(instrument, api)
    getattr(instrument, record)(0.5, {"training.step": 7})
    (series,) = read().series
    assert (series.name, series.tag, series.kind) == ("Train/Loss", "Train/Loss", kind)
    assert (series.unit, series.description, series.meter) == ("1", "what it is", "train")
    assert points("Train/Loss") == [(7, 0.5)]


def test_a_unit_and_a_description_may_be_none(meter: Meter) -> None:
    meter.create_gauge("loss", None, None).set(1.0)  # type: ignore[arg-type]  # programs do that
    (series,) = read().series
    assert (series.unit, series.description) == ("", "")


@pytest.mark.parametrize(("create", "record"), [("create_gauge", "set"), ("create_histogram", "record")])
def test_values_that_the_sdk_drops_are_kept(meter: Meter, create: str, record: str) -> None:
    values = [math.nan, math.inf, -math.inf, -1.0, -0.0, 5e-324, 2**53 + 1]
    instrument = getattr(meter, create)("value")
    for step, value in enumerate(values):
        getattr(instrument, record)(value, {"training.step": step})
    kept = read().of("value")
    np.testing.assert_array_equal(kept.values, np.array(values, np.float64))
    assert math.copysign(1, kept.values[4]) == -1
    assert kept.steps.tolist() == list(range(len(values)))


def test_counters_are_running_totals(meter: Meter) -> None:
    samples, queue = meter.create_counter("samples"), meter.create_up_down_counter("queue")
    for step, amount in enumerate([32, 32, 0.5]):
        samples.add(amount, {"training.step": step})
        queue.add(-amount, {"training.step": step})
    assert points("samples") == [(0, 32.0), (1, 64.0), (2, 64.5)]
    assert points("queue") == [(0, -32.0), (1, -64.0), (2, -64.5)]


@pytest.mark.parametrize("amount", [-1, -0.5, np.float32(-1), -math.inf])
def test_a_counter_does_not_fall(meter: Meter, recorder: Recorder, amount: float) -> None:
    samples = meter.create_counter("samples")
    samples.add(1, {"training.step": 0})
    samples.add(amount, {"training.step": 1})
    assert points("samples") == [(0, 1.0)]
    assert sum(recorder.refused.values()) == 1


def test_a_series_counts_when_nothing_says_a_step(meter: Meter) -> None:
    loss = meter.create_gauge("loss")
    for value in (3.0, 2.0):
        loss.set(value)
        loss.set(value, {"class": "cat"})
    assert points("loss", {}) == [(0, 3.0), (1, 2.0)]
    assert points("loss", {"class": "cat"}) == [(0, 3.0), (1, 2.0)]


def test_two_meters_have_two_series(provider: TrackingMeterProvider) -> None:
    for name, value in (("train", 1.0), ("validation", 2.0)):
        provider.get_meter(name).create_gauge("loss").set(value)
    assert {s.tag: s.meter for s in read().series} == {"loss": "train", "validation/loss": "validation"}
    assert points("loss") == [(0, 1.0), (0, 2.0)]


def test_what_tells_instruments_apart(meter: Meter) -> None:
    first = meter.create_gauge("loss", "1")
    assert meter.create_gauge("loss", "1") is first
    others = [
        meter.create_gauge("loss", "ms"),
        meter.create_histogram("loss", "1"),
        meter.create_gauge("Loss", "1"),
    ]
    assert all(other is not first for other in others)


def test_an_instrument_made_in_a_loop_is_kept_once(provider: TrackingMeterProvider) -> None:
    for step in range(1000):
        provider.get_meter("train").create_gauge("loss").set(float(step), {"training.step": step})
    gc.collect()
    gauges = [found for found in gc.get_objects() if isinstance(found, TrackingGauge)]
    assert sum(gauge.identity[0] is provider for gauge in gauges) == 1
    assert len(points("loss")) == 1000


# Attributes


def test_attributes_of_different_types_are_different_series(meter: Meter) -> None:
    accuracy = meter.create_gauge("accuracy")
    folds: list[Any] = [1, True, 1.0, "1", "True", (1, 2), ("1", "2"), (True, 2)]
    for _ in range(2):  # the second time from the instrument's cache, where it has one
        for number, fold in enumerate(folds):
            accuracy.set(float(number), {"fold": fold, "training.step": 5})
    data = read()
    assert len(data.series) == len(folds)
    assert [s.attributes["fold"] for s in data.series] == folds
    assert [type(s.attributes["fold"]) for s in data.series] == [type(fold) for fold in folds]
    assert data.values.tolist() == 2 * list(range(len(folds)))


class Split(enum.StrEnum):
    TRAIN = "train"


class Fold(enum.IntEnum):
    TWO = 2


@pytest.mark.parametrize(
    "alike",
    [
        ["train", Split.TRAIN, np.str_("train")],
        [2, np.int64(2), Fold.TWO],
        [0.5, np.float64(0.5)],
        [(1, 2), [1, 2], (np.int64(1), 2)],
    ],
)
def test_values_that_read_back_alike_are_one_series(meter: Meter, alike: list[Any]) -> None:
    gauge = meter.create_gauge("gauge")
    for value in alike:
        gauge.set(1.0, {"key": value})
    (series,) = read().series
    assert series.attributes == {"key": alike[0] if not isinstance(alike[0], list) else tuple(alike[0])}
    assert [step for step, _ in points("gauge")] == list(range(len(alike)))


@pytest.mark.parametrize(
    "attributes", [{1: "a"}, {"a": None}, {"a": b"b"}, {"a": object}, {"": ""}, {"a": [[1]]}]
)
def test_odd_attributes_lose_no_point(meter: Meter, attributes: dict[Any, Any]) -> None:
    gauge = meter.create_gauge("gauge")
    for step in range(3):
        gauge.set(1.0, {**attributes, "training.step": step})
    assert points("gauge") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert len(read().series) == 1


def test_the_order_of_attributes_does_not_matter(meter: Meter) -> None:
    gauge = meter.create_gauge("gauge")
    for _ in range(2):
        gauge.set(1.0, {"a": "1", "training.step": 1, "b": "2"})
        gauge.set(1.0, {"b": "2", "a": "1", "training.step": 1})
    assert len(read().series) == 1
    assert len(points("gauge", {"a": "1", "b": "2"})) == 4


def test_an_attribute_dict_that_is_used_again_and_changed(meter: Meter) -> None:
    gauge = meter.create_gauge("gauge")
    attributes: dict[str, str | int] = {"class": "cat", "training.step": 0}
    gauge.set(1.0, attributes)
    attributes["training.step"] = 1
    gauge.set(2.0, attributes)
    attributes["class"] = "dog"
    gauge.set(3.0, attributes)
    assert points("gauge", {"class": "cat"}) == [(0, 1.0), (1, 2.0)]
    assert points("gauge", {"class": "dog"}) == [(1, 3.0)]


# Runs


def test_an_instrument_goes_on_in_the_next_run(meter: Meter, recorder: Recorder) -> None:
    gauge = meter.create_gauge("gauge")
    gauge.set(1.0, {"training.step": 0})
    gauge.set(1.0, {"training.step": 0, "class": "cat"})
    recorder.close(RunStatus.FINISHED)
    gauge.set(9.0, {"training.step": 1})
    recorder.open(Path("next"))
    gauge.set(2.0, {"training.step": 2})
    gauge.set(2.0, {"training.step": 2, "class": "cat"})
    assert points("gauge") == [(0, 1.0), (0, 1.0)]
    assert read_run("next").steps.tolist() == [2, 2]


def test_a_series_met_while_the_run_ended_is_not_the_next_runs(meter: Meter, recorder: Recorder) -> None:
    gauge = meter.create_gauge("gauge")
    gauge.set(1.0, {"training.step": 0})
    old = gauge._plain  # type: ignore[attr-defined]  # what a thread holds that was in `set` just then
    recorder.close(RunStatus.FINISHED)
    gauge._plain = old  # type: ignore[attr-defined]
    recorder.open(Path("next"))
    gauge.set(2.0, {"training.step": 1})
    assert read_run("next").values.tolist() == [2.0]


def test_threads_record_at_once(meter: Meter) -> None:
    counter, gauge = meter.create_counter("counter"), meter.create_gauge("gauge")

    def work(thread: int) -> None:
        for step in range(2000):
            counter.add(1, {"training.step": step})
            gauge.set(float(step), {"training.step": step, "thread": str(thread)})

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [value for _, value in points("counter")] == [float(n) for n in range(1, 8001)]
    for number in range(4):
        expected = [(step, float(step)) for step in range(2000)]
        assert points("gauge", {"thread": str(number)}) == expected


# Observables


def function(options: CallbackOptions) -> Iterable[Observation]:
    return [Observation(1), Observation(2.5, {"gpu": 1})]


def generating(options: CallbackOptions) -> Iterable[Observation]:
    yield Observation(1)
    yield Observation(2.5, {"gpu": 1})


def generator() -> Generator[Iterable[Observation], CallbackOptions, None]:
    options = yield []
    while True:
        assert isinstance(options, CallbackOptions)
        options = yield [Observation(1), Observation(2.5, {"gpu": 1})]


@pytest.mark.parametrize("make", [lambda: function, lambda: generating, generator])
@pytest.mark.parametrize(
    ("create", "api", "kind"),
    [
        ("create_observable_gauge", metrics.ObservableGauge, Kind.OBSERVABLE_GAUGE),
        ("create_observable_counter", metrics.ObservableCounter, Kind.OBSERVABLE_COUNTER),
        (
            "create_observable_up_down_counter",
            metrics.ObservableUpDownCounter,
            Kind.OBSERVABLE_UP_DOWN_COUNTER,
        ),
    ],
)
def test_an_observable(
    provider: TrackingMeterProvider, create: str, api: type, kind: Kind, make: Callable[[], Any]
) -> None:
    instrument = getattr(provider.get_meter("gpu"), create)("GPU/Memory", [make()], "By", "in use")
    assert isinstance(instrument, api)
    provider.sample()
    provider.sample()
    assert points("GPU/Memory", {}) == [(0, 1.0), (1, 1.0)]  # totals already, so not summed up
    assert points("GPU/Memory", {"gpu": 1}) == [(0, 2.5), (1, 2.5)]
    series = read().series[0]
    assert (series.kind, series.unit, series.description, series.meter) == (kind, "By", "in use", "gpu")


def test_an_observation_has_a_step(provider: TrackingMeterProvider, meter: Meter) -> None:
    meter.create_observable_gauge("gauge", [lambda _: [Observation(1, {"training.step": 9})]])
    meter.create_observable_gauge("other", [lambda _: [Observation(math.nan)]])
    otel_tracking.set_step(4)
    provider.sample()
    assert points("gauge", {}) == [(9, 1.0)]
    assert read().of("other").steps.tolist() == [4]


def failing(options: CallbackOptions) -> Iterable[Observation]:
    yield Observation(7)
    raise OSError("no such device")


def exhausted() -> Generator[Iterable[Observation], CallbackOptions, None]:
    yield []


@pytest.mark.parametrize(
    "broken",
    [failing, lambda _: None, lambda _: [3.0], lambda _: 5, exhausted(), lambda: []],
    ids=["raises", "none", "no observation", "no iterable", "exhausted", "takes nothing"],
)
def test_a_broken_callback_harms_no_other(
    provider: TrackingMeterProvider, meter: Meter, broken: Any, caplog: pytest.LogCaptureFixture
) -> None:
    meter.create_observable_gauge("broken", [broken, function])
    meter.create_observable_gauge("sound", [function])
    for _ in range(3):
        provider.sample()
    assert len(points("sound")) == 6
    assert len(points("broken", {"gpu": 1})) == 3
    assert len(caplog.records) <= 1


def test_an_observable_made_twice_asks_each_callback_once(
    provider: TrackingMeterProvider, meter: Meter
) -> None:
    made = [
        meter.create_observable_gauge("gauge", [callback]) for callback in (function, function, generating)
    ]
    assert made[0] is made[1] is made[2]
    provider.sample()
    assert len(points("gauge")) == 4


def test_observables_are_sampled_on_an_interval_and_at_the_end(recorder: Recorder) -> None:
    provider = TrackingMeterProvider(recorder, sample_interval=0.05)
    sampled, enough = threading.Semaphore(0), threading.Event()

    def callback(options: CallbackOptions) -> Iterable[Observation]:
        sampled.release()
        return [] if enough.is_set() else [Observation(1)]

    provider.get_meter("gpu").create_observable_gauge("gauge", [callback])
    for _ in range(3):
        assert sampled.acquire(timeout=10)
    enough.set()
    quiet = TrackingMeterProvider(recorder, sample_interval=3600)
    quiet.get_meter("gpu").create_observable_gauge("last", [function])
    quiet.before_end()
    assert len(points("gauge")) >= 2
    assert len(points("last")) == 2


# Which meters


@pytest.mark.parametrize(
    ("patterns", "recorded"),
    [
        (("*", "!opentelemetry.*"), {"train", "val.a", "val.b"}),
        (("train",), {"train"}),
        (("val.*", "!val.a"), {"val.b"}),
        (("!val.a", "val.*"), {"val.a", "val.b"}),
        (("!*",), set()),
        ((), set()),
    ],
)
def test_meters_are_chosen_by_patterns(
    recorder: Recorder, patterns: tuple[str, ...], recorded: set[str]
) -> None:
    provider = TrackingMeterProvider(recorder, meters=patterns)
    for name in ("train", "val.a", "val.b", "opentelemetry.instrumentation.requests"):
        meter = provider.get_meter(name)
        meter.create_gauge("gauge").set(1.0, {"training.step": 0})
        meter.create_counter("counter").add(1)
        meter.create_observable_gauge("observable", [function])
    provider.sample()
    assert {s.meter for s in read().series} == recorded
    assert len(read()) == 4 * len(recorded)


def test_a_meter_without_a_name(provider: TrackingMeterProvider) -> None:
    provider.get_meter(None).create_gauge("gauge").set(1.0)  # type: ignore[arg-type]  # the SDK takes it
    assert points("gauge") == [(0, 1.0)]


# The API


def names_used(source: str) -> Iterator[str]:
    """The full names of what a module takes from OpenTelemetry, by import or as an attribute."""
    tree = ast.parse(source)
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                modules[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{modules[node.value.id]}.{node.attr}"


def private(source: str) -> set[str]:
    return {
        name
        for name in names_used(source)
        if name.startswith("opentelemetry.")
        and any(part.startswith("_") and not part.startswith("__") for part in name.split("."))
    }


def test_only_names_that_opentelemetry_exports_are_used() -> None:
    used: set[str] = set()
    for package in (otel_tracking, otel_tracking_exporters):
        for path in Path(str(package.__file__)).parent.rglob("*.py"):
            used |= private(path.read_text(encoding="utf-8"))
    # Logs have no other modules yet: what they export is public there.
    used = {name for name in used if not re.fullmatch(r"opentelemetry(\.sdk)?\._logs(\.[A-Za-z]\w*)*", name)}
    # Exported under these names only; the last is what distros call.
    assert used == {
        "opentelemetry.metrics._Gauge",
        "opentelemetry.sdk.metrics._Gauge",
        "opentelemetry.sdk._configuration._OTelSDKConfigurator",
    }
    assert "_Gauge" in metrics.__all__
    assert "_Gauge" in sdk_metrics.__all__


def test_a_private_name_would_be_noticed() -> None:
    assert private("from opentelemetry.metrics._internal import Meter") == {
        "opentelemetry.metrics._internal.Meter"
    }
    assert private("from opentelemetry import trace as t\nt._TRACER_PROVIDER") == {
        "opentelemetry.trace._TRACER_PROVIDER"
    }


def test_a_journal_that_cannot_be_opened_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(recorder: Recorder) -> None:
        raise OSError("read-only file system")

    recorder = Recorder()
    recorder.opener = refuse
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("gauge")
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            gauge.set(1.0)
    assert len(caplog.records) == 1
    assert sum(recorder.refused.values()) == 100
