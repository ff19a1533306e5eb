"""Spans give their step to what is recorded inside, and are recorded themselves."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.context import Context
from opentelemetry.metrics import _Gauge as Gauge
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, Tracer

import otel_tracking
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.reading import read_run
from otel_tracking.recorder import Recorder
from otel_tracking.records import Kind, RunStatus
from otel_tracking.spans import TrackingSpanProcessor, TrackingTracerProvider

SITE = Path(otel_tracking.__file__).parent / "launcher" / "site"
RunScript = Callable[..., CompletedProcess[str]]


@pytest.fixture
def gauge(recorder: Recorder) -> Gauge:
    return TrackingMeterProvider(recorder).get_meter("train").create_gauge("gauge")


@pytest.fixture
def tracer(recorder: Recorder) -> Tracer:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(TrackingSpanProcessor(recorder))
    return provider.get_tracer("train")


def steps(name: str = "gauge") -> list[int]:
    return [int(step) for step in read_run("journal").of(name).steps]


# The step of what is recorded inside


def test_a_span_gives_its_step_to_measurements_inside(gauge: Gauge, tracer: Tracer) -> None:
    with tracer.start_as_current_span("epoch", attributes={"training.step": 3}):
        gauge.set(1.0)
        gauge.set(1.0, {"class": "cat"})
        gauge.set(1.0, {"training.step": 9})
    gauge.set(1.0, {"class": "outside"})
    assert steps() == [3, 3, 9, 0]


def test_children_have_the_step_of_the_nearest_span_above(gauge: Gauge, tracer: Tracer) -> None:
    with tracer.start_as_current_span("epoch", attributes={"training.step": 3}):
        with tracer.start_as_current_span("batch"), tracer.start_as_current_span("forward"):
            gauge.set(1.0)
        with tracer.start_as_current_span("batch", attributes={"training.step": 4}):
            gauge.set(2.0)
            with tracer.start_as_current_span("forward", attributes={"training.step": "no int"}):
                gauge.set(3.0)
        gauge.set(4.0)
    assert steps() == [3, 4, 4, 3]
    assert steps("time/forward") == [3, 4]
    assert steps("time/batch") == [3, 4]
    assert steps("time/epoch") == [3]


def test_a_step_that_is_set_later(gauge: Gauge, tracer: Tracer) -> None:
    with tracer.start_as_current_span("epoch") as epoch, tracer.start_as_current_span("batch"):
        epoch.set_attribute("training.step", 5)
        gauge.set(1.0)
        epoch.set_attribute("training.step", 6)
        gauge.set(1.0)
    assert steps() == [5, 6]
    assert steps("time/batch") == [6]


def test_the_context_of_the_call_counts(gauge: Gauge, tracer: Tracer) -> None:
    span = tracer.start_span("epoch", attributes={"training.step": 5})
    gauge.set(1.0, context=trace.set_span_in_context(span))
    gauge.set(1.0, context=Context())
    assert steps() == [5, 0]


def test_a_thread_that_was_given_the_context(gauge: Gauge, tracer: Tracer) -> None:
    def work(carried: Context) -> None:
        token = context.attach(carried)
        gauge.set(1.0)
        context.detach(token)

    with tracer.start_as_current_span("epoch", attributes={"training.step": 5}):
        thread = threading.Thread(target=work, args=(context.get_current(),))
        thread.start()
        thread.join()
        copied = contextvars.copy_context()
    copied.run(gauge.set, 1.0)
    assert steps() == [5, 5]


def test_tasks_that_run_at_once(gauge: Gauge, tracer: Tracer) -> None:
    async def work(step: int) -> None:
        with tracer.start_as_current_span("task", attributes={"training.step": step}):
            for _ in range(3):
                await asyncio.sleep(0)
                gauge.set(float(step))

    async def main() -> None:
        await asyncio.gather(*(work(step) for step in range(10)))

    asyncio.run(main())
    data = read_run("journal").of("gauge")
    assert data.steps.tolist() == data.values.tolist()
    assert len(data) == 30


def test_a_remote_parent_has_no_step(gauge: Gauge, tracer: Tracer) -> None:
    remote = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    with trace.use_span(remote):
        gauge.set(1.0)
        with tracer.start_as_current_span("epoch"):
            gauge.set(1.0)
    assert steps() == [0, 1]


def test_a_span_that_is_sampled_out(recorder: Recorder, gauge: Gauge, tracer: Tracer) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(TrackingSpanProcessor(recorder))
    unsampled = provider.get_tracer("train")
    with unsampled.start_as_current_span("epoch", attributes={"training.step": 3}):
        gauge.set(1.0)
        with tracer.start_as_current_span("batch"):
            gauge.set(1.0)
    assert steps() == [0, 1]


# Spans as series


def test_how_long_a_span_took(tracer: Tracer) -> None:
    span = tracer.start_span("forward", attributes={"training.step": 7}, start_time=1_000_000_000)
    span.end(3_500_000_000)
    data = read_run("journal")
    (series,) = data.series
    assert (series.name, series.kind, series.unit) == ("time/forward", Kind.GAUGE, "s")
    assert (data.values.tolist(), data.steps.tolist(), data.times.tolist()) == ([2.5], [7], [3_500_000_000])


def test_a_span_without_a_step_is_counted(tracer: Tracer) -> None:
    for _ in range(3):
        tracer.start_span("forward").end()
    assert steps("time/forward") == [0, 1, 2]


def test_an_ended_span_has_the_step_that_surrounds_it(tracer: Tracer) -> None:
    with otel_tracking.step(5), tracer.start_as_current_span("epoch"):
        pass
    token = context.attach(baggage.set_baggage("training.step", "6"))
    tracer.start_span("epoch").end()
    context.detach(token)
    otel_tracking.set_step(7)
    tracer.start_span("epoch").end()
    tracer.start_span("epoch", attributes={"training.step": 8}).end()
    assert steps("time/epoch") == [5, 6, 7, 8]


def test_a_span_that_ends_inside_another_does_not_take_its_step(tracer: Tracer) -> None:
    background = tracer.start_span("background")
    with tracer.start_as_current_span("epoch", attributes={"training.step": 5}):
        background.end()
    assert steps("time/background") == [0]


def test_failed_spans_are_counted(tracer: Tracer) -> None:
    for step in range(3):
        with (
            pytest.raises(RuntimeError, match="out of memory"),
            tracer.start_as_current_span("forward", attributes={"training.step": step}),
        ):
            raise RuntimeError("out of memory")
    with tracer.start_as_current_span("forward", attributes={"training.step": 3}) as span:
        span.set_status(StatusCode.ERROR)
    with tracer.start_as_current_span("forward", attributes={"training.step": 4}) as span:
        span.record_exception(ValueError())  # handled: the span is not failed
    errors = read_run("journal").of("errors/forward")
    assert errors.steps.tolist() == [0, 1, 2, 3]
    assert errors.values.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert steps("time/forward") == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "name", ["", "../../etc", "a\x00b", "\u202egpj.exe", "\ud800", "x" * 10_000, "{0}%s\n"]
)
def test_names_are_kept_as_they_are(tracer: Tracer, name: str) -> None:
    tracer.start_span(name).end()
    assert [series.name for series in read_run("journal").series] == [f"time/{name}"]


def test_spans_are_forgotten(recorder: Recorder, tracer: Tracer) -> None:
    with tracer.start_as_current_span("epoch") as epoch:
        batch = tracer.start_span("batch")
        batch.end()
        held = [weakref.ref(span) for span in (epoch, batch)]
        del epoch, batch
    gc.collect()
    assert [reference() for reference in held] == [None, None]


def test_a_run_that_has_ended_records_no_spans(recorder: Recorder, tracer: Tracer) -> None:
    recorder.close(RunStatus.FINISHED)
    tracer.start_span("late").end()
    assert len(read_run("journal")) == 0


# The provider


@pytest.fixture
def own(recorder: Recorder) -> TrackingTracerProvider:
    return TrackingTracerProvider(TrackingSpanProcessor(recorder))


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def sdk(recorder: Recorder, exporter: InMemorySpanExporter) -> TracerProvider:
    sdk = TracerProvider(shutdown_on_exit=False)
    sdk.add_span_processor(SimpleSpanProcessor(exporter))
    sdk.add_span_processor(TrackingSpanProcessor(recorder))
    return sdk


def test_a_tracer_goes_over_to_the_sdk(
    own: TrackingTracerProvider, sdk: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    tracer = own.get_tracer("train", "1.0")

    @tracer.start_as_current_span("sync")
    def work(value: int) -> int:
        """Doubles."""
        return 2 * value

    @tracer.start_as_current_span("async", attributes={"training.step": 4})
    async def work_later(value: int) -> int:
        await asyncio.sleep(0.02)
        return 2 * value

    assert work(1) == 2
    assert own.attach(sdk)
    assert work(2) == work(2) == 4
    assert (work.__name__, work.__doc__) == ("work", "Doubles.")
    assert asyncio.iscoroutinefunction(work_later)
    assert asyncio.run(work_later(3)) == 6
    with tracer.start_as_current_span("block") as span:
        assert trace.get_current_span() is span
    tracer.start_span("plain").end()
    exported = exporter.get_finished_spans()
    assert [span.name for span in exported] == ["sync", "sync", "async", "block", "plain"]
    assert {span.instrumentation_scope and span.instrumentation_scope.version for span in exported} == {"1.0"}
    data = read_run("journal")
    assert len(data.of("time/sync")) == 3
    assert data.of("time/async").steps.tolist() == [4]
    assert data.of("time/async").values[0] >= 0.02
    assert len(data) == 6


def test_an_error_passes_through_a_decorated_function(own: TrackingTracerProvider) -> None:
    @own.get_tracer("train").start_as_current_span("work")
    def work() -> None:
        raise KeyError("gone")

    for _ in range(2):
        with pytest.raises(KeyError, match="gone"):
            work()
    assert read_run("journal").of("errors/work").values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("options", ["", "record_exception", "set_status_on_exception", "end_on_exit"])
@pytest.mark.parametrize(
    "error", [None, ValueError("no"), StopIteration(1), KeyboardInterrupt(), GeneratorExit()], ids=repr
)
def test_a_current_span_ends_as_the_sdks_does(
    own: TrackingTracerProvider, options: str, error: BaseException | None
) -> None:
    found = []
    for provider in (own, TracerProvider(shutdown_on_exit=False)):
        tracer = provider.get_tracer("train")
        without = dict.fromkeys(options.split(), False)
        with (
            contextlib.suppress(type(error or Exception())),
            tracer.start_as_current_span("step", **without) as span,  # type: ignore[arg-type]
        ):
            if error is not None:
                raise error
        assert isinstance(span, ReadableSpan)
        events = [(event.name, (event.attributes or {})["exception.type"]) for event in span.events]
        status = span.status.status_code, span.status.description
        found.append((span.is_recording(), status, events, trace.get_current_span() is trace.INVALID_SPAN))
    assert found[0] == found[1]
    assert found[0][0] is (options == "end_on_exit")


def test_a_provider_that_is_not_the_sdks(own: TrackingTracerProvider) -> None:
    tracer = own.get_tracer("train")
    scope = tracer.start_as_current_span("step")
    with scope as span:
        assert span.is_recording()
    own.attach(trace.NoOpTracerProvider())
    with scope as span:
        assert span is trace.INVALID_SPAN
    assert len(read_run("journal").of("time/step")) == 1


def test_the_first_sdk_provider_stays(own: TrackingTracerProvider, sdk: TracerProvider) -> None:
    assert own.attach(sdk)
    assert own.attach(sdk)
    assert not own.attach(TracerProvider(shutdown_on_exit=False))
    assert own.provider is sdk


def test_what_the_provider_lacks_is_the_sdks(own: TrackingTracerProvider, sdk: TracerProvider) -> None:
    own.attach(sdk)
    assert own.force_flush()
    own.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    assert own.resource is sdk.resource
    with pytest.raises(AttributeError):
        own.no_such_thing  # noqa: B018 - the attribute's absence is the test


def test_a_sampler_for_export_does_not_thin_out_our_own(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    tracer = TrackingTracerProvider(TrackingSpanProcessor(recorder)).get_tracer("train")
    with tracer.start_as_current_span("epoch", attributes={"training.step": 3}):
        time.sleep(0.001)
    assert steps("time/epoch") == [3]


# Whole processes

PROGRAM = """
import sys
from opentelemetry import metrics, trace
from opentelemetry.trace import set_tracer_provider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

