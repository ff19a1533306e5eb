"""A point is linked to the span in which it was recorded: in the journal, in exports and in exemplars."""

from __future__ import annotations

import asyncio
import csv
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import Parse  # type: ignore[import-untyped]
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.metrics import _Gauge as Gauge
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, Tracer

import otel_tracking as ot
from otel_tracking import open_spans, retention
from otel_tracking.export.csv_file import write_csv
from otel_tracking.export.otlp_json import write_otlp_json
from otel_tracking.export.parquet_file import write_parquet
from otel_tracking.journal.seal import BLOCK_SLOTS
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.reading import RunData
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus
from otel_tracking.retention import Keep
from otel_tracking.span_records import EnclosingSpan
from otel_tracking.spans import TrackingSpanProcessor
from tests.damage import flip

NONE = ("", "")


def tracer_of(recorder: Recorder, sampler: Sampler | None = None) -> Tracer:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(TrackingSpanProcessor(recorder))
    return provider.get_tracer("train")


@pytest.fixture
def tracer(recorder: Recorder) -> Tracer:
    return tracer_of(recorder)


@pytest.fixture
def gauge(provider: TrackingMeterProvider) -> Gauge:
    return provider.get_meter("train").create_gauge("gauge")


def ids(span: Span) -> tuple[str, str]:
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def links(run: RunData) -> list[tuple[str, str]]:
    return list(zip(run["trace_id"].tolist(), run["span_id"].tolist(), strict=True))


def of(name: str) -> list[tuple[str, str]]:
    return links(ot.read_run("journal").of(name))


def test_every_way_to_record_a_point(
    provider: TrackingMeterProvider, recorder: Recorder, tracer: Tracer
) -> None:
    meter = provider.get_meter("train")
    instruments: list[Callable[..., None]] = [
        meter.create_gauge("gauge").set,
        meter.create_counter("counter").add,
        meter.create_up_down_counter("queue").add,
        meter.create_histogram("latency").record,
    ]

    def record() -> None:
        for call in instruments:
            call(1.5, {"training.step": 3})
            call(2, {"training.step": 3})
            call(2, {"training.step": 3, "class": "cat"})
            call(2, {"training.step": 3, "fold": 1})
            call(2)
            call(True, {"step": 3})
        for step in (3, None):
            recorder.log({"a": 1.0, "b": 2}, step=step)
            recorder.log({"a": 1.0}, step=step)
            recorder.log({"a": {"x": 1.0}, "c": 2.0}, step=step, options={"wandb": {"commit": False}})

    each = 4 * 6 + 2 * 5
    record()
    # The second time everything is known, and takes the short way.
    spans = []
    for _ in range(2):
        with tracer.start_as_current_span("step") as span:
            record()
        spans.append(ids(span))
        record()
    run = ot.read_run("journal")
    found = [link for link, name in zip(links(run), run["name"], strict=True) if name != "time/step"]
    assert found == [NONE] * each + [spans[0]] * each + [NONE] * each + [spans[1]] * each + [NONE] * each
    assert len(run.enclosing) == 2
    assert run.of("b").values.tolist() == [2.0] * 10


def test_the_innermost_span_that_is_the_current_one(gauge: Gauge, tracer: Tracer) -> None:
    at = {"training.step": 1}
    with tracer.start_as_current_span("outer") as outer:
        gauge.set(0.0, at)
        with tracer.start_as_current_span("inner") as inner:
            gauge.set(1.0, at)
            other = tracer.start_span("not current")
            gauge.set(2.0, at)
            gauge.set(3.0, at, trace.set_span_in_context(other))
            gauge.set(4.0, at, Context())
            other.end()
            gauge.set(5.0, at, trace.set_span_in_context(other))  # it does not record any more
            gauge.set(6.0, {"training.step": 2}, trace.set_span_in_context(outer))
        gauge.set(7.0, at)
    gauge.set(8.0, at)
    o, i, b = ids(outer), ids(inner), ids(other)
    assert of("gauge") == [o, i, i, b, NONE, NONE, o, o, NONE]


