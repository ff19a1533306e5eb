"""Media as the dictionaries and files that trackio's own classes make."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Final

from trackio import Artifact
from trackio.utils import MEDIA_DIR, project_media_dir

from otel_tracking.media.tables import rows_of
from otel_tracking.names import NameRule
from otel_tracking.records import Media, MediaFile, MediaKind
from otel_tracking.tags import distinct

_FILES: Final = NameRule(forbidden=r"\x00-\x1f\x7f\\", forbidden_parts=r"^\.(?=\.?\Z)", max_bytes=200)
_ARTIFACTS: Final = NameRule(forbidden=r"^A-Za-z0-9_.\-", forbidden_parts=r"^\.", max_length=120)
_TYPES: Final = {
    MediaKind.IMAGE: "trackio.image",
    MediaKind.FIGURE: "trackio.image",
    MediaKind.AUDIO: "trackio.audio",
    MediaKind.VIDEO: "trackio.video",
    MediaKind.HTML: "trackio.html",
}


def as_values(media: Media, project: str, run_name: str) -> dict[str, Any]:
    """What to log for media that is no artifact, by name; files are copied to where trackio has its own."""
    if media.kind is MediaKind.HISTOGRAM:
        histogram = {
            "_type": "trackio.histogram",
            "bins": media.details["edges"],
            "values": media.details["counts"],
        }
        return {media.tag: histogram}
    if media.kind is MediaKind.TABLE:
        columns: list[str] = []
        for column in media.details["columns"]:
            columns.append(distinct(column, columns))
        rows = [
            {
                column: _file(cell, "trackio.image", media.step, project, run_name)
                if isinstance(cell, MediaFile)
                else cell
                for column, cell in zip(columns, row, strict=True)
            }
            for row in rows_of(media)
        ]
        return {media.tag: {"_type": "trackio.table", "_value": rows}}
    values = {}
    for number, file in enumerate(media.files):
        type_ = "trackio.html" if file.media_type == "text/html" else _TYPES[media.kind]
        name = media.tag if len(media.files) == 1 else f"{media.tag}/{number}"
        values[name] = _file(file, type_, media.step, project, run_name)
    return values


def _file(file: MediaFile, type_: str, step: int, project: str, run_name: str) -> dict[str, Any]:
    folder = project_media_dir(project) / run_name / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file.path.name
    shutil.copyfile(file.path, path)
    return {"_type": type_, "file_path": str(path.relative_to(MEDIA_DIR)), "caption": file.caption}


def as_artifact(media: Media) -> Artifact:
    """Files as an artifact of trackio."""
    artifact = Artifact(
        _ARTIFACTS.escape(media.tag), type=media.kind.value, metadata={"name": media.tag, "step": media.step}
    )
    for file in media.files:
        name = "/".join(_FILES.escape(part) for part in file.name.split("/"))
        artifact.add_file(Path(file.path), name=name)
    return artifact
