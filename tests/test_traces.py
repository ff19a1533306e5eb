"""Finished spans are in the journal as they were, in MLflow as traces, and in files that others open."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.json_format import Parse  # type: ignore[import-untyped]
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, Tracer
from typer.testing import CliRunner

import otel_tracking as ot
from otel_tracking.cli import app
from otel_tracking.errors import Retry
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus, Written
from otel_tracking.span_records import RecordedSpan, Spans
from otel_tracking.spans import TrackingSpanProcessor
from otel_tracking.testing import RecordingTracker

FAR = SpanContext(2**128 - 1, 2**64 - 1, is_remote=True, trace_flags=TraceFlags(1))


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exported: InMemorySpanExporter) -> TracerProvider:
    """With the SDK's own record of what there was."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    return provider


def recorded_by(provider: TracerProvider, recorder: Recorder) -> Tracer:
    provider.add_span_processor(TrackingSpanProcessor(recorder))
    return provider.get_tracer("train", "1.2")


def train(tracer: Tracer) -> None:
    """Spans with everything that a span can have."""
    with tracer.start_as_current_span(
        "epoch", attributes={"training.step": 3, "lr": 0.1, "tags": ["a", "b"]}
    ):
        for name in ("load", "forward"):
            with tracer.start_as_current_span(name) as span:
                span.add_event("drew", {"n": 5, "ok": True}, timestamp=12)
        with pytest.raises(ZeroDivisionError), tracer.start_as_current_span("backward"):
            _ = 1 / 0
    with tracer.start_as_current_span(
        "grüße\ud800",
        kind=SpanKind.CLIENT,
        links=[Link(FAR, {"why": "for\x00"})],
        attributes={"training.step": "x"},
    ) as span:
        span.set_status(StatusCode.OK)
    with tracer.start_as_current_span(
        "", attributes={"training.step": -(2**63), "big": 2**70, "nan": float("inf")}
    ):
        pass
    tracer.start_span("plain").end()


def same(found: RecordedSpan, span: ReadableSpan) -> None:
    context = span.context
    assert context is not None
    assert (found.name, found.start, found.end) == (span.name, span.start_time, span.end_time)
    assert (found.trace_id, found.span_id) == (context.trace_id, context.span_id)
    assert found.parent_id == (span.parent.span_id if span.parent else 0)
    assert found.kind == span.kind.name.lower()
    assert (found.status, found.description) == (
        span.status.status_code.name.lower(),
        span.status.description or "",
    )
    assert found.attributes == {
        k: list(v) if isinstance(v, tuple) else v for k, v in dict(span.attributes or {}).items()
    }
    assert [(e.name, e.time, e.attributes) for e in found.events] == [
        (e.name, e.timestamp, dict(e.attributes or {})) for e in span.events
    ]
    assert [(at.trace_id, at.span_id, at.attributes) for at in found.links] == [
        (at.context.trace_id, at.context.span_id, dict(at.attributes or {})) for at in span.links
    ]
    scope = span.instrumentation_scope
    assert scope is not None
    assert (found.scope, found.scope_version) == (scope.name, scope.version)


def test_spans_come_back_as_they_were(
    recorder: Recorder, provider: TracerProvider, exported: InMemorySpanExporter
) -> None:
    train(recorded_by(provider, recorder))
    recorder.close(RunStatus.FINISHED)
    found = ot.read_spans("journal")
    spans = exported.get_finished_spans()
    assert len(found) == len(spans) == 7
    for one, other in zip(found, spans, strict=True):
        same(one, other)
    assert [span.step for span in found] == [3, 3, 3, 3, None, -(2**63), None]
    assert {span.thread for span in found} == {threading.get_ident()}
    assert [span.position for span in found] == sorted(span.position for span in found)
    data = ot.read_run("journal")
    assert sorted(set(data["name"].tolist())) == sorted(
        {f"time/{span.name}" for span in spans} | {"errors/backward"}
    )
    assert data.of("time/epoch").steps.tolist() == [3]


def test_spans_of_damaged_blocks_go_and_no_other(recorder: Recorder, provider: TracerProvider) -> None:
    tracer = recorded_by(provider, recorder)
    for step in range(3_000):
        with tracer.start_as_current_span(f"s{step % 7}", attributes={"training.step": step, "n": step}):
            pass
    recorder.close(RunStatus.FINISHED)
    whole = ot.read_spans("journal")
    assert [span.attributes["n"] for span in whole] == list(range(3_000))
    (segment, *_) = sorted(Path("journal").glob("*.segment"))
    data = bytearray(segment.read_bytes())
    data[3 * 65_536 + 1_000] ^= 4
    segment.write_bytes(data)
    found = ot.read_spans("journal")
    missing = set(range(3_000)) - {span.step for span in found}
    assert found == [span for span in whole if span.step not in missing]
    assert 0 < len(missing) < 600


class Slow(RecordingTracker):
    """Takes spans, and little at a time."""

    takes_spans = True

    def __init__(self) -> None:
        super().__init__()
        self.spans: list[RecordedSpan] = []

    def write_spans(self, spans: Spans) -> Written:
        self.spans += spans.spans
        return Written(len(spans))