def test_threads_and_tasks(gauge: Gauge, tracer: Tracer) -> None:
    at = {"training.step": 1}

    def work(context: Context | None) -> None:
        token = attach(context) if context else None
        gauge.set(2.0, at)
        if token:
            detach(token)

    async def task(number: int) -> tuple[str, str]:
        with tracer.start_as_current_span("task") as span:
            for _ in range(5):
                await asyncio.sleep(0)
                gauge.set(float(number), {"training.step": number})
        return ids(span)

    async def main() -> list[tuple[str, str]]:
        return await asyncio.gather(*(task(number) for number in range(10)))

    with tracer.start_as_current_span("step") as span:
        for context in (None, trace.set_span_in_context(span)):
            thread = threading.Thread(target=work, args=(context,))
            thread.start()
            thread.join()
    assert of("gauge") == [NONE, ids(span)]
    tasks = asyncio.run(main())
    run = ot.read_run("journal").of("gauge")
    assert [tasks[step] for step in run.steps.tolist()[2:]] == links(run)[2:]


class RecordOnly(Sampler):
    """Spans are recorded, and not exported."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return "RecordOnly"


def test_what_is_not_recorded_is_linked_to_nothing(recorder: Recorder, gauge: Gauge, tracer: Tracer) -> None:
    at = {"training.step": 1}
    remote = NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED)))
    unsampled = tracer_of(recorder, ALWAYS_OFF)
    with tracer.start_as_current_span("step"):  # so that it is looked for
        with trace.use_span(remote):
            gauge.set(1.0, at)
        with unsampled.start_as_current_span("x"):
            gauge.set(1.0, at)
        with tracer_of(recorder, RecordOnly()).start_as_current_span("x") as span:
            gauge.set(1.0, at)
    assert of("gauge") == [NONE, NONE, ids(span)]
    assert [each.sampled for each in ot.read_run("journal").enclosing] == [False]


def test_a_span_of_a_class_that_has_no_place_for_a_number(gauge: Gauge, tracer: Tracer) -> None:
    class Slotted(NonRecordingSpan):
        __slots__ = ()

        def is_recording(self) -> bool:
            return True

        def __setattr__(self, name: str, value: object) -> None:
            if name.startswith("_otel_tracking"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    foreign = Slotted(SpanContext(5, 6, is_remote=False))
    with tracer.start_as_current_span("step"), trace.use_span(foreign):
        gauge.set(1.0, {"training.step": 1})
        gauge.set(1.0, {"training.step": 2})
    assert of("gauge") == [ids(foreign)] * 2


def test_a_context_that_is_none_loses_no_point(
    recorder: Recorder, gauge: Gauge, tracer: Tracer, caplog: pytest.LogCaptureFixture
) -> None:
    with tracer.start_as_current_span("step"):
        for _ in range(3):
            gauge.set(1.0, {"training.step": 1}, 5)  # type: ignore[arg-type]
    assert of("gauge") == [NONE] * 3
    assert recorder.not_recorded() == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def train(recorder: Recorder, steps: int) -> list[tuple[str, str]]:
    """Rows and points in short spans and in a long one; which ones, of each point."""
    provider = TrackingMeterProvider(recorder, sample_interval=3600)
    tracer, gauge = tracer_of(recorder), provider.get_meter("train").create_gauge("gauge")
    expected = []
    with tracer.start_as_current_span("train") as around:
        for step in range(steps):
            gauge.set(1.0, {"training.step": step})
            with tracer.start_as_current_span("step") as span:
                gauge.set(2.0, {"training.step": step})
                recorder.log({"a": 1.0, "b": float(step)}, step=step)
            expected += [ids(around), *[ids(span)] * 3]
    return expected


@pytest.mark.parametrize("compress", ["off", "pack", "zstd"])
def test_over_many_segments(
    tmp_path: Path, compress: str, small_segments: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_segments(BLOCK_SLOTS)
    journal = tmp_path / "journal"
    expected = []
    for _ in range(2):  # another process counts from 1 again
        monkeypatch.setattr(open_spans, "_numbers", itertools.count(1))
        recorder = Recorder()
        recorder.compress = compress
        recorder.open(journal)
        expected += train(recorder, 500)
        recorder.close(RunStatus.FINISHED)
    assert len(list(journal.glob("*.seal"))) > 5
    assert linked(ot.read_run(journal)) == expected


def linked(run: RunData) -> list[tuple[str, str]]:
    """Of all points but the spans' durations."""
    return [
        link
        for link, name in zip(links(run), run["name"].tolist(), strict=True)
        if not name.startswith("time/")
    ]


