"""What trackers stored, read by their own means, in one form: points by tag, in stored order."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

import otel_tracking as ot
from otel_tracking_exporters._wandb_file import read_history, read_wandb
from otel_tracking_exporters._wandb_mapping import STEP
from otel_tracking_exporters.mlflow import MLflowTracker
from otel_tracking_exporters.wandb import WandbTracker


class Point(NamedTuple):
    """One point; `value` as bits, so that NaN equals NaN and -0.0 is not 0.0."""

    step: int
    value: bytes
    time_ns: int


Points = Mapping[str, list[Point]]


def bits(value: float) -> bytes:
    """A double, exactly."""
    return struct.pack("<d", value)


def double(value: bytes) -> float:
    """The double that `bits` was given."""
    (number,) = struct.unpack("<d", value)
    return float(number)


def as_float32(value: bytes) -> bytes:
    """The double that a 32-bit float of that value is."""
    (double,) = struct.unpack("<d", value)
    try:
        (single,) = struct.unpack("<f", struct.pack("<f", double))
    except OverflowError:
        single = float("inf") if double > 0 else float("-inf")
    return bits(single)


def nanoseconds(timestamp: str) -> int:
    """Since the epoch, of a time in ISO's form with nine digits behind the seconds."""
    head, rest = timestamp.removesuffix("+00:00").split(".")
    seconds = datetime.fromisoformat(head).replace(tzinfo=UTC).timestamp()
    return int(seconds) * 10**9 + int(rest)


def of_distribution(key: str) -> bool:
    """Whether a tracker's key is of a Histogram instrument's distribution rather than of its points."""
    return "/distribution" in key


def journal(run: Path) -> Points:
    """What was recorded."""
    data = ot.read_run(run)
    points = defaultdict(list)
    for tag, step, time_ns, value in zip(
        data["tag"], data.steps.tolist(), data.times.tolist(), data.values.tolist(), strict=True
    ):
        points[tag].append(Point(step, bits(value), time_ns))
    return points


def tensorboard(run: Path) -> Points:
    """What TensorBoard's own loader finds in a run's directory."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [Point(e.step, bits(e.value), round(e.wall_time * 1e9)) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def wandb_file(run: Path) -> Path:
    """The one `.wandb` file below a run's directory."""
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    return path


def wandb_group(run: Path) -> str:
    """The group of the one W&B run below a run's directory."""
    return str(read_wandb(wandb_file(run)).run.run_group)


def wandb(run: Path) -> Points:
    """What the `.wandb` file holds: its rows, without W&B's own and our own fields."""
    points = defaultdict(list)
    for row in read_history(wandb_file(run)):
        for key, value in row.items():
            if not key.startswith("_") and key != STEP and not of_distribution(key):
                tag = WandbTracker.names.unescape(key)
                points[tag].append(Point(row[STEP], bits(value), round(row["_timestamp"] * 1e9)))
    return points


def mlflow_runs(project_dir: Path, project: str) -> list[Run]:
    """The runs of a project in the default store."""
    # MLflow keeps one connection a URI: a relative path would be that of the first test.
    client = mlflow.MlflowClient(f"sqlite:///{project_dir.absolute()}/mlflow.db")
    experiment = client.get_experiment_by_name(project)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def mlflow_points(project_dir: Path, run: Run) -> Points:
    """The metrics of a run in the default store, by the order of time and then of step."""
    client = mlflow.MlflowClient(f"sqlite:///{project_dir}/mlflow.db")
    return {
        MLflowTracker.names.unescape(key): [
            Point(m.step, bits(m.value), m.timestamp * 1_000_000)
            for m in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
        if not of_distribution(key)
    }
