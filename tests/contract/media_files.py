"""What texts and media are in trackers that store them as files, whose names say what they are."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from otel_tracking.names import FILE_PATHS
from tests import readback
from tests.contract.media import Entry, histogram, pixels, table
from tests.contract.place import Place

_STEM: Final = re.compile(r"(-?\d+)-(\d+)(?:-(\w+))?")
"""Of names that have a step and a journal position."""
_KINDS: Final = {".png": "image", ".wav": "audio", ".gif": "video", ".html": "html", ".txt": "text"}
"""By the suffix, for trackers that store files without a type."""


def step_of(stem: str) -> int:
    """The step that such a name begins with."""
    found = _STEM.fullmatch(stem)
    assert found is not None, stem
    return int(found[1])


def around_stem(parts: Sequence[str]) -> tuple[str, str, str]:
    """A path's parts before and after the one that is a stem, and that one."""
    place = next(place for place, part in enumerate(parts) if _STEM.fullmatch(part))
    return "/".join(parts[:place]), parts[place], "/".join(parts[place + 1 :])


def _below(folder: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Files below a folder, each with the parts of its path there."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.relative_to(folder).parts


def mlflow(place: Place) -> list[Entry]:
    from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_LOGGED_IMAGES

    from otel_tracking_exporters._mlflow_media import _KEYS, FILES

    (run,) = readback.mlflow_runs(place.runs, place.project)
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    found = []
    images = [path for path, _ in _below(root / "images") if path.suffix == ".png"]
    for moment, group in groupby(images, lambda path: path.stem.rpartition("+")[0]):
        paths = list(group)
        for number, path in enumerate(paths):
            assert run.data.tags[MLFLOW_LOGGED_IMAGES] == "True"
            key, _, step, _, milliseconds = moment.split("+")
            assert path.with_name(f"{path.stem}+compressed.webp").exists()
            tag = _KEYS.unescape(key.replace("#", "/"))
            name = f"{tag}/{number}" if len(paths) > 1 else tag
            time = int(milliseconds) * 1_000_000
            found.append(Entry("image", name, int(step), pixels(path.read_bytes()), time=time))
    for known in json.loads(
        run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]")
    ):  # where `mlflow.load_table` looks
        path = root / known["path"]
        whole = json.loads(path.read_text())
        rows = [
            [
                (root / cell).read_bytes() if str(cell).startswith(f"tables/{path.parent.name}/") else cell
                for cell in row
            ]
            for row in whole["data"]
        ]
        tag = FILES.unescape(path.parent.name)
        found.append(Entry("table", tag, step_of(path.stem), table(whole["columns"], rows)))
    for path, (name, stem) in _below(root / "histograms"):
        details = json.loads(path.read_text())
        known = histogram(details.pop("counts"), details.pop("edges"), **details)
        found.append(Entry("histogram", FILES.unescape(name), step_of(stem.removesuffix(".json")), known))
    for path, (name, stem, *parts) in _below(root / "artifacts"):
        file = "/".join(map(FILES.unescape, parts)), path.read_bytes()
        found.append(Entry("artifact", FILES.unescape(name), step_of(stem), file))
    for folder, form in (("audio", "audio"), ("videos", "video"), ("html", "html"), ("text", "text")):
        for path, (name, _) in _below(root / folder):
            content = path.read_text() if form == "text" else path.read_bytes()
            found.append(Entry(form, FILES.unescape(name), step_of(path.stem), content))
    return found


_ASSET: Final = re.compile(r"(?s)(?P<tag>.*)/(?P<step>-?\d+)-\d+(?:\.(?P<suffix>\w+)|/(?P<file>.*))")


def comet_ml(place: Place) -> list[Entry]:
    from otel_tracking_exporters.comet_ml import CometMLTracker

    (path,) = (place.run / "comet").glob("*.zip")
    with zipfile.ZipFile(path) as archive:
        messages = map(json.loads, archive.read("messages.json").decode().splitlines())
        uploads = [message["payload"] for message in messages if message["type"] == "file_upload"]
        contents = {upload["file_path"]: archive.read(upload["file_path"]) for upload in uploads}
    unescape = CometMLTracker.names.unescape
    assets = {}
    found = []
    for upload in uploads:
        given, content = upload["additional_params"], contents[upload["file_path"]]
        caption = upload["metadata"].get("caption", "")
        match upload["upload_type"]:
            case "visualization":
                found.append(Entry("image", unescape(given["figName"]), given["step"], content, caption))
            case "audio" | "video" as form:
                name = given["fileName"].removesuffix(".wav")
                found.append(Entry(form, unescape(name), given["step"], content))
            case "histogram3d":
                bins = tuple(map(tuple, json.loads(content)["index_values"]))
                found.append(Entry("histogram", unescape(given["fileName"]), given["step"], bins))
            case "text-sample":
                name = upload["metadata"]["name"]
                found.append(Entry("text", name, given["step"], content.decode()))
            case "asset" if given["fileName"] != "config.json":
                assets[given["fileName"]] = given["step"], content
    for name, (step, content) in assets.items():
        parts = _ASSET.fullmatch(name)
        assert parts is not None, name
        assert int(parts["step"]) == step
        tag = FILE_PATHS.unescape(parts["tag"])
        folder = name.removesuffix(".csv")
        if parts["suffix"] == "csv":
            columns, *rows = csv.reader(io.StringIO(content.decode(), newline=""))
            cells = {file: data for file, (_, data) in assets.items() if file.startswith(f"{folder}/")}
            shown = [[cells.get(f"{folder}/{cell}", cell) for cell in row] for row in rows]
            found.append(Entry("table", tag, step, table(columns, shown)))
        elif parts["suffix"] is not None:
            found.append(Entry(parts["suffix"], tag, step, content))
        elif f"{name.removesuffix('/' + parts['file'])}.csv" not in assets:  # the image of a cell
            found.append(Entry("artifact", tag, step, (FILE_PATHS.unescape(parts["file"]), content)))
    return found


