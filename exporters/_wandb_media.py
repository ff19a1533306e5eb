"""Media as W&B's own objects."""

from __future__ import annotations

import importlib.util
import json
from typing import Any, Final

import wandb

from otel_tracking.config import without_surrogates
from otel_tracking.media.overlays import boxes_and_masks
from otel_tracking.media.tables import rows_of
from otel_tracking.names import NameRule
from otel_tracking.records import Media, MediaFile, MediaKind

ARTIFACT_NAMES: Final = NameRule(forbidden=r"^A-Za-z0-9_.\-", max_length=128)
_FILE_NAMES: Final = NameRule(forbidden=r"\x00-\x1f\\", forbidden_parts=r"^\.(?=\.?\Z)", max_bytes=200)
TABLE_NAMES: Final = NameRule(forbidden_parts=r"^/|(?:(?<=/)|^)\.(?=\.?(?:/|\Z))")
"""A table is a file of its name in an artifact, which none may lead out of."""
_VIDEOS: Final = {".gif", ".mp4", ".webm", ".ogg"}


def as_value(media: Media) -> Any:
    """What to log for media; None if it has to be an artifact."""
    match media.kind:
        case MediaKind.HISTOGRAM:
            return wandb.Histogram(np_histogram=(media.details["counts"], media.details["edges"]))
        case MediaKind.TABLE:
            rows = [[_cell(cell) for cell in row] for row in rows_of(media)]
            return wandb.Table(columns=media.details["columns"], data=rows, allow_mixed_types=True)
        case MediaKind.AUDIO if importlib.util.find_spec("soundfile"):
            return wandb.Audio(str(media.files[0].path))
        case MediaKind.VIDEO if media.files[0].path.suffix.lower() in _VIDEOS:
            suffix = media.files[0].path.suffix.lower()[1:]
            return wandb.Video(str(media.files[0].path), format=suffix)  # type: ignore[arg-type]
        case MediaKind.HTML:
            return _html(media.files[0])
        case MediaKind.IMAGE | MediaKind.FIGURE:
            if media.files[0].media_type == "text/html":
                return _html(media.files[0])
            return [_image(file) for file in media.files]
    return None


def as_artifact(media: Media) -> wandb.Artifact:
    """Files as an artifact of W&B, the type being the kind of media: for what W&B has no better form for.

    That is audio, too, where the package `soundfile` is missing: W&B can't log it without.
    """
    artifact = wandb.Artifact(
        ARTIFACT_NAMES.escape(media.tag),
        type="dataset" if media.kind is MediaKind.ARTIFACT else media.kind.value,
        metadata={"name": without_surrogates(media.tag), "step": media.step},
    )
    for file in media.files:
        name = "/".join(_FILE_NAMES.escape(part) for part in file.name.split("/"))
        artifact.add_file(str(file.path), name=name)
    return artifact


def _image(file: MediaFile) -> wandb.Image:
    boxes, masks = boxes_and_masks(file)
    return wandb.Image(str(file.path), caption=file.caption or None, boxes=boxes or None, masks=masks or None)


def _html(file: MediaFile) -> wandb.Html:
    return wandb.Html(file.path.read_text(encoding="utf-8", errors="replace"), inject=False)


def _cell(value: Any) -> Any:
    if isinstance(value, MediaFile):
        return _image(value)
    if isinstance(value, list | dict):
        return json.dumps(value)
    return without_surrogates(value)