def test_what_is_left_of_a_journal_is_linked_as_it_was(
    tmp_path: Path, small_segments: Callable[[int], None]
) -> None:
    """Removed segments and damaged blocks take links with them, and leave no wrong one."""
    small_segments(BLOCK_SLOTS * 3)
    journal = tmp_path / "journal"
    recorder = Recorder()
    recorder.open(journal)
    expected = train(recorder, 3000)
    recorder.close(RunStatus.FINISHED)
    retention.apply(journal, Keep.parse("400KB"), ended=True)
    run = ot.read_run(journal)
    assert run.removed > 5000
    found = linked(run)
    # The number on a segment's first point may be given at the end of the segment before.
    assert found[1:] == expected[1 - len(found) :]
    assert found[0] in (NONE, expected[-len(found)])
    whole = points(run)
    newest = sorted(journal.glob("*.segment*"))[-1]
    flip(newest, 2 * BLOCK_SLOTS * 8)
    damaged = ot.read_run(journal)
    assert damaged.damaged > 100
    left = points(damaged)
    assert all(link in (whole[point], NONE) for point, link in left.items())
    assert sum(link == NONE for link in left.values()) < len(left) / 2


def points(run: RunData) -> dict[tuple[str, int, float], tuple[str, str]]:
    """The links, by name, step and value."""
    keys = zip(run["name"].tolist(), run.steps.tolist(), run.values.tolist(), strict=True)
    return dict(zip(keys, links(run), strict=True))


def test_a_journal_that_another_one_continues(tmp_path: Path) -> None:
    first = Recorder()
    first.open(tmp_path / "named")
    expected = train(first, 5)
    first.close(RunStatus.FINISHED)
    second = Recorder()
    second.open(tmp_path / "pending")
    expected += train(second, 5)
    second.move(tmp_path / "named")
    expected += train(second, 5)
    second.close(RunStatus.FINISHED)
    assert linked(ot.read_run(tmp_path / "named")) == expected


def test_numbers_go_round(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_spans, "_numbers", itertools.count(2**30 - 3))
    assert (expected := train(recorder, 5)) == linked(ot.read_run("journal"))
    assert NONE not in expected


