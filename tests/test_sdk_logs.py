"""Log exporters for SDK pipelines of people's own: a real SDK in front, a recording or real one behind."""

from __future__ import annotations

import logging
import tomllib
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from subprocess import CompletedProcess
from typing import ClassVar

import pytest
from opentelemetry import baggage
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import (
    BatchLogRecordProcessor,
    LogRecordExporter,
    LogRecordExportResult,
    SimpleLogRecordProcessor,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otel_tracking import testing
from otel_tracking.records import Text, Written
from otel_tracking.sdk_exporters import TrackerMetricExporter
from otel_tracking.sdk_logs import TrackerLogExporter
from otel_tracking.steps import set_step
from otel_tracking.steps import step as step_scope
from tests.contract.place import Place
from tests.contract.stored_media import READERS

RunScript = Callable[..., CompletedProcess[str]]


class RecordingTracker(testing.RecordingTracker):
    made: ClassVar[list[RecordingTracker]] = []

    def __init__(self) -> None:
        super().__init__(faults={"write_text": self.fail})
        self.made.append(self)

    def fail(self) -> None:
        if failures:
            raise failures.pop()

    def write_text(self, text: Text) -> Written:
        logging.getLogger("recording.writer").error("a tracker that logs what it does")
        return super().write_text(text)


failures: list[Exception] = []


class LogExporter(TrackerLogExporter):
    tracker = RecordingTracker


class MetricExporter(TrackerMetricExporter):
    tracker = RecordingTracker


@pytest.fixture(autouse=True)
def _of_one_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecordingTracker, "made", [])
    monkeypatch.setenv("OTEL_TRACKING_PROJECT_DIR", str(tmp_path))
    failures.clear()


@pytest.fixture
def exporter() -> Iterator[LogExporter]:
    exporter = LogExporter()
    yield exporter
    exporter.shutdown()


