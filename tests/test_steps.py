"""The six sources of a step, which of them wins, and what counts as a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, detach, set_value
from opentelemetry.sdk.trace import TracerProvider

from otel_tracking import read_run, set_step, step
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.spans import TrackingSpanProcessor
from otel_tracking.steps import ambient, as_step


class Bench:
    """A recorder with an instrument and a tracer; `steps()` reads back what was recorded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.recorder = Recorder()
        self.recorder.open(directory)
        self.gauge = TrackingMeterProvider(self.recorder).get_meter("train").create_gauge("loss")
        provider = TracerProvider()
        provider.add_span_processor(TrackingSpanProcessor(self.recorder))
        self.tracer = provider.get_tracer("train")

    def record(self, attributes: Mapping[str, Any] | None = None, context: Context | None = None) -> None:
        self.gauge.set(1.0, dict(attributes) if attributes is not None else None, context)

    def steps(self, name: str = "loss") -> list[int]:
        steps: list[int] = read_run(self.directory).of(name).steps.tolist()
        return steps


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "journal")
    yield made
    if made.recorder.journal is not None:
        made.recorder.journal.close()


# The six sources


def test_1_the_attribute_and_the_argument(bench: Bench) -> None:
    bench.record({"training.step": 7})
    bench.record({"step": 8})
    bench.record({"global_step": 9})
    bench.recorder.log({"loss2": 1.0}, step=10)
    assert bench.steps() == [7, 8, 9]
    assert bench.steps("loss2") == [10]
    assert len(read_run(bench.directory).series) == 2  # the step tells no series apart


def test_2_with_step(bench: Bench) -> None:
    with step(5):
        bench.record()
        with step(6):
            bench.record()
            bench.recorder.log({"row/a": 1.0, "row/b": 2.0})
        bench.record()
    assert bench.steps() == [5, 6, 5]
    assert bench.steps("row/b") == [6]


def test_3_set_step(bench: Bench) -> None:
    set_step(11)
    bench.record()
    set_step(12)
    bench.recorder.log({"row": 1.0})
    bench.recorder.text("note", "text")
    set_step(None)
    bench.record()
    assert bench.steps() == [11, 0]
    assert bench.steps("row") == [12]


def test_3_set_step_reaches_threads_that_run_already(bench: Bench) -> None:
    ready, go = threading.Event(), threading.Event()

    def record() -> None:
        ready.set()
        go.wait(10)
        bench.record()

    thread = threading.Thread(target=record)
    thread.start()
    ready.wait(10)
    set_step(13)
    with step(99):  # of this thread alone
        go.set()
        thread.join(10)
    assert bench.steps() == [13]


def test_4_baggage(bench: Bench) -> None:
    token = attach(baggage.set_baggage("training.step", "21"))
    try:
        bench.record()
        bench.recorder.log({"row": 1.0})
    finally:
        detach(token)
    bench.record(context=baggage.set_baggage("training.step", 22))
    assert bench.steps() == [21, 22]
    assert bench.steps("row") == [21]


@pytest.mark.parametrize(
    "carried", ["", "x", "1.5", "1_000", "٣", "True", "9" * 19, "9" * 5000, " 5", "0x10", None]
)
def test_4_baggage_that_is_no_integer_is_passed_over(bench: Bench, carried: object) -> None:
    with bench.tracer.start_as_current_span("epoch", attributes={"training.step": 30}):
        bench.record(
            context=baggage.set_baggage(
                "training.step", carried, trace.set_span_in_context(trace.get_current_span())
            )
        )
    assert bench.steps() == [30]


def test_5_the_enclosing_span(bench: Bench) -> None:
    with bench.tracer.start_as_current_span("epoch", attributes={"training.step": 30}) as epoch:
        bench.record()
        with bench.tracer.start_as_current_span("batch"):
            with bench.tracer.start_as_current_span("forward"):
                bench.record()
            with bench.tracer.start_as_current_span("inner", attributes={"training.step": 31}):
                bench.record()
                bench.recorder.log({"row/a": 1.0, "row/b": 2.0})
            with bench.tracer.start_as_current_span("text", attributes={"training.step": "32"}):
                bench.record()
            epoch.set_attribute("training.step", 33)  # set late, seen from inside
            bench.record()
        bench.record()
    assert bench.steps() == [30, 30, 31, 30, 33, 33]
    assert bench.steps("row/a") == [31]
    assert bench.steps("time/forward") == [30]


def test_5_a_context_passed_by_hand(bench: Bench) -> None:
    span = bench.tracer.start_span("epoch", attributes={"training.step": 34})
    bench.record(context=trace.set_span_in_context(span))
    child = bench.tracer.start_span("batch", context=trace.set_span_in_context(span))
    bench.record(context=trace.set_span_in_context(child))
    child.end()
    span.end()
    assert bench.steps() == [34, 34]