def test_all_are_kept_for_a_slow_tracker(tmp_path: Path, size: Callable[[int, int], int]) -> None:
    """The SDK's batch processor keeps 20,992 of 50,000."""
    count = size(5_000, 50_000)
    tracker = Slow()
    gate = threading.Event()
    tracker.faults = {"write": gate.wait}
    tracking = ot.Tracking([tracker], project_dir=tmp_path)
    tracking.init_trackers("p")
    tracer = trace.get_tracer("train")
    for step in range(count):
        with tracer.start_as_current_span("step", attributes={"training.step": step}):
            pass
    gate.set()
    tracking.end_training()
    assert [span.step for span in tracker.spans] == list(range(count))
    assert [point.step for point in tracker.points("time/step")] == list(range(count))


def test_spans_that_come_again_do_so_before_their_points(tmp_path: Path) -> None:
    """The cursor moves by points: by the time that one is stored, all spans before it are."""
    tracker = Slow()
    calls = itertools.count()

    def refuse() -> None:
        if next(calls) % 2:
            raise Retry("later")

    tracker.faults = {"write": refuse}
    tracking = ot.Tracking([tracker], project_dir=tmp_path)
    tracking.init_trackers("p")
    tracer = trace.get_tracer("train")
    for step in range(300):
        with tracer.start_as_current_span("step", attributes={"training.step": step}):
            tracking.log({"a": 1.0}, step=step)
    tracking.end_training()
    assert sorted({span.step for span in tracker.spans if span.step is not None}) == list(range(300))
    receipt = tracking.receipt()
    assert receipt.complete
    assert not receipt.trackers["recording"].not_stored


def export(run: Path, format_: str) -> str:
    file = run.parents[1] / "exported"
    options = ["--format", format_, "-o", str(file), "--project-dir", str(run.parents[1])]
    done = CliRunner().invoke(app, ["export", run.name, *options])
    assert done.exit_code == 0, done.output
    return file.read_text()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two threads and of spans that overlap."""
    tracking = ot.Tracking([RecordingTracker()], project_dir=tmp_path, run_id="run")
    tracking.init_trackers("p")
    tracer = trace.get_tracer("train", "1.2")
    train(tracer)
    other = threading.Thread(target=train, args=[tracer])
    other.start()
    other.join()
    first, second = tracer.start_span("first"), tracer.start_span("second")
    first.end()
    second.end()
    tracking.log({"a": float("nan"), "b": 2.0}, step=1)
    tracking.end_training()
    return tmp_path / "p" / "run"


def test_otlp_has_them(run: Path) -> None:
    lines = [json.loads(line) for line in export(run, "otlp-json").splitlines()]
    requests = [line for line in lines if "resourceSpans" in line]
    found = []
    for request in requests:
        for resource in request["resourceSpans"]:
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    found.append(span)
                    # Protobuf's JSON has base64 where OTLP's has hex.
                    for key in ("traceId", "spanId", "parentSpanId"):
                        span[key] = ""
                    for link in span["links"]:
                        link["traceId"] = link["spanId"] = ""
        Parse(json.dumps(request), ExportTraceServiceRequest())
    whole = ot.read_spans(run)
    assert [(s["name"], s["startTimeUnixNano"], s["endTimeUnixNano"]) for s in found] == [
        (s.name.replace("\ud800", "\\ud800"), str(s.start), str(s.end)) for s in whole
    ]
    backward = next(s for s in found if s["name"] == "backward")
    assert backward["status"]["code"] == 2
    assert backward["events"][0]["name"] == "exception"
    assert {"key": "training.step", "value": {"intValue": "3"}} in backward["attributes"]


def test_a_chrome_trace_nests(run: Path) -> None:
    events = json.loads(export(run, "chrome-trace"))["traceEvents"]
    complete = [event for event in events if event["ph"] == "X"]
    whole = ot.read_spans(run)
    assert len(complete) == len(whole) == 16
    for event in events:
        assert {"ph", "name", "pid"} <= set(event)
        assert event["ph"] in "XiCM"
        if event["ph"] != "M":
            assert isinstance(event["ts"], float)
    # On a line, spans lie within each other or apart.
    for tid in {event["tid"] for event in complete}:
        open_until: list[float] = []
        for event in (e for e in complete if e["tid"] == tid):
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1] + 1e-3
            open_until.append(end)
    by_name = {event["name"]: event for event in complete}
    assert by_name["first"]["tid"] != by_name["second"]["tid"]
    assert len({event["tid"] for event in complete if event["name"] == "epoch"}) == 2
    assert by_name["backward"]["args"]["status"] == "error"
    assert by_name["forward"]["args"]["parent_id"] == by_name["epoch"]["args"]["span_id"]
    assert {e["name"] for e in events if e["ph"] == "i"} == {"drew", "exception"}
    assert [e["args"] for e in events if e["ph"] == "C" and e["name"] == "b"] == [{"value": 2.0}]
    assert not [e for e in events if e["ph"] == "C" and e["name"] == "a"]


def test_a_chrome_trace_has_a_line_for_each_of_many_at_once(tmp_path: Path) -> None:
    tracking = ot.Tracking([RecordingTracker()], project_dir=tmp_path, run_id="run")
    tracking.init_trackers("p")
    tracer = trace.get_tracer("train")

    def overlap(count: int) -> None:
        for span in [tracer.start_span("request") for _ in range(count)]:
            span.end()

    overlap(1_200)
    other = threading.Thread(target=overlap, args=[2])
    other.start()
    other.join()
    tracking.end_training()
    events = json.loads(export(tmp_path / "p" / "run", "chrome-trace"))["traceEvents"]
    lines = {event["tid"] for event in events if event["ph"] == "X"}
    assert len(lines) == 1_202
    named = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert named.keys() == lines
    assert len(set(named.values())) == 1_202