@pytest.fixture
def provider(exporter: LogExporter) -> LoggerProvider:
    provider = LoggerProvider(resource=Resource({"service.name": "trainer"}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    return provider


def texts() -> list[tuple[str, int, str]]:
    (tracker,) = RecordingTracker.made
    return [(text.tag, text.step, text.text) for text in tracker.texts]


def warn(provider: LoggerProvider, body: str, name: str = "train.loop", **options: object) -> None:
    record = LogRecord(body=body, severity_number=SeverityNumber.WARN, **options)  # type: ignore[call-overload]
    provider.get_logger(name).emit(record)


def test_records_are_texts_with_the_step_that_they_carry(provider: LoggerProvider) -> None:
    set_step(99)  # of when they are exported
    spans = TracerProvider(shutdown_on_exit=False).get_tracer("train")
    warn(provider, "first")
    warn(provider, "attribute", attributes={"training.step": 7}, timestamp=123)
    with step_scope(8):
        warn(provider, "scope")
    with spans.start_as_current_span("epoch", attributes={"training.step": 9}):
        warn(provider, "span")
    warn(provider, "baggage", context=baggage.set_baggage("training.step", "10"))
    warn(provider, "second")
    warn(provider, "of another logger", "eval")
    assert texts() == [
        ("logs/train", 0, "WARN train.loop: first"),
        ("logs/train", 7, "WARN train.loop: attribute"),
        ("logs/train", 8, "WARN train.loop: scope"),
        ("logs/train", 9, "WARN train.loop: span"),
        ("logs/train", 10, "WARN train.loop: baggage"),
        ("logs/train", 1, "WARN train.loop: second"),
        ("logs/eval", 0, "WARN eval: of another logger"),
    ]
    (tracker,) = RecordingTracker.made
    assert tracker.texts[1].time == 123
    assert tracker.run is not None
    assert tracker.run.project == "trainer"


def test_it_writes_into_the_run_of_the_trackers_other_exporters(provider: LoggerProvider) -> None:
    metrics = MeterProvider(
        [PeriodicExportingMetricReader(MetricExporter(), 3_600_000)], shutdown_on_exit=False
    )
    loss = metrics.get_meter("train").create_gauge("loss")
    for value in (1.0, 2.0):
        loss.set(value)
        metrics.force_flush()
        warn(provider, f"loss is {value}")
    metrics.shutdown()
    (tracker,) = RecordingTracker.made
    assert tracker.calls.count("finish") == 0
    assert [point.value for point in tracker.points("loss")] == [1.0, 2.0]
    assert [text.text for text in tracker.texts] == [
        "WARN train.loop: loss is 1.0",
        "WARN train.loop: loss is 2.0",
    ]
    assert [text.position for text in tracker.texts] == [2, 4]


def test_what_a_tracker_says_while_it_writes_is_not_exported(exporter: LogExporter) -> None:
    """By a batch processor, whose thread would take it up again and again."""
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(exporter, schedule_delay_millis=3_600_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        handler = LoggingHandler(logger_provider=provider)
    logging.getLogger().addHandler(handler)
    try:
        logging.getLogger("train").error("once")
        logging.getLogger("otel_tracking.recorder").error("ours")
        for _ in range(3):
            provider.force_flush()
    finally:
        logging.getLogger().removeHandler(handler)
    assert texts() == [("logs/train", 0, "ERROR train: once")]


def test_what_could_not_be_written_is_written_with_the_next_export(
    exporter: LogExporter, provider: LoggerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    failures.append(OSError("the tracker is away"))
    warn(provider, "first")
    assert "OSError: the tracker is away" in caplog.text
    warn(provider, "second")
    assert [text for _, _, text in texts()] == ["WARN train.loop: first", "WARN train.loop: second"]
    assert exporter.force_flush()
    assert exporter.export([]) is LogRecordExportResult.SUCCESS


def test_after_its_shutdown_an_export_fails(exporter: LogExporter, provider: LoggerProvider) -> None:
    warn(provider, "first")
    provider.shutdown()
    provider.shutdown()
    (tracker,) = RecordingTracker.made
    assert tracker.status == "finished"
    assert [text for _, _, text in texts()] == ["WARN train.loop: first"]


# The trackers' own


POINTS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]


def exporter_of(tracker: str) -> type[TrackerLogExporter]:
    """What the entry point of that name loads."""
    target = POINTS["opentelemetry_logs_exporter"][tracker]
    loaded: type[TrackerLogExporter] = EntryPoint(tracker, target, "opentelemetry_logs_exporter").load()
    assert issubclass(loaded, TrackerLogExporter)
    assert issubclass(loaded, LogRecordExporter)
    return loaded


@pytest.mark.parametrize("tracker", POINTS["otel_tracking_trackers"])
def test_each_tracker_has_one(tracker: str) -> None:
    assert exporter_of(tracker).tracker.name == tracker


@pytest.mark.parametrize("tracker", ["tensorboard", "dvclive", "wandb"])
def test_a_tracker_has_the_texts(tracker: str, tmp_path: Path) -> None:
    exporter = exporter_of(tracker)(project="p", project_dir=tmp_path)
    provider = LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    warn(provider, "high loss", attributes={"training.step": 3})
    warn(provider, "again", attributes={"training.step": 3})
    provider.shutdown()
    (run,) = (tmp_path / "p").iterdir()
    found = READERS[tracker](Place(tmp_path, tmp_path, "p", run.name))
    assert sorted((entry.name, entry.step, entry.content) for entry in found if entry.form == "text") == [
        ("logs/train", 3, "WARN train.loop: again"),
        ("logs/train", 3, "WARN train.loop: high loss"),
    ]


BY_VARIABLE = """
from opentelemetry.sdk._configuration import _OTelSDKConfigurator
_OTelSDKConfigurator().configure()
from opentelemetry import _logs
_logs.get_logger("train").emit(body="by variable", attributes={"training.step": 5})
"""


def test_the_sdk_is_configured_by_variable(run_script: RunScript, tmp_path: Path) -> None:
    run_script(BY_VARIABLE, env={"OTEL_LOGS_EXPORTER": "tensorboard", "OTEL_TRACKING_PROJECT": "p"})
    (run,) = (tmp_path / "p").iterdir()
    found = READERS["tensorboard"](Place(tmp_path, tmp_path, "p", run.name))
    assert [(entry.name, entry.step, entry.content) for entry in found] == [
        ("logs/train", 5, "train: by variable")
    ]
