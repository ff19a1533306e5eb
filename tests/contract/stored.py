"""What each tracker stored, read by its own means, under the names it stored it."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
import zipfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from otel_tracking.names import NameRule
from tests import readback
from tests.contract.content import PROJECT, RUN_ID
from tests.contract.media import Entry
from tests.contract.media_files import clearml_session
from tests.contract.place import Place
from tests.contract.stored_media import READERS as MEDIA_READERS
from tests.contract.stored_media import aim_run, swanlab_records
from tests.readback import Point, Points, bits


@dataclass
class Stored:
    """One run in one tracker."""

    points: Points
    config: Mapping[str, Any] = field(default_factory=dict)
    """As far as it can be compared: names and values that the tracker keeps as they are."""
    status: str = ""
    failure: str = ""
    """What the tracker has a place of its own for: why the run failed."""
    whole_config: str = ""
    """Where `config` is parameters by section and name, as texts: the file that has all of it."""
    read_media: Callable[[], list[Entry]] = list

    @cached_property
    def media(self) -> list[Entry]:
        """Texts too."""
        return self.read_media()

    @property
    def texts(self) -> set[str]:
        """Contents of texts."""
        return {entry.content for entry in self.media if entry.form == "text"}


@dataclass(frozen=True)
class Reader:
    """How to read a tracker, and how exact it is."""

    reader: Callable[[Place], Stored]
    precision: int
    """Nanoseconds by which a time may differ."""
    name: Callable[[str], str]
    """Of a tag: the name that it is stored under."""
    value: Callable[[float], float] = lambda value: value
    """Of a number: what is stored for it."""
    ordered: bool = True
    """Whether the points of a series come back in the order in which they were recorded."""

    def read(self, root: Path) -> Stored:
        """The contract's run; of the directory in which its program ran."""
        return self.read_run(root, "runs", PROJECT, RUN_ID)

    def read_run(self, root: Path, project_dir: str, project: str, run_id: str) -> Stored:
        """A run; of the directory in which its program ran, and that has trackers' own directories."""
        place = Place(root, root / project_dir, project, run_id)
        stored = self.reader(place)
        stored.read_media = partial(MEDIA_READERS[self.reader.__name__], place)
        return stored


def tensorboard(place: Place) -> Stored:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2  # type: ignore[import-untyped]

    run = place.run
    events = EventAccumulator(str(run), size_guidance={"scalars": 1, "tensors": 0}).Reload()
    points = readback.tensorboard(run)
    if "config/text_summary" not in events.Tags()["tensors"]:  # the HParams tab shows no such run
        return Stored(points)
    config, *_ = events.Tensors("config/text_summary")
    end = plugin_data_pb2.HParamsPluginData()
    end.ParseFromString(events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content)
    status = {api_pb2.STATUS_SUCCESS: "finished", api_pb2.STATUS_FAILURE: "failed"}
    return Stored(points, json.loads(config.tensor_proto.string_val[0]), status[end.session_end_info.status])


_OF_WANDB = {"_step", "_runtime", "_timestamp", "_otel_tracking/position", "training/step"}


def wandb(place: Place) -> Stored:
    from otel_tracking_exporters._wandb_file import read_history, read_wandb

    run = place.run
    path = readback.wandb_file(run)
    points: dict[str, list[Point]] = defaultdict(list)
    for row in read_history(path):
        if any(key.endswith("._type") for key in row):
            continue  # media
        for key, value in row.items():
            if isinstance(value, int | float) and key not in _OF_WANDB:
                points[key].append(
                    Point(row["training/step"], bits(float(value)), round(row["_timestamp"] * 1e9))
                )
    found = read_wandb(path)
    return Stored(points, found.config, str(found.exit_code))


def mlflow(place: Place) -> Stored:
    import mlflow as sdk

    (run,) = readback.mlflow_runs(place.runs, place.project)
    client = sdk.MlflowClient(f"sqlite:///{place.runs}/mlflow.db")
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    points = {
        key: [
            Point(m.step, bits(m.value), m.timestamp * 1_000_000)
            for m in client.get_metric_history(run.info.run_id, key)
        ]
        for key in run.data.metrics
    }
    whole = artifacts / "config.json"
    config = json.loads(whole.read_text()) if whole.exists() else {}
    return Stored(points, config, run.info.status.lower(), run.data.tags.get("otel_tracking.error", ""))


def trackio(place: Place) -> Stored:
    special = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    with sqlite3.connect(f"file:{place.root}/trackio/{place.project}.db?mode=ro", uri=True) as database:
        rows = database.execute(
            "select step, metrics, timestamp from metrics where run_id=? order by id", (place.run_id,)
        ).fetchall()
        (config,) = database.execute("select config from configs where run_id=?", (place.run_id,)).fetchone()
        alerts = database.execute("select text from alerts where run_id=?", (place.run_id,)).fetchall()
    points: dict[str, list[Point]] = defaultdict(list)
    for step, metrics, timestamp in rows:
        for key, value in json.loads(metrics).items():
            number = special.get(value, value) if isinstance(value, str) else value
            if isinstance(number, int | float):
                points[key].append(Point(step, bits(float(number)), readback.nanoseconds(timestamp)))
    known = json.loads(config)
    return Stored(points, known, known["_Status"], "\n".join(text for (text,) in alerts))


