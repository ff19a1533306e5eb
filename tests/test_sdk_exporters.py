"""Exporters for SDK pipelines of people's own: a real SDK in front, a recording or real tracker behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar, TypeAlias

import numpy as np
import pytest
from mlflow import MlflowClient
from opentelemetry.context import attach, detach, get_value
from opentelemetry.sdk.metrics import (
    AlwaysOnExemplarFilter,
    Counter,
    Histogram,
    MeterProvider,
    UpDownCounter,
    _Gauge,
)
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import StatusCode
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from otel_tracking.records import Batch, Kind, Media, MediaKind, RunInfo, RunStatus, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter, TrackerSpanExporter
from otel_tracking.tracker import Pacing, Tracker
from otel_tracking_exporters._wandb_file import read_history

HOUR = 3_600_000
SYNCHRONOUS: tuple[type, ...] = (Counter, UpDownCounter, Histogram, _Gauge)
CUMULATIVE = dict.fromkeys(SYNCHRONOUS, AggregationTemporality.CUMULATIVE)


@dataclass
class Log:
    """What the trackers of one test were told."""

    runs: list[RunInfo] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    media: list[Media] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    finished: list[RunStatus] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why runs failed."""
    before_write: Callable[[], object] = lambda: None

    def points(self, tag: str) -> list[tuple[int, float]]:
        """(step, value) of a series, in the order written."""
        return [(step, value) for t, step, _, value in self.rows() if t == tag]

    def tags(self) -> set[str]:
        return {tag for tag, *_ in self.rows()}

    def rows(self) -> Iterator[tuple[str, int, int, float]]:
        for batch in self.batches:
            columns = zip(
                batch.index.tolist(),
                batch.steps.tolist(),
                batch.times.tolist(),
                batch.values.tolist(),
                strict=True,
            )
            for index, step, time_ns, value in columns:
                yield batch.series[index].tag, step, time_ns, value


RunScript: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]


class RecordingTracker(Tracker):
    name = "recording"
    pacing = Pacing(max_points=3)
    log: ClassVar[Log]

    def start(self, run: RunInfo) -> int:
        self._note()
        self.log.runs.append(run)
        return run.position

    def write(self, batch: Batch) -> Written:
        self._note()
        self.log.before_write()
        self.log.batches.append(batch)
        return Written(len(batch))

    def write_media(self, media: Media) -> Written:
        self._note()
        self.log.media.append(media)
        return Written(1)

    def confirm(self, *, flush: bool = False) -> int:
        self._note()
        return 0

    def finish(self, status: RunStatus) -> None:
        self._note()
        self.log.finished.append(status)
        if self.failure:
            self.log.reasons.append(self.failure.reason)

    @property
    def native(self) -> Any:
        return self.log

    def _note(self) -> None:
        self.log.threads.add(threading.get_ident())


class MetricExporter(TrackerMetricExporter):
    tracker = RecordingTracker


class SpanExporter(TrackerSpanExporter):
    tracker = RecordingTracker


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(RecordingTracker, "log", Log(), raising=False)
    monkeypatch.setenv("OTEL_TRACKING_PROJECT_DIR", str(tmp_path))
    monkeypatch.delenv("OTEL_TRACKING_PROJECT", raising=False)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    return RecordingTracker.log


@pytest.fixture
def pipeline() -> Iterator[Callable[..., MeterProvider]]:
    providers: list[MeterProvider] = []

    def make(exporter: TrackerMetricExporter | None = None, **options: Any) -> MeterProvider:
        reader = PeriodicExportingMetricReader(exporter or MetricExporter(), HOUR)
        providers.append(MeterProvider([reader], shutdown_on_exit=False, **options))
        return providers[-1]

    yield make
    for provider in providers:
        provider.shutdown()


