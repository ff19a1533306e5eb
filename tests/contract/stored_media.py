"""What texts and media each tracker stored, read by its own means, under the names that were recorded."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from otel_tracking.names import FILE_PATHS
from tests import readback
from tests.contract.media import Entry, histogram, pixels, table
from tests.contract.media_files import around_stem, clearml, comet_ml, dvclive, mlflow, step_of
from tests.contract.place import Place


def _of_seconds(time: float) -> int:
    """Nanoseconds."""
    return round(time * 1e9)


def tensorboard(place: Place) -> list[Entry]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    from otel_tracking_exporters.tensorboard import TensorBoardTracker

    unescape = TensorBoardTracker.names.unescape
    all_of = dict.fromkeys(("images", "audio", "histograms", "tensors"), 0)
    events = EventAccumulator(str(place.run), size_guidance={**all_of, "scalars": 1}).Reload()
    tags = events.Tags()
    found = [
        Entry(
            "image", unescape(tag), event.step, event.encoded_image_string, time=_of_seconds(event.wall_time)
        )
        for tag in tags["images"]
        for event in events.Images(tag)
    ]
    found += [
        Entry(
            "audio", unescape(tag), event.step, event.encoded_audio_string, time=_of_seconds(event.wall_time)
        )
        for tag in tags["audio"]
        for event in events.Audio(tag)
    ]
    for tag in tags["histograms"]:
        for event in events.Histograms(tag):
            value = event.histogram_value
            below, *counts = value.bucket
            assert below == 0
            known = histogram(
                counts,
                value.bucket_limit,
                min=value.min,
                max=value.max,
                count=value.num,
                sum=value.sum,
                sum_squares=value.sum_squares,
            )
            found.append(
                Entry("histogram", unescape(tag), event.step, known, time=_of_seconds(event.wall_time))
            )
    for tag in tags["tensors"]:
        name = tag.removesuffix("/text_summary")
        if name not in (tag, "config"):
            found += [
                Entry(
                    "text",
                    unescape(name),
                    event.step,
                    event.tensor_proto.string_val[0].decode(),
                    time=_of_seconds(event.wall_time),
                )
                for event in events.Tensors(tag)
            ]
    return found


def wandb(place: Place) -> list[Entry]:
    from otel_tracking_exporters._wandb_file import WandbFile, parse, read_history
    from otel_tracking_exporters.wandb import WandbTracker

    path = readback.wandb_file(place.run)
    artifacts = [
        record.artifact
        for record in map(parse, WandbFile(path).payloads())
        if record.WhichOneof("record_type") == "artifact"
    ]
    contents = {
        f"wandb-client-artifact://{artifact.client_id}": {
            file.path: Path(file.local_path).read_bytes() for file in artifact.manifest.contents
        }
        for artifact in artifacts
    }
    found = []
    for artifact in artifacts:
        if artifact.type != "run_table":  # of a table that is logged
            known = json.loads(artifact.metadata)
            for file in contents[f"wandb-client-artifact://{artifact.client_id}"].items():
                found.append(Entry("artifact", known["name"], known["step"], file))
    for row in read_history(path):
        names = [key.removesuffix("._type") for key in row if key.endswith("._type")]
        step, time = int(row.get("training/step", 0)), _of_seconds(row["_timestamp"])
        if not names:
            texts = [(key, value) for key, value in row.items() if isinstance(value, str)]
            unescape = WandbTracker.names.unescape
            found += [Entry("text", unescape(key), step, value, time=time) for key, value in texts]
        for name in names:
            fields = {key.removeprefix(f"{name}."): value for key, value in row.items()}
            tag = WandbTracker.names.unescape(name)
            made = _of_wandb(fields, tag, step, path.parent / "files", contents)
            found += (entry._replace(time=time) for entry in made)
    return found


def _of_wandb(
    fields: Mapping[str, Any], tag: str, step: int, files: Path, artifacts: Mapping[str, Mapping[str, bytes]]
) -> list[Entry]:
    match fields["_type"]:
        case "images/separated":
            captions = fields.get("captions") or [""] * fields["count"]
            several = fields["count"] > 1
            return [
                Entry("image", f"{tag}/{n}" if several else tag, step, (files / name).read_bytes(), caption)
                for n, (name, caption) in enumerate(zip(fields["filenames"], captions, strict=True))
            ]
        case "histogram":
            return [Entry("histogram", tag, step, histogram(fields["values"], fields["bins"]))]
        case "table-file":
            # The history's own file has no images; the artifact does.
            address, _, name = fields["artifact_path"].partition("://")[2].partition("/")
            members = artifacts[f"wandb-client-artifact://{address}"]
            whole = json.loads(members[name])
            rows = [
                [members[cell["path"]] if isinstance(cell, dict) else cell for cell in row]
                for row in whole["data"]
            ]
            return [Entry("table", tag, step, table(whole["columns"], rows))]
    form = {"video-file": "video", "html-file": "html", "audio-file": "audio"}[fields["_type"]]
    return [Entry(form, tag, step, (files / fields["path"]).read_bytes())]


def trackio(place: Place) -> list[Entry]:
    from otel_tracking_exporters.trackio import TrackioTracker

    root = place.root / "trackio"
    with sqlite3.connect(f"file:{root}/{place.project}.db?mode=ro", uri=True) as database:
        rows = database.execute(
            "select step, metrics, timestamp from metrics where run_id=?", (place.run_id,)
        ).fetchall()
        artifacts = database.execute(
            "select metadata, manifest from artifact_versions join run_artifact_links"
            " on artifact_version_id = artifact_versions.id where run_id=?",
            (place.run_id,),
        ).fetchall()
    found = []
    for step, metrics, timestamp in rows:
        time = readback.nanoseconds(timestamp)
        for key, value in json.loads(metrics).items():
            name = TrackioTracker.names.unescape(key)
            if isinstance(value, dict):
                found.append(_of_trackio(value, name, step, root / "media")._replace(time=time))
            elif isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity"):
                found.append(Entry("text", name, step, value, time=time))
    for metadata, manifest in artifacts:
        known = json.loads(metadata)
        for file in json.loads(manifest):
            digest = file["digest"]
            blob = root / "artifacts" / place.project / "blobs" / "sha256" / digest[:2] / digest
            found.append(Entry("artifact", known["name"], known["step"], (file["path"], blob.read_bytes())))
    return found


def _of_trackio(value: Mapping[str, Any], name: str, step: int, files: Path) -> Entry:
    form = value["_type"].removeprefix("trackio.")
    if form == "histogram":
        return Entry(form, name, step, histogram(value["values"], value["bins"]))
    if form == "table":
        rows = [
            [(files / c["file_path"]).read_bytes() if isinstance(c, dict) else c for c in row.values()]
            for row in value["_value"]
        ]
        return Entry(form, name, step, table(value["_value"][0], rows))
    return Entry(form, name, step, (files / value["file_path"]).read_bytes(), value["caption"])


def aim_run(place: Place) -> Any:
    """The one of that project."""
    from aim import Repo

    (run,) = (run for run in Repo(str(place.runs)).iter_runs() if run.experiment == place.project)
    return run


def aim(place: Place) -> list[Entry]:
    from otel_tracking_exporters.aim import AimTracker

    run = aim_run(place)
    found = []
    for form, sequence_of in (
        ("text", run.get_text_sequence),
        ("image", run.get_image_sequence),
        ("audio", run.get_audio_sequence),
        ("histogram", run.get_distribution_sequence),
    ):
        kind = "aim.distribution" if form == "histogram" else f"aim.{form}"
        for name, context, _ in run.iter_sequence_info_by_type(kind):
            steps, (values, _, times) = sequence_of(name, context).data.items_list()
            tag = AimTracker.names.unescape(name)
            for step, value, time in zip(steps, values, times, strict=True):
                several = value if isinstance(value, list | tuple) else [value]
                for number, each in enumerate(several):
                    numbered = f"{tag}/{number}" if len(several) > 1 else tag
                    found.append(_of_aim(form, numbered, step, each)._replace(time=_of_seconds(time)))
    for name, artifact in run.artifacts.items():
        folder, stem, file = around_stem(name.split("/"))
        content = Path(urlsplit(artifact.uri).path).read_bytes()
        found.append(
            Entry(
                "artifact", FILE_PATHS.unescape(folder), step_of(stem), (FILE_PATHS.unescape(file), content)
            )
        )
    return found


def _of_aim(form: str, name: str, step: int, value: Any) -> Entry:
    if form == "text":
        return Entry(form, name, step, value.data)
    if form == "histogram":
        return Entry(form, name, step, histogram(value.weights, value.ranges))
    data = bytes(value.storage["data"].load())
    if form == "image":
        return Entry(form, name, step, pixels(data), value.caption)
    return Entry(form, name, step, data)


class _Cells(HTMLParser):
    """The cells of a table, or the items of a list, by row; an image is its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str | bytes, ...]] = []
        self._row: list[str | bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th", "li"):
            self._row.append("")
        elif tag == "img":
            self._row[-1] = base64.b64decode((dict(attrs)["src"] or "").partition("base64,")[2])

    def handle_data(self, data: str) -> None:
        if self._row:
            cell = self._row[-1]
            assert isinstance(cell, str)
            self._row[-1] = cell + data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("tr", "li"):
            self.rows.append(tuple(self._row))
            self._row = []


def swanlab_records(folder: Path) -> Iterator[Any]:
    """What a SwanLab run's file holds."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    (path,) = folder.glob("run-*.swanlab")
    reader = DataStoreReader()
    reader.open(path)
    for data in reader:
        record = Record()
        record.ParseFromString(data)
        yield record
    reader.close()


def swanlab(place: Place) -> list[Entry]:
    from swanlab.proto.swanlab.metric.column.v1.column_pb2 import ColumnType

    from otel_tracking_exporters.swanlab import SwanLabTracker

    (folder,) = (place.run / "swanlog").glob("run-*")
    found = []
    for record in swanlab_records(folder):
        if not record.HasField("media"):
            continue
        media = record.media
        form = ColumnType.Name(media.type).removeprefix("COLUMN_TYPE_").lower()
        tag = SwanLabTracker.names.unescape(media.key)
        for number, item in enumerate(media.value.items):
            name = f"{tag}/{number}" if len(media.value.items) > 1 else tag
            content: Any = (folder / "media" / form / item.filename).read_bytes()
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (item.sha256, item.size)
            if form == "text":
                content = content.decode()
            elif form == "html" and content.startswith((b"<table", b"<ul")):
                cells = _Cells()
                cells.feed(content.decode())
                content = tuple(cells.rows)
            time = media.timestamp.ToNanoseconds()
            found.append(Entry(form, name, media.step, content, item.caption, time))
    return found


READERS: Final[Mapping[str, Callable[[Place], list[Entry]]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
    "trackio": trackio,
    "comet_ml": comet_ml,
    "aim": aim,
    "clearml": clearml,
    "dvclive": dvclive,
    "swanlab": swanlab,
}
