"""Media as artifacts, where MLflow's own pages look for them.

Names hold the journal position, so that what is sent twice is stored once.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_LOGGED_IMAGES
from PIL import Image

from otel_tracking.media.histograms import quantile_series
from otel_tracking.media.tables import rows_of
from otel_tracking.names import NameRule
from otel_tracking.records import Media, MediaFile, MediaKind
from otel_tracking_exporters._mlflow_params import METRICS
from otel_tracking_exporters._mlflow_run import MLflowRun

FILES: Final = NameRule(forbidden=r"^\w.\-", forbidden_parts=r"^\.", max_bytes=200)
"""Names of files and folders."""
_KEYS: Final = NameRule(forbidden=r"^A-Za-z0-9_. /\-", forbidden_parts=r"^[./]", max_bytes=120)
"""Names of images; a slash is a `#` in the file's name."""
_NAMES: Final = uuid.UUID("5b8e4a0e-3b0b-5a55-9f0c-6d0f6f0e7a11")
_THUMBNAIL: Final = 256


def send(run: MLflowRun, media: Media) -> str:
    """Store media; what changed in it, or nothing."""
    if media.kind in (MediaKind.IMAGE, MediaKind.FIGURE) and _are_images(media):
        _images(run, media)
        return ""
    if media.kind is MediaKind.TABLE:
        _table(run, media)
        return ""
    if media.kind is MediaKind.HISTOGRAM:
        return _histogram(run, media)
    folder = f"{media.kind.plural.lower()}/{FILES.escape(media.tag)}"
    if media.kind is MediaKind.ARTIFACT:
        for file in media.files:
            *folders, name = (FILES.escape(part) for part in file.name.split("/"))
            _upload(run, file, "/".join((folder, f"{media.step}-{media.position}", *folders)), name)
    else:
        for number, file in enumerate(media.files):
            _upload(run, file, folder, f"{media.step}-{media.position}-{number}{file.path.suffix}")
    return ""


def _are_images(media: Media) -> bool:
    return all(file.media_type.startswith("image/") for file in media.files)


@contextmanager
def _named(file: MediaFile, name: str) -> Iterator[Path]:
    """A file under another name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.symlink_to(file.path.absolute())
        yield path


def _upload(run: MLflowRun, file: MediaFile, folder: str, name: str) -> None:
    with _named(file, name) as path:
        run.client.log_artifact(run.run_id, str(path), folder)


def _images(run: MLflowRun, media: Media) -> None:
    """As `MlflowClient.log_image` does, whose names have a random part; those that move as artifacts too."""
    key = _KEYS.escape(media.tag).replace("/", "#")
    for number, file in enumerate(media.files):
        # Artifacts are listed by name: what stands for the random part begins with the image's number.
        unique = f"{number:04x}{str(uuid.uuid5(_NAMES, f'{run.run_id} {media.position} {number}'))[4:]}"
        name = f"{key}+step+{media.step}+timestamp+{media.time // 1_000_000}+{unique}"
        with tempfile.TemporaryDirectory() as folder, Image.open(file.path) as image:
            if getattr(image, "n_frames", 1) > 1:  # MLflow's page shows images that do not move
                moving = f"{media.step}-{media.position}-{number}{file.path.suffix}"
                _upload(run, file, f"moving_images/{FILES.escape(media.tag)}", moving)
            image.save(Path(folder, f"{name}.png"))
            small = image.convert("RGBA" if "A" in image.getbands() else "RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            small.save(Path(folder, f"{name}+compressed.webp"))
            run.client.log_artifacts(run.run_id, folder, "images")
    run.client.set_tag(run.run_id, MLFLOW_LOGGED_IMAGES, True, synchronous=True)


def _table(run: MLflowRun, media: Media) -> None:
    """As `mlflow.load_table` reads it; images of cells are artifacts beside it."""
    base = f"tables/{FILES.escape(media.tag)}/{media.step}-{media.position}"
    paths: dict[str, str] = {}
    for file in media.files[1:]:
        _upload(run, file, base, f"{file.sha256[:16]}{file.path.suffix}")
        paths[file.sha256] = f"{base}/{file.sha256[:16]}{file.path.suffix}"
    data = [
        [paths[cell.sha256] if isinstance(cell, MediaFile) else cell for cell in row]
        for row in rows_of(media)
    ]
    content = json.dumps({"columns": media.details["columns"], "data": data})
    run.client.log_text(run.run_id, content, f"{base}.json")
    known: list[Mapping[str, Any]] = json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": f"{base}.json", "type": "table"}
    if entry not in known:
        run.client.set_tag(run.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*known, entry]), synchronous=True)


def _histogram(run: MLflowRun, media: Media) -> str:
    base = f"histograms/{FILES.escape(media.tag)}/{media.step}-{media.position}.json"
    run.client.log_text(run.run_id, json.dumps(dict(media.details)), base)
    run.log_metrics(quantile_series(media, METRICS), media.step, media.time // 1_000_000)
    return "a histogram is a JSON artifact, and its quantiles are metrics"