def test_exports(recorder: Recorder, tmp_path: Path) -> None:
    expected = train(recorder, 20)
    recorder.close(RunStatus.FINISHED)
    assert len(set(expected)) == 21
    journal = tmp_path / "journal"
    with (tmp_path / "run.csv").open("w", newline="") as text:
        write_csv(journal, "run", text)
    with (tmp_path / "run.parquet").open("wb") as binary:
        write_parquet(journal, "run", binary)
    with (tmp_path / "run.json").open("w") as text:
        write_otlp_json(journal, "run", text)
    with (tmp_path / "run.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["name"].startswith("time/")]
    assert [(row["trace_id"], row["span_id"]) for row in rows] == expected
    table = pq.read_table(tmp_path / "run.parquet").to_pylist()
    assert [(row["trace_id"], row["span_id"]) for row in table if row["name"][:5] != "time/"] == expected
    assert all(row["trace_id"] is row["span_id"] is None for row in table if row["name"][:5] == "time/")

    wanted = list(zip(rows, expected, strict=True))
    for name in ("gauge", "a", "b"):
        found = list(exemplars(tmp_path / "run.json", name))
        assert found == [
            (int(row["step"]), float(row["value"]), int(row["time_ns"]), link)
            for row, link in wanted
            if row["name"] == name
        ]


def exemplars(path: Path, name: str) -> Iterator[tuple[int, float, int, tuple[str, str]]]:
    """Step, value, time and span of each point's exemplar."""
    for line in path.read_text().splitlines():
        content = json.loads(line)
        if "resourceMetrics" in content:
            # It is OTLP; but of ids OTLP's JSON has hex, and protobuf's base64.
            Parse(line, ExportMetricsServiceRequest())
        for metric in metrics_of(content):
            for point in metric["gauge"]["dataPoints"] if metric["name"] == name else ():
                (step,) = (a["value"]["intValue"] for a in point["attributes"] if a["key"] == "training.step")
                (one,) = point["exemplars"]
                link = one["traceId"], one["spanId"]
                yield int(step), one["asDouble"], int(one["timeUnixNano"]), link


def metrics_of(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in content.get("resourceMetrics", ()):
        for scope in resource["scopeMetrics"]:
            yield from scope["metrics"]


def test_exemplars_of_an_sdk_pipeline(
    provider: TrackingMeterProvider, recorder: Recorder, tracer: Tracer
) -> None:
    """With its default filter, which takes what was measured in a sampled span."""
    reader = InMemoryMetricReader()
    sdk = MeterProvider([reader], shutdown_on_exit=False)
    provider.attach(sdk)
    meter = provider.get_meter("train")
    gauge, counter, float_counter, histogram, outside = (
        meter.create_gauge("gauge"),
        meter.create_counter("counter"),
        meter.create_counter("float"),
        meter.create_histogram("histogram", explicit_bucket_boundaries_advisory=[10.0, 20.0]),
        meter.create_gauge("outside"),
    )
    for step in range(30):
        at = {"training.step": step}
        with tracer.start_as_current_span("step") as span:
            gauge.set(float(step), at)
            counter.add(2 if step < 29 else 5, at)
            float_counter.add(0.25, at)
            histogram.record(float(step), at)
            recorder.log({"loss": float(step), "lr": 0.5}, step=step)
        counter.add(1, at)
        outside.set(1.0, at)
    with tracer_of(recorder, RecordOnly()).start_as_current_span("unsampled"):
        outside.set(2.0)
    data = reader.get_metrics_data()
    assert data is not None
    points: dict[str, Any] = {
        metric.name: metric.data.data_points
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    last = span.get_span_context()
    for name, value in (("gauge", 29.0), ("loss", 29.0), ("lr", 0.5), ("counter", 5), ("float", 0.25)):
        (point,) = points[name]
        (one,) = point.exemplars
        assert (one.value, one.trace_id, one.span_id) == (value, last.trace_id, last.span_id), name
        assert not one.filtered_attributes
    assert points["counter"][0].value == 29 * 2 + 5 + 30
    assert type(points["counter"][0].value) is int
    assert points["float"][0].value == 7.5
    (point,) = points["histogram"]
    assert (point.count, point.sum) == (30, sum(range(30)))
    of_step = {(each.trace_id, each.span_id) for each in ot.read_run("journal").of("histogram").enclosing}
    assert {(one.trace_id, one.span_id) for one in point.exemplars} <= of_step
    assert len(point.exemplars) == 3
    (point,) = points["outside"]
    assert (point.value, list(point.exemplars)) == (2.0, [])
    sdk.shutdown()


def test_ids_are_written_in_full() -> None:
    assert EnclosingSpan(2**128 - 1, 1).ids == ("f" * 32, "0" * 15 + "1")