def clearml_session(place: Place) -> Path:
    """The folder of the one session of that project; beside it is its zip."""
    (task,) = (
        path
        for path in (place.root / "clearml" / "offline").glob("*/task.json")
        if json.loads(path.read_text())["project_name"] == place.project
    )
    return task.parent


def clearml(place: Place) -> list[Entry]:
    from otel_tracking_exporters._clearml_events import _FILES

    session = clearml_session(place)
    path = session.with_name(f"{session.name}.zip")
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    task = json.loads(contents["task.json"])
    lines = contents["metrics.jsonl"].decode().splitlines()
    events = [request.get("event", request) for line in lines for request in json.loads(line)]

    def content(url: str) -> bytes:
        return contents[url.partition(f"/{path.stem}/")[2]]

    found = []
    cells: dict[tuple[str, int, str], bytes] = {}
    for event in events:
        name, step = _name_in_clearml(event["metric"], event["variant"]), event["iter"]
        if event["type"] == "training_debug_image":
            file = Path(event["url"])
            stem = _STEM.fullmatch(file.stem)
            assert stem is not None
            assert int(stem[1]) == step
            if len(stem[3] or "") == 16:  # the image of a table's cell
                cells[name, step, stem[3]] = content(event["url"])
            else:
                data, form = content(event["url"]), _KINDS[file.suffix]
                seen = data.decode() if form == "text" else data
                found.append(Entry(form, name, step, seen, time=event["timestamp"] * 1_000_000))
    for event in events:
        if event["type"] == "plot":
            name, step = _name_in_clearml(event["metric"], event["variant"]), event["iter"]
            plot, time = json.loads(event["plot_str"]), event["timestamp"] * 1_000_000
            (shown,) = plot["data"]
            if shown["type"] == "table":
                rows = [
                    [cells.get((f"{name}/images", step, str(cell)), cell) for cell in row]
                    for row in zip(*shown["cells"]["values"], strict=True)
                ]
                whole = table(shown["header"]["values"], rows)
                found.append(Entry("table", name, step, whole, time=time))
            else:
                edges = plot["layout"]["meta"]["edges"]
                assert shown["x"] == [(low + high) / 2 for low, high in pairwise(edges)]
                assert shown["width"] == [high - low for low, high in pairwise(edges)]
                found.append(Entry("histogram", name, step, histogram(shown["y"], edges), time=time))
    for artifact in task["execution"]["artifacts"]:
        known, data = dict(artifact["display_data"]), content(artifact["uri"])
        files = {unquote(urlsplit(artifact["uri"]).path).rpartition("/")[2]: data}
        if artifact["uri"].endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                files = {file: archive.read(file) for file in archive.namelist()}
        for file_name, data in files.items():
            found.append(
                Entry("artifact", known["name"], int(known["step"]), (_FILES.unescape(file_name), data))
            )
    return found


def _name_in_clearml(title: str, series: str) -> str:
    from otel_tracking_exporters._clearml_events import NAMES

    return NAMES.unescape(title if series == title else f"{title}/{series}")


def dvclive(place: Place) -> list[Entry]:
    folder = place.run / "dvclive"
    found = []
    images = [path for path, _ in _below(folder / "plots" / "images")]
    for path in images:
        # The first image of a step is `<step>.png`, the next one `<step>-<position>-1.png`.
        step, _, rest = path.stem.partition("-")
        beside = [o for o in images if o.parent == path.parent and o.name.startswith(f"{step}-")]
        tag = FILE_PATHS.unescape(path.parent.relative_to(folder / "plots" / "images").as_posix())
        name = f"{tag}/{rest.rpartition('-')[2] or 0}" if beside else tag
        found.append(Entry("image", name, int(step), path.read_bytes()))
    for path, parts in _below(folder / "plots" / "custom"):
        bins = json.loads(path.read_text())
        edges = [bins[0]["from"], *(each["to"] for each in bins)]
        assert [each["from"] for each in bins] == edges[:-1]
        known = histogram((each["count"] for each in bins), edges)
        found.append(Entry("histogram", FILE_PATHS.unescape("/".join(parts[:-1])), step_of(path.stem), known))
    for path, parts in _below(folder / "texts"):
        found.append(
            Entry("text", FILE_PATHS.unescape("/".join(parts[:-1])), step_of(path.stem), path.read_text())
        )
    for form in ("audio", "video", "html", "artifact"):
        for path, parts in _below(folder / "artifacts" / form):
            tag, stem, name = around_stem(parts)
            content = path.read_bytes()
            found.append(
                Entry(
                    form,
                    FILE_PATHS.unescape(tag),
                    step_of(stem),
                    (FILE_PATHS.unescape(name), content) if form == "artifact" else content,
                )
            )
    for path in (folder / "artifacts" / "table").rglob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            columns, *rows = csv.reader(file)
        cells = {other.name: other.read_bytes() for other in path.parent.glob("*.png")}
        tag = FILE_PATHS.unescape(path.parent.relative_to(folder / "artifacts" / "table").as_posix())
        shown = [[cells.get(cell, cell) for cell in row] for row in rows]
        found.append(Entry("table", tag, step_of(path.stem), table(columns, shown)))
    return found