class TestMetrics:
    def test_a_gauge_is_a_point_each_time_it_was_set_and_only_then(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline()
        loss = provider.get_meter("train").create_gauge("train/loss", unit="nat", description="cross entropy")
        before = time.time_ns()
        for value in (0.5, 0.5, 0.1 + 0.2):
            loss.set(value)
            provider.force_flush()
            provider.force_flush()
        assert log.points("train/loss") == [(0, 0.5), (1, 0.5), (2, 0.1 + 0.2)]
        times = [time_ns for _, _, time_ns, _ in log.rows()]
        assert before <= times[0] < times[1] < times[2] <= time.time_ns()
        series = log.batches[0].series[0]
        assert (series.name, series.kind, series.unit, series.description, series.meter) == (
            "train/loss",
            Kind.GAUGE,
            "nat",
            "cross entropy",
            "train",
        )

    def test_an_unchanged_gauge_is_not_repeated_when_cumulative_is_asked_for(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline(MetricExporter(preferred_temporality=CUMULATIVE))
        loss = provider.get_meter("train").create_gauge("loss")
        for step, value in ((10, 0.5), (11, 0.5), (10, 0.25)):
            loss.set(value, {"training.step": step})
            provider.force_flush()
            provider.force_flush()
        assert log.points("loss") == [(10, 0.5), (11, 0.5), (10, 0.25)]

    def test_the_step_is_taken_from_the_attribute_and_its_aliases(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline()
        loss = provider.get_meter("train").create_gauge("loss")
        for attributes in (
            {"training.step": 7},
            {"step": 3, "fold": 1},
            {"global_step": 9},
            {"step": "late"},
        ):
            loss.set(1.0, attributes)
        provider.force_flush()
        assert sorted(log.rows())[0][0] == "loss"
        assert log.points("loss") == [(7, 1.0), (9, 1.0)]
        assert log.points("loss/fold.1") == [(3, 1.0)]
        assert log.points("loss/step.late") == [(0, 1.0)]
        groups = {series.tag: series.group for batch in log.batches for series in batch.series}
        assert groups == {"loss": "", "loss/fold.1": "loss", "loss/step.late": "loss"}

    @pytest.mark.parametrize("preferred", [{}, CUMULATIVE], ids=["delta", "cumulative"])
    def test_counters_are_running_totals_and_not_repeated(
        self, log: Log, pipeline: Callable[..., MeterProvider], preferred: dict[type, AggregationTemporality]
    ) -> None:
        provider = pipeline(MetricExporter(preferred_temporality=preferred))
        meter = provider.get_meter("train")
        tokens = meter.create_counter("tokens")
        queue = meter.create_up_down_counter("queue")
        for step in (1, 2, 3):
            tokens.add(10 * step, {"training.step": step})
            queue.add(1 if step < 3 else -2)
            provider.force_flush()
            provider.force_flush()
        assert log.points("tokens") == [(1, 10.0), (2, 30.0), (3, 60.0)]
        assert log.points("queue") == [(0, 1.0), (1, 2.0), (2, 0.0)]
        kinds = {series.tag: series.kind for batch in log.batches for series in batch.series}
        assert kinds == {"tokens": Kind.COUNTER, "queue": Kind.UP_DOWN_COUNTER}

    def test_a_cumulative_total_is_not_rounded_again(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline(MetricExporter(preferred_temporality=CUMULATIVE))
        cost = provider.get_meter("train").create_counter("cost")
        expected: list[float] = []
        for n in range(1, 8):
            cost.add(0.1 * n)
            expected.append(0.1 * n + (expected[-1] if expected else 0))
            provider.force_flush()
        assert [value for _, value in log.points("cost")] == expected

    @pytest.mark.parametrize("aggregation", [{}, {Histogram: ExponentialBucketHistogramAggregation()}])
    def test_a_histogram_is_four_series(
        self, log: Log, pipeline: Callable[..., MeterProvider], aggregation: dict[type, Any]
    ) -> None:
        provider = pipeline(MetricExporter(preferred_aggregation=aggregation))
        latency = provider.get_meter("train").create_histogram("latency", unit="s")
        for values in ((1.0, 4.0), (2.0,)):
            for value in values:
                latency.record(value)
            provider.force_flush()
            provider.force_flush()
        assert log.points("latency/count") == [(0, 2.0), (1, 3.0)]
        assert log.points("latency/sum") == [(0, 5.0), (1, 7.0)]
        assert log.points("latency/min") == [(0, 1.0), (1, 2.0)]
        assert log.points("latency/max") == [(0, 4.0), (1, 2.0)]
        units = {series.tag: series.unit for batch in log.batches for series in batch.series}
        assert units == {"latency/count": "", "latency/sum": "s", "latency/min": "s", "latency/max": "s"}
        assert {series.group for batch in log.batches for series in batch.series} == {"latency"}

    def test_a_cumulative_histogram_is_not_repeated(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline(MetricExporter(preferred_temporality=CUMULATIVE))
        latency = provider.get_meter("train").create_histogram("latency")
        for value in (0.0, 0.0, 3.0):
            latency.record(value)
            provider.force_flush()
            provider.force_flush()
        assert log.points("latency/count") == [(0, 1.0), (1, 2.0), (2, 3.0)]
        assert log.points("latency/max") == [(0, 0.0), (1, 0.0), (2, 3.0)]

    @pytest.mark.parametrize("temporality", [{}, CUMULATIVE])
    def test_a_histogram_of_explicit_buckets_is_a_distribution(
        self, log: Log, pipeline: Callable[..., MeterProvider], temporality: dict[type, Any]
    ) -> None:
        provider = pipeline(MetricExporter(preferred_temporality=temporality))
        latency = provider.get_meter("train").create_histogram(
            "latency", "s", explicit_bucket_boundaries_advisory=[1.0, 2.0, 5.0]
        )
        for values in ((0.5, 1.5, 1.5, 7.0), (1.5, 2.5)):
            for value in values:
                latency.record(value, {"kind": "io"})
            provider.force_flush()
            provider.force_flush()
        first, second = log.media
        assert {media.kind for media in log.media} == {MediaKind.HISTOGRAM}
        assert {media.tag for media in log.media} == {"latency/distribution/kind.io"}
        assert [media.step for media in log.media] == [0, 1]
        assert first.details["edges"] == [0.5, 1.0, 2.0, 5.0, 7.0]
        assert first.details["counts"] == [1.0, 2.0, 0.0, 1.0]
        assert (first.details["count"], first.details["sum"]) == (4.0, 10.5)
        assert (first.details["min"], first.details["max"]) == (0.5, 7.0)
        assert second.details["counts"] == [1.0, 1.0]
        assert (second.details["count"], second.details["sum"]) == (2.0, 4.0)
        # Extremes of a cumulative stream are those since it began.
        ends = [1.5, 2.0, 2.5] if not temporality else [0.5, 2.0, 7.0]
        assert second.details["edges"] == ends
        assert first.position < second.position

    @pytest.mark.parametrize("temporality", [{}, CUMULATIVE])
    def test_a_histogram_of_exponential_buckets_is_a_distribution(
        self, log: Log, pipeline: Callable[..., MeterProvider], temporality: dict[type, Any]
    ) -> None:
        provider = pipeline(
            MetricExporter(
                preferred_aggregation={Histogram: ExponentialBucketHistogramAggregation(max_size=20)},
                preferred_temporality=temporality,
            )
        )
        sizes = provider.get_meter("train").create_histogram("sizes")
        random = Random(4)
        for step in (3, 8):
            values = [random.lognormvariate(0, step) for _ in range(500)]
            for value in [*values, 0.0]:
                sizes.record(value, {"training.step": 5})
            provider.force_flush()
            details = log.media[-1].details
            assert (log.media[-1].tag, log.media[-1].step) == ("sizes/distribution", 5)
            assert details["count"] == sum(details["counts"]) == 501
            assert details["sum"] == pytest.approx(sum(values))
            edges = details["edges"]
            for count, low, high in zip(details["counts"][1:], edges[1:], edges[2:], strict=False):
                assert count == sum(low < value <= high for value in values)
        assert len(log.media) == 2

    def test_every_observation_of_an_observable_gauge_is_a_point(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        from opentelemetry.metrics import Observation

        provider = pipeline()
        meter = provider.get_meter("system")
        meter.create_observable_gauge("memory", [lambda _: [Observation(5)]])
        meter.create_observable_counter("bytes", [lambda _: [Observation(100)]])
        provider.force_flush()
        provider.force_flush()
        assert log.points("memory") == [(0, 5.0), (1, 5.0)]
        assert log.points("bytes") == [(0, 100.0)]

    def test_exemplars_give_the_step_where_a_view_drops_the_attribute(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline(
            views=[View(instrument_name="*", attribute_keys={"phase"})],
            exemplar_filter=AlwaysOnExemplarFilter(),
        )
        meter = provider.get_meter("train")
        loss, tokens, latency = (
            meter.create_gauge("loss"),
            meter.create_counter("tokens"),
            meter.create_histogram("lat"),
        )
        loss.set(0.5, {"training.step": 40, "phase": "warm"})
        tokens.add(3, {"training.step": 41})
        latency.record(1.0, {"training.step": 42})
        latency.record(7.0, {"training.step": 43})
        provider.force_flush()
        assert log.points("loss/phase.warm") == [(40, 0.5)]
        assert log.points("tokens") == [(41, 3.0)]
        assert log.points("lat/count") == [(43, 2.0)]
        assert log.points("lat/max") == [(43, 7.0)]

    def test_two_meters_share_a_name_and_not_a_tag(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline()
        for meter in ("train", "validation"):
            provider.get_meter(meter).create_gauge("accuracy").set(1.0)
        provider.force_flush()
        assert log.tags() == {"accuracy", "validation/accuracy"}

    def test_batches_hold_no_more_than_the_tracker_takes_and_positions_rise(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline()
        loss = provider.get_meter("train").create_gauge("loss")
        for step in range(7):
            loss.set(float(step), {"training.step": step})
        provider.force_flush()
        loss.set(7.0, {"training.step": 7})
        provider.force_flush()
        assert [len(batch) for batch in log.batches] == [3, 3, 1, 1]
        assert [p for batch in log.batches for p in batch.positions.tolist()] == list(range(1, 9))
        assert log.points("loss") == [(n, float(n)) for n in range(8)]


class TestSpans:
    @pytest.fixture
    def provider(self, log: Log) -> Iterator[TracerProvider]:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(SpanExporter()))
        yield provider
        provider.shutdown()

    def test_durations_at_their_step_or_their_parents(self, log: Log, provider: TracerProvider) -> None:
        tracer = provider.get_tracer("train")
        start = 1_700_000_000_000_000_000
        for step in (5, 6):
            with tracer.start_as_current_span("step", attributes={"training.step": step}):
                middle = tracer.start_span("middle", start_time=start)
                middle.end(end_time=start + 1_500_000_000)
        tracer.start_span("alone", start_time=start).end(end_time=start + 250_000_000)
        provider.force_flush()
        assert log.points("time/middle") == [(5, 1.5), (6, 1.5)]
        assert log.points("time/alone") == [(0, 0.25)]
        assert [step for step, _ in log.points("time/step")] == [5, 6]
        assert [t for tag, _, t, _ in log.rows() if tag == "time/middle"] == [start + 1_500_000_000] * 2
        assert log.batches[0].series[0].unit == "s"

    def test_failed_spans_are_counted(self, log: Log, provider: TracerProvider) -> None:
        tracer = provider.get_tracer("train")
        for step in range(4):
            with tracer.start_as_current_span("load", attributes={"training.step": step}) as span:
                if step % 2:
                    span.set_status(StatusCode.ERROR)
        provider.force_flush()
        assert log.points("errors/load") == [(1, 1.0), (3, 2.0)]

    def test_spans_that_are_each_others_parents_end(self, log: Log) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext

        one, two = (SpanContext(1, n, is_remote=False) for n in (1, 2))
        exporter = SpanExporter()
        exporter.export(
            [
                ReadableSpan("a", context=one, parent=two, start_time=1, end_time=2),
                ReadableSpan("b", context=two, parent=one, start_time=1, end_time=2),
            ]
        )
        exporter.shutdown()
        assert log.tags() == {"time/a", "time/b"}


class TestRun:
    def test_metrics_and_spans_write_into_one_run_which_the_last_one_closes(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        meters, spans = pipeline(), TracerProvider(shutdown_on_exit=False)
        spans.add_span_processor(SimpleSpanProcessor(SpanExporter()))
        meters.get_meter("train").create_gauge("loss").set(1.0)
        meters.shutdown()
        assert log.points("loss") == [(0, 1.0)]
        assert log.finished == []
        with spans.get_tracer("train").start_as_current_span("late"):
            pass
        spans.shutdown()
        assert log.finished == [RunStatus.FINISHED]
        assert len(log.runs) == 1
        assert [p for batch in log.batches for p in batch.positions.tolist()] == [1, 2]
        assert len(log.threads) == 1

    def test_the_next_pipeline_is_another_run(self, log: Log) -> None:
        for _ in range(2):
            provider = MeterProvider([PeriodicExportingMetricReader(MetricExporter(), HOUR)])
            provider.get_meter("train").create_gauge("loss").set(1.0)
            provider.shutdown()
        assert len({run.run_id for run in log.runs}) == 2
        assert log.finished == [RunStatus.FINISHED] * 2

    def test_an_exception_that_ends_the_program_makes_the_run_fail(
        self, log: Log, pipeline: Callable[..., MeterProvider], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        provider = pipeline()
        provider.get_meter("train").create_gauge("loss").set(1.0)
        monkeypatch.setattr(sys, "last_value", ValueError("no data"), raising=False)
        provider.shutdown()
        assert log.finished == [RunStatus.FAILED]
        assert log.reasons == ["ValueError: no data"]

    def test_nothing_exported_leaves_no_run(self, log: Log, tmp_path: Path) -> None:
        exporter = MetricExporter()
        PeriodicExportingMetricReader(exporter, HOUR).shutdown()
        exporter.shutdown()
        assert log.runs == []
        assert log.finished == []
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("argument", "variable", "service", "expected"),
        [
            ("arg", "env", "svc", "arg"),
            (None, "env", "svc", "env"),
            (None, "", "svc", "svc"),
            (None, "", None, "default"),
            ("../../x", "", None, "../../x"),
        ],
    )
    def test_project(
        self,
        log: Log,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        pipeline: Callable[..., MeterProvider],
        argument: str | None,
        variable: str,
        service: str | None,
        expected: str,
    ) -> None:
        monkeypatch.setenv("OTEL_TRACKING_PROJECT", variable)
        resource = Resource.create({"service.name": service} if service else {})
        provider = pipeline(MetricExporter(project=argument, init_kwargs={"a": 1}), resource=resource)
        provider.get_meter("train").create_gauge("loss").set(1.0)
        provider.force_flush()
        (run,) = log.runs
        assert run.project == expected
        assert run.options == {"a": 1}
        assert run.name == run.run_id == run.directory.name
        assert run.logging_dir == tmp_path
        assert run.directory.parent.parent.resolve() == tmp_path
        assert run.directory.is_dir()
        assert not run.resumed

    def test_the_rank_comes_from_the_resource(self, log: Log, pipeline: Callable[..., MeterProvider]) -> None:
        resource = Resource({"training.rank": 3, "training.world_size": 4, "training.local_rank": 1})
        provider = pipeline(MetricExporter(run_name="bert"), resource=resource)
        provider.get_meter("train").create_gauge("loss").set(1.0)
        provider.force_flush()
        (run,) = log.runs
        assert (run.rank.rank, run.rank.world_size, run.rank.local_rank, run.rank.source) == (
            3,
            4,
            1,
            "resource",
        )
        assert run.name == "bert-rank3"
        assert run.resource["training.rank"] == 3


class TestFailures:
    def test_a_failed_export_is_written_by_the_next(
        self, log: Log, pipeline: Callable[..., MeterProvider], caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise OSError("no route")

        provider = pipeline()
        meter = provider.get_meter("train")
        tokens = meter.create_counter("tokens")
        log.before_write = fail
        for _ in range(3):
            tokens.add(1)
            provider.force_flush()
        assert log.batches == []
        log.before_write = lambda: None
        tokens.add(1)
        provider.force_flush()
        assert log.points("tokens") == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]
        assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
            "exporter to recording: OSError: no route"
        ]

    def test_a_tracker_that_starts_late_gets_everything_in_one_run(
        self,
        log: Log,
        pipeline: Callable[..., MeterProvider],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(self: Tracker, run: RunInfo) -> int:
            raise ConnectionError("later")

        provider = pipeline()
        loss = provider.get_meter("train").create_gauge("loss")
        with monkeypatch.context() as patch:
            patch.setattr(RecordingTracker, "start", refuse)
            for value in (1.0, 2.0):
                loss.set(value)
                provider.force_flush()
        loss.set(3.0)
        provider.force_flush()
        assert log.points("loss") == [(0, 1.0), (1, 2.0), (2, 3.0)]
        assert [run.directory for run in log.runs] == list((tmp_path / "default").iterdir())

    def test_points_that_wait_are_bounded_and_the_loss_is_said(
        self,
        log: Log,
        pipeline: Callable[..., MeterProvider],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def fail() -> None:
            raise OSError("no route")

        monkeypatch.setattr("otel_tracking.sdk_run._BACKLOG_POINTS", 3)
        log.before_write = fail
        provider = pipeline()
        loss = provider.get_meter("train").create_gauge("loss")
        for step in range(5):
            loss.set(float(step), {"training.step": step})
            provider.force_flush()
        log.before_write = lambda: None
        provider.force_flush()
        assert log.points("loss") == [(2, 2.0), (3, 3.0), (4, 4.0)]
        assert log.batches[0].positions.tolist() == [3, 4, 5]
        assert "has not taken 3 points; older ones are lost" in caplog.text

    def test_what_never_could_be_written_is_said_at_the_end(
        self, log: Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail() -> None:
            raise OSError("no route")

        log.before_write = fail
        provider = MeterProvider([PeriodicExportingMetricReader(MetricExporter(), HOUR)])
        provider.get_meter("train").create_gauge("loss").set(1.0)
        provider.shutdown()
        assert "1 points could not be written and are lost" in caplog.text
        assert log.finished == [RunStatus.FINISHED]

    def test_a_tracker_that_hangs_delays_no_longer_than_the_timeout(
        self, log: Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        release = threading.Event()
        log.before_write = release.wait
        provider = MeterProvider(
            [PeriodicExportingMetricReader(MetricExporter(), HOUR)], shutdown_on_exit=False
        )
        provider.get_meter("train").create_gauge("loss").set(1.0)
        began = time.monotonic()
        provider.force_flush(200)
        provider.shutdown(200)
        assert time.monotonic() - began < 20
        assert "longer than the export's timeout" in caplog.text
        release.set()

    def test_rejected_points_are_named_once(
        self,
        log: Log,
        pipeline: Callable[..., MeterProvider],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(
            RecordingTracker, "write", lambda self, batch: Written(0, rejected={"too odd": range(len(batch))})
        )
        provider = pipeline()
        loss = provider.get_meter("train").create_gauge("loss")
        for _ in range(2):
            loss.set(1.0)
            provider.force_flush()
        assert caplog.text.count("1 of 1 were refused, and later ones will be: too odd") == 1

    def test_what_the_tracker_itself_records_does_not_come_back(self, log: Log) -> None:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(SpanExporter()))
        tracer = provider.get_tracer("http")
        log.before_write = lambda: tracer.start_span("POST").end()
        tracer.start_span("step").end()
        provider.shutdown()
        assert log.tags() == {"time/step"}

    def test_the_callers_context_reaches_the_tracker(self, log: Log) -> None:
        from opentelemetry.context import set_value

        seen: list[object] = []
        log.before_write = lambda: seen.append(get_value("quiet"))
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(SpanExporter()))
        token = attach(set_value("quiet", True))
        provider.get_tracer("train").start_span("step").end()
        detach(token)
        provider.shutdown()
        assert seen == [True]

    def test_a_forked_child_exports_nothing_and_its_own_exporter_works(
        self, log: Log, pipeline: Callable[..., MeterProvider]
    ) -> None:
        provider = pipeline()
        loss = provider.get_meter("train").create_gauge("loss")
        loss.set(1.0)
        provider.force_flush()
        loss.set(2.0)
        child = os.fork()
        if child == 0:
            provider.force_flush()
            provider.shutdown()
            inherited = len(log.batches)
            own = MeterProvider(
                [PeriodicExportingMetricReader(MetricExporter(), HOUR)], shutdown_on_exit=False
            )
            own.get_meter("child").create_gauge("mine").set(3.0)
            own.shutdown()
            os._exit(0 if (inherited, log.points("mine"), len(log.runs)) == (1, [(0, 3.0)], 2) else 1)
        assert os.waitpid(child, 0)[1] == 0
        provider.force_flush()
        assert log.points("loss") == [(0, 1.0), (1, 2.0)]


SCRIPT = """
from opentelemetry import metrics, trace
from opentelemetry.sdk._configuration import _OTelSDKConfigurator

# What `opentelemetry-instrument` does: its distro's configurator is an empty subclass of this.
_OTelSDKConfigurator().configure()

meter, tracer = metrics.get_meter("train"), trace.get_tracer("train")
loss, tokens = meter.create_gauge("loss"), meter.create_counter("tokens")
latency = meter.create_histogram("latency")
flush = metrics.get_meter_provider().force_flush
for step in range(3):
    with tracer.start_as_current_span("step", attributes={"training.step": 10 + step}):
        loss.set(0.1 * step, {"training.step": 10 + step})
        tokens.add(100)
        latency.record(2.0 + step)
    flush()
    flush()
loss.set(0.5, {"training.step": 13})  # exported at exit, as the spans are
"""
LOSS = [(10, 0.0), (11, 0.1), (12, 0.2), (13, 0.5)]
TOKENS = [(0, 100.0), (1, 200.0), (2, 300.0)]


Stored: TypeAlias = dict[str, list[tuple[int, float]]]
"""(step, value) by tag, in the order stored."""


def stored_by_tensorboard(directory: Path) -> Stored:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def stored_by_wandb(directory: Path) -> Stored:
    (folder,) = (directory / "wandb").glob("offline-run-*")
    stored: Stored = {}
    for row in read_history(folder):
        step = row["training/step"]
        for tag, value in row.items():
            if not tag.startswith(("_", "latency/distribution")) and tag != "training/step":
                stored.setdefault(tag, []).append((step, float(value)))
    return stored


def stored_by_mlflow(directory: Path) -> Stored:
    client = MlflowClient(f"sqlite:///{directory.parent.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bert")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    return {
        tag: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, tag)]
        for tag in run.data.metrics
        if not tag.startswith("latency/distribution")
    }


@pytest.mark.mlflow_database("out")
@pytest.mark.parametrize(
    ("tracker", "read", "resolution"),
    [
        ("tensorboard", stored_by_tensorboard, np.float32),
        ("wandb", stored_by_wandb, np.float64),
        ("mlflow", stored_by_mlflow, np.float64),
    ],
)
def test_a_real_tracker_named_by_opentelemetrys_own_variables(
    tmp_path: Path,
    run_script: RunScript,
    tracker: str,
    read: Callable[[Path], Stored],
    resolution: type[np.floating[Any]],
) -> None:
    done = run_script(
        SCRIPT,
        env={
            "OTEL_METRICS_EXPORTER": tracker,
            "OTEL_TRACES_EXPORTER": tracker,
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_SERVICE_NAME": "bert",
            "OTEL_TRACKING_PROJECT_DIR": str(tmp_path / "out"),
        },
    )
    assert "exporter to" not in done.stderr
    (directory,) = (tmp_path / "out" / "bert").iterdir()
    stored = read(directory)
    assert stored["loss"] == [(step, float(resolution(value))) for step, value in LOSS]
    assert stored["tokens"] == TOKENS
    assert stored["latency/count"] == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert stored["latency/sum"] == [(0, 2.0), (1, 5.0), (2, 9.0)]
    assert stored["latency/min"] == stored["latency/max"] == [(0, 2.0), (1, 3.0), (2, 4.0)]
    durations = stored["time/step"]
    assert [step for step, _ in durations] == [10, 11, 12]
    assert all(0 < value < 60 for _, value in durations)
    assert set(stored) == {
        "loss",
        "tokens",
        "time/step",
        *(f"latency/{f}" for f in ("count", "sum", "min", "max")),
    }