order, how = sys.argv[1:]
exporter = InMemorySpanExporter()
proxy = trace.get_tracer("early")

@proxy.start_as_current_span("decorated")
def decorated():
    pass

def set_ours():
    if how == "tracking":
        import otel_tracking
        otel_tracking.Tracking([], "outputs").init_trackers("p")
    else:
        trace.get_tracer_provider()

def set_sdk():
    sdk = TracerProvider()
    sdk.add_span_processor(SimpleSpanProcessor(exporter))
    set_tracer_provider(sdk)
    trace.set_tracer_provider(sdk)  # again: OpenTelemetry refuses, and nothing is recorded twice

for step in (set_sdk, set_ours) if order == "sdk first" else (set_ours, set_sdk):
    step()

loss = metrics.get_meter("train").create_gauge("loss")
for step in range(100):
    with proxy.start_as_current_span("step", attributes={"training.step": step}):
        with trace.get_tracer("train").start_as_current_span("forward"):
            loss.set(step / 2)
decorated()
assert trace.get_tracer_provider().force_flush()
spans = exporter.get_finished_spans()
ids = [span.context.span_id for span in spans]
print(len(ids), len(set(ids)), spans[0].parent.span_id == ids[1])
"""


@pytest.mark.parametrize(
    ("order", "how"),
    [
        ("sdk first", "tracking"),
        ("ours first", "tracking"),
        ("sdk first", "launcher"),
        ("ours first", "environment"),
    ],
)
def test_a_program_with_its_own_provider(run_script: RunScript, order: str, how: str) -> None:
    env = {}
    if how == "launcher":
        env["PYTHONPATH"] = str(SITE)
    elif how == "environment":
        env["OTEL_PYTHON_METER_PROVIDER"] = env["OTEL_PYTHON_TRACER_PROVIDER"] = "otel_tracking"
    done = run_script(PROGRAM, order, how, env=env)
    assert done.stdout == "201 201 True\n"
    assert done.stderr.count("\n") == done.stderr.count("Overriding of current TracerProvider") <= 1
    (description,) = Path("outputs").glob("*/*/run.json")
    data = read_run(description.parent)
    for name in ("loss", "time/step", "time/forward"):
        assert data.of(name).steps.tolist() == list(range(100)), name
    assert len(data.of("time/decorated")) == 1
    assert len(data) == 301


def test_where_nothing_is_recorded_no_span_is_kept(recorder: Recorder, tracer: Tracer) -> None:
    """As on the ranks that nobody wants, for as long as they train."""
    recorder.mute("rank 1 is not recorded", quiet=True)
    held = []
    for _ in range(3):
        with tracer.start_as_current_span("epoch") as epoch, tracer.start_as_current_span("batch") as batch:
            held += [weakref.ref(epoch), weakref.ref(batch)]
    del epoch, batch
    gc.collect()
    assert [reference() for reference in held] == [None] * 6