def test_6_a_count_for_each_series(bench: Bench) -> None:
    for _ in range(3):
        bench.record()
    bench.record({"fold": 1})
    bench.record({"fold": 2})
    bench.record({"fold": 1})
    bench.recorder.log({"row/a": 1.0, "row/b": 2.0})
    bench.recorder.log({"row/b": 2.0})
    run = read_run(bench.directory)
    assert run.of("loss", {}).steps.tolist() == [0, 1, 2]
    assert run.of("loss", {"fold": 1}).steps.tolist() == [0, 1]
    assert run.of("loss", {"fold": 2}).steps.tolist() == [0]
    assert bench.steps("row/a") == [0]
    assert bench.steps("row/b") == [0, 1]


# Which wins


def test_the_order_of_the_sources(bench: Bench) -> None:
    """All six at once; then one after the other falls away."""

    def with_baggage() -> Context:
        return baggage.set_baggage("training.step", "4", trace.set_span_in_context(trace.get_current_span()))

    with bench.tracer.start_as_current_span("epoch", attributes={"training.step": 5}):
        token = attach(with_baggage())
        set_step(3)
        with step(2):
            bench.record({"training.step": 1})
            bench.record()
        bench.record()
        set_step(None)
        bench.record()
        detach(token)
        bench.record()
    bench.record()
    assert bench.steps() == [1, 2, 3, 4, 5, 0]


def test_an_argument_of_log_beats_what_surrounds_it(bench: Bench) -> None:
    set_step(3)
    with step(2):
        bench.recorder.log({"row": 1.0}, step=1)
        bench.recorder.log({"row": 1.0})
    assert bench.steps("row") == [1, 2]


def test_the_first_of_the_attributes_wins_and_the_others_stay(bench: Bench) -> None:
    bench.record({"training.step": 1, "step": 2, "global_step": 3})
    bench.record({"step": 2, "global_step": 3})
    run = read_run(bench.directory)
    assert run.steps.tolist() == [1, 2]
    assert [dict(series.attributes) for series in run.series] == [
        {"global_step": 3, "step": 2},
        {"global_step": 3},
    ]


def test_a_step_that_is_a_text_does_not_make_another_series_of_later_points(bench: Bench) -> None:
    for _ in range(2):
        bench.record({"training.step": "warm", "step": 7})
        bench.record({"training.step": 3, "step": 7})
    run = read_run(bench.directory)
    assert run.steps.tolist() == [7, 3, 7, 3]
    assert [dict(run.series[index].attributes) for index in run.index] == [
        {"training.step": "warm"},
        {"step": 7},
    ] * 2


# What is a step


@pytest.mark.parametrize(
    "value",
    [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)],
    ids=["int", "np.int64", "np.uint8", "0-d array", "0-d tensor"],
)
def test_integers_of_every_kind_are_steps(bench: Bench, value: Any) -> None:
    bench.record({"training.step": value})
    bench.recorder.log({"row": 1.0, "b": 2.0}, step=value)
    set_step(value)
    bench.record()
    with step(value):
        bench.record()
    assert bench.steps() == [3, 3, 3]
    assert bench.steps("row") == [3]


@pytest.mark.parametrize(
    "value", [True, 1.0, "1", None, 2**63, -(2**63) - 1, np.float32(1), np.bool_(True), [1]]
)
def test_what_is_no_step_stays_an_attribute_and_is_refused_as_an_argument(bench: Bench, value: Any) -> None:
    assert as_step(value) is None
    bench.record({"training.step": value})
    run = read_run(bench.directory)
    assert run.steps.tolist() == [0]
    assert list(run.series[0].attributes) == ["training.step"]
    if value is not None:
        bench.recorder.log({"row": 1.0}, step=value)
        assert bench.recorder.not_recorded() == {"a step is an integer of 64 bits": 1}
        with pytest.raises(TypeError, match="integer of 64 bits"):
            set_step(value)
    with pytest.raises(TypeError, match="integer of 64 bits"), step(value):
        pass
    assert ambient() is None


@pytest.mark.parametrize("value", [0, -1, 2**63 - 1, -(2**63)])
def test_steps_at_the_borders(bench: Bench, value: int) -> None:
    bench.record({"training.step": value})
    bench.record({"training.step": value})
    for _ in range(2):
        bench.recorder.log({"a": 1.0, "b": 2.0}, step=value)
    assert bench.steps() == [value] * 2
    assert bench.steps("b") == [value] * 2


def test_steps_need_not_rise(bench: Bench) -> None:
    for value in (5, 3, 3, 9, -2):
        bench.record({"training.step": value})
    assert bench.steps() == [5, 3, 3, 9, -2]


def test_another_librarys_context_does_not_matter(bench: Bench) -> None:
    token = attach(set_value("training.step", 77))
    try:
        bench.record()
    finally:
        detach(token)
    assert bench.steps() == [0]


def test_a_context_without_anything_says_nothing(bench: Bench) -> None:
    with step(5):
        bench.record(context=Context())
        bench.record(context=Context({"other": 1}))
    assert bench.steps() == [0, 1]


def _nested(depth: int, inside: Callable[[], None], bench: Bench) -> None:
    if not depth:
        inside()
        return
    with bench.tracer.start_as_current_span(f"level{depth}"):
        _nested(depth - 1, inside, bench)


def test_spans_far_below_the_one_with_the_step(bench: Bench) -> None:
    with bench.tracer.start_as_current_span("top", attributes={"training.step": 8}):
        _nested(50, bench.record, bench)
    assert bench.steps() == [8]
