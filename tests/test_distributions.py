"""Distributions of Histogram instruments: what is counted, when, and where it ends up."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from opentelemetry import metrics
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

import otel_tracking as ot
from otel_tracking import settings
from otel_tracking.distributions import Values
from otel_tracking.journal.entries import Entry
from otel_tracking.journal.format import RecordType
from otel_tracking.media.histograms import explicit_details
from otel_tracking.reading import journals, read_items, read_run
from otel_tracking_exporters._wandb_file import read_history
from tests import readback

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def recorded(run: Path) -> list[Entry]:
    """The distributions in a run's journal."""
    ((_, journal),) = journals(run)
    items = [item for item, _ in read_items(journal)]
    return [item for item in items if isinstance(item, Entry) and item.type == RecordType.MEDIA]


def counted(*values: float, step: int = 0) -> dict[str, Any]:
    found = Values()
    found.add(np.array(values), step)
    return found.details()


@given(st.lists(FINITE, min_size=1, max_size=200))
def test_any_values(values: list[float]) -> None:
    details = counted(*values)
    counts, edges = details["counts"], details["edges"]
    assert len(edges) == len(counts) + 1 <= 513
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()
    assert sum(counts) == details["count"] == len(values)
    assert (details["min"], details["max"]) == (min(values), max(values))
    if min(values) < max(values):
        assert (edges[0], edges[-1]) == (min(values), max(values))
    # An edge is a logarithm rounded: values within a rounding of it may be on either side.
    ordered = np.sort(values)
    below = np.concatenate([[0], np.cumsum(counts)])
    for edge, number in zip(edges[1:-1], below[1:-1], strict=True):
        near = abs(edge) * 1e-12
        assert np.searchsorted(ordered, edge - near) <= number
        assert number <= np.searchsorted(ordered, edge + near, side="right")


def test_buckets_are_narrow() -> None:
    values = np.random.default_rng(1).normal(3, 0.5, 100_000)
    details = counted(*values)
    edges = np.array(details["edges"])
    assert (edges[1:] / edges[:-1]).max() < 1.045
    assert details["sum"] == pytest.approx(values.sum())
    assert details["sum_squares"] == pytest.approx((values**2).sum(), rel=1e-2)


def test_values_come_in_parts() -> None:
    parts = np.random.default_rng(2).normal(0, 10, (5, 1000))
    found = Values()
    for step, part in enumerate(parts):
        found.add(part, step)
    whole = counted(*parts.ravel())
    assert found.step == 4
    assert found.details() == {**whole, "sum": pytest.approx(whole["sum"])}


def test_values_that_are_no_numbers() -> None:
    found = Values()
    found.add(np.array([math.nan, math.inf, -math.inf]), 3)
    assert found.count == 0
    found.add(np.array([math.nan, 2.0, 3.0]), 4)
    assert (found.count, found.step) == (2, 4)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e300, 5e-324])
def test_one_value(value: float) -> None:
    details = counted(value, value)
    assert details["counts"] == [2.0]
    low, high = details["edges"]
    assert low < value < high


def test_buckets_without_extremes() -> None:
    unknown = (math.inf, -math.inf)
    found = explicit_details([1, 2, 0, 4], [1.0, 2.0, 5.0], extremes=unknown, total=30.0)
    assert found["edges"] == [1.0, 2.0, 5.0]
    assert found["counts"] == [3.0, 4.0]
    found = explicit_details([3], [], extremes=unknown, total=9.0)
    assert (found["edges"], found["counts"]) == ([2.5, 3.5], [3.0])


@pytest.mark.parametrize("delivery", ["thread", "process"])
def test_into_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: str) -> None:
    """Points and distribution have names of their own, of which each tracker makes what it can."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking = ot.Tracking(
        log_with=["tensorboard", "wandb", "mlflow"], project_dir=tmp_path, delivery=delivery
    )
    tracking.init_trackers("p")
    histogram = metrics.get_meter("train").create_histogram("norm")
    values = np.random.default_rng(3).normal(0, 1, 300).tolist()
    for step, value in enumerate(values):
        histogram.record(value, {"training.step": step, "layer": 1})
    tracking.log({"loss": 0.5}, step=400)
    directory = tracking.run_directory
    assert directory is not None
    tracking.end_training()
    receipt = tracking.receipt()
    assert receipt.complete
    assert receipt.recorded == 301
    (entry,) = recorded(directory)
    name = "norm/layer.1/distribution"
    assert (entry.content["tag"], entry.step) == (name, 299)
    counts, edges = entry.content["details"]["counts"], entry.content["details"]["edges"]

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    assert len(events.Scalars("norm/layer.1")) == 300
    (shown,) = events.Histograms(name)
    assert shown.step == 299
    assert (shown.histogram_value.num, sum(shown.histogram_value.bucket)) == (300, 300)

    history = read_history(readback.wandb_file(directory))
    (row,) = [row for row in history if row.get(f"{name}._type") == "histogram"]
    assert row[f"{name}.values"] == counts
    assert row[f"{name}.bins"] == pytest.approx(edges)
    assert row["training/step"] == 299

    (run,) = readback.mlflow_runs(tmp_path, "p")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (median,) = client.get_metric_history(run.info.run_id, f"{name}/histogram/p50")
    assert median.step == 299
    assert median.value == pytest.approx(np.median(values), abs=0.05)


def test_one_at_each_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DISTRIBUTIONS.variable, "0.05")
    tracking = ot.Tracking(project_dir=tmp_path)
    tracking.init_trackers("p")
    histogram = metrics.get_meter("train").create_histogram("norm")
    directory = tracking.run_directory
    assert directory is not None
    step = 0
    while len(recorded(directory)) < 3:
        histogram.record(float(step), {"training.step": step})
        step += 1
    tracking.end_training()
    found = recorded(directory)
    assert sum(entry.content["details"]["count"] for entry in found) == step
    assert [entry.content["details"]["min"] for entry in found[1:]] == [
        entry.content["details"]["max"] + 1 for entry in found[:-1]
    ]
    assert found[-1].step == step - 1


def test_none_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.DISTRIBUTIONS.variable, "off")
    tracking = ot.Tracking(project_dir=tmp_path)
    tracking.init_trackers("p")
    metrics.get_meter("train").create_histogram("norm").record(1.0)
    directory = tracking.run_directory
    assert directory is not None
    tracking.end_training()
    assert recorded(directory) == []
    assert len(read_run(directory)) == 1


KILLED = """
import os, signal
import otel_tracking as ot
from opentelemetry import metrics

tracking = ot.Tracking(project_dir=".", run_id="r")
tracking.init_trackers("p")
for step in range(10):
    metrics.get_meter("train").create_histogram("norm").record(1.0, {"training.step": step})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_each_process_counts_what_it_recorded(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    run_script(KILLED, check=False)
    tracking = ot.Tracking(project_dir=tmp_path, run_id="r")
    tracking.init_trackers("p")
    for step in range(10, 13):
        metrics.get_meter("train").create_histogram("norm").record(2.0, {"training.step": step})
    tracking.end_training()
    (entry,) = recorded(tmp_path / "p" / "r")
    assert entry.content["details"]["counts"] == [3.0]
    assert len(read_run(tmp_path / "p" / "r").of("norm")) == 13