def comet_ml(place: Place) -> Stored:
    (path,) = (place.run / "comet").glob("*.zip")
    points: dict[str, list[Point]] = defaultdict(list)
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("experiment.json"))
        messages = [json.loads(line) for line in archive.read("messages.json").decode().splitlines()]
        configs = [
            archive.read(message["payload"]["file_path"])
            for message in messages
            if message["type"] == "file_upload"
            and message["payload"]["additional_params"].get("fileName") == "config.json"
        ]
    status = ""
    for message in messages:
        payload = message["payload"]
        if message["type"] == "metric_msg" and payload["metric"]["metricName"] != "process duration":
            metric = payload["metric"]
            time = payload["local_timestamp"] * 1_000_000
            points[metric["metricName"]].append(
                Point(metric["step"], bits(float(metric["metricValue"])), time)
            )
        elif message["type"] == "log_other" and payload["key"] == "otel_tracking.status":
            status = payload["value"]
    config = json.loads(configs[-1]) if configs else {}
    return Stored(points, config, status, about["customer_error_message"] or "")


def aim(place: Place) -> Stored:
    run = aim_run(place)
    points: dict[str, list[Point]] = defaultdict(list)
    for metric in run.metrics():
        steps, (values, _, times) = metric.data.items_list()
        points[metric.name] += [
            Point(step, bits(float(value)), round(time * 1e9))
            for step, value, time in zip(steps, values, times, strict=True)
        ]
    messages = run.get_log_records()
    said = [] if messages is None else [record.message for record in messages.data.items_list()[1][0]]
    return Stored(points, run.get("hparams", {}), run.get("otel_tracking")["status"], "\n".join(said))


def clearml(place: Place) -> Stored:
    folder = clearml_session(place)
    task = json.loads((folder / "task.json").read_text())
    points: dict[str, list[Point]] = defaultdict(list)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for request in json.loads(line):
            event = request.get("event", request)
            if event["type"] == "training_stats_scalar":
                name = f"{event['metric']}\n{event['variant']}"
                points[name].append(
                    Point(event["iter"], bits(float(event["value"])), event["timestamp"] * 1_000_000)
                )
    parameters = {
        f"{section}/{name}": parameter["value"]
        for section, of in task["hyperparams"].items()
        for name, parameter in of.items()
    }
    whole = task.get("configuration", {}).get("config", {"value": ""})["value"]
    status, failure = parameters["otel_tracking/status"], parameters.get("otel_tracking/error", "")
    return Stored(points, parameters, status, failure, whole)


def dvclive(place: Place) -> Stored:
    import yaml  # type: ignore[import-untyped]

    folder = place.run / "dvclive"
    base = folder / "plots" / "metrics"
    points = {}
    for path in base.rglob("*.tsv"):
        with path.open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file, delimiter="\t")
        points[path.relative_to(base).as_posix().removesuffix(".tsv")] = [
            Point(int(step), bits(float(value)), int(time) * 1_000_000) for time, step, value in rows
        ]
    params = folder / "params.yaml"
    return Stored(points, yaml.safe_load(params.read_text()) if params.exists() else {})


def swanlab(place: Place) -> Stored:
    import yaml

    (folder,) = (place.run / "swanlog").glob("run-*")
    points: dict[str, list[Point]] = defaultdict(list)
    status = failure = ""
    for record in swanlab_records(folder):
        if record.HasField("scalar"):
            scalar = record.scalar
            points[scalar.key].append(
                Point(scalar.step, bits(scalar.value.number), scalar.timestamp.ToNanoseconds())
            )
        elif record.HasField("finish"):
            status = {1: "finished", 2: "failed", 3: "killed"}[record.finish.state]
            failure = record.finish.error
    path = folder / "files" / "config.yaml"
    known = yaml.safe_load(path.read_text()) if path.exists() else {}
    return Stored(points, {key: value["value"] for key, value in known.items()}, status, failure)


def _escaped(names: NameRule) -> Callable[[str], str]:
    return names.escape


def readers() -> dict[str, Reader]:
    """By tracker."""
    from otel_tracking_exporters._clearml_events import title_and_series
    from otel_tracking_exporters.aim import AimTracker
    from otel_tracking_exporters.clearml import ClearMLTracker
    from otel_tracking_exporters.comet_ml import CometMLTracker
    from otel_tracking_exporters.dvclive import DVCLiveTracker
    from otel_tracking_exporters.mlflow import MLflowTracker
    from otel_tracking_exporters.swanlab import SwanLabTracker
    from otel_tracking_exporters.trackio import TrackioTracker
    from otel_tracking_exporters.wandb import WandbTracker

    largest = 1.7976931348623157e308
    return {
        "tensorboard": Reader(
            tensorboard,
            500,
            lambda tag: _tensorboard_names().escape(tag),
            lambda value: _double(readback.as_float32(bits(value))),
        ),
        "wandb": Reader(wandb, 500, WandbTracker.names.escape),
        "mlflow": Reader(
            mlflow,
            500_000_000,
            MLflowTracker.names.escape,
            lambda value: max(-largest, min(largest, value)) + 0.0 if value == value else value,
            ordered=False,
        ),
        "trackio": Reader(trackio, 0, TrackioTracker.names.escape),
        "comet_ml": Reader(comet_ml, 1_000_000, CometMLTracker.names.escape),
        "aim": Reader(aim, 500, AimTracker.names.escape, ordered=False),
        "clearml": Reader(
            clearml, 1_000_000, lambda tag: "\n".join(title_and_series(ClearMLTracker.names.escape(tag)))
        ),
        "dvclive": Reader(dvclive, 1_000_000, DVCLiveTracker.names.escape),
        "swanlab": Reader(swanlab, 0, SwanLabTracker.names.escape),
    }


def _tensorboard_names() -> NameRule:
    from otel_tracking_exporters.tensorboard import TensorBoardTracker

    return TensorBoardTracker.names


def _double(value: bytes) -> float:
    import struct

    (number,) = struct.unpack("<d", value)
    return float(number)
