"""TensorBoard at the end of a plain OpenTelemetry SDK pipeline."""

from __future__ import annotations

from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    LegacyEventFileLoader,
)

from otel_tracking_exporters.tensorboard import TensorBoardMetricExporter, TensorBoardSpanExporter


def scalars_under(directory: Path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for path in sorted(directory.rglob("events.out.tfevents.*"))
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def test_a_periodic_reader_exports_what_was_set_and_repeats_nothing(tmp_path: Path) -> None:
    exporter = TensorBoardMetricExporter(project_dir=tmp_path)
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)])
    loss = provider.get_meter("train").create_gauge("loss")
    loss.set(0.5, {"training.step": 7})
    provider.force_flush()
    provider.force_flush()
    loss.set(0.25, {"training.step": 8})
    provider.shutdown()
    assert scalars_under(tmp_path) == [("loss", 7, 0.5), ("loss", 8, 0.25)]


def test_a_span_is_a_duration_at_its_step(tmp_path: Path) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(TensorBoardSpanExporter(project_dir=tmp_path)))
    span = provider.get_tracer("train").start_span(
        "epoch", attributes={"training.step": 3}, start_time=1_000_000_000
    )
    span.end(1_500_000_000)
    provider.shutdown()
    assert ("time/epoch", 3, 0.5) in scalars_under(tmp_path)
