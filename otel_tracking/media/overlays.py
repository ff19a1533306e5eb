"""Boxes and masks on images, as W&B's own image has them: recorded, and there for what can show them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from otel_tracking.records import Media, MediaFile

_BOXES: Final = "boxes"
_MASKS: Final = "masks"
_LABELS: Final = "class_labels"


def overlays_of(image: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What lies over a `wandb.Image`.

    Returns:
        Details of its file, and each mask as a PNG whose pixels are numbers of classes.
    """
    details: dict[str, Any] = {}
    boxes, masks = getattr(image, "_boxes", None) or {}, getattr(image, "_masks", None) or {}
    if boxes:
        details[_BOXES] = {
            str(name): {
                "box_data": json.loads(json.dumps(each._val, default=_jsonable)),
                _LABELS: _pairs(each._class_labels),
            }
            for name, each in boxes.items()
        }
    if masks:
        # One that was made of a file has neither its array nor labels.
        known = {str(name): getattr(each, "_val", {}) for name, each in masks.items()}
        details[_MASKS] = {name: {_LABELS: _pairs(of.get(_LABELS, {}))} for name, of in known.items()}
    return details, {str(name): _png(each) for name, each in masks.items()}


def with_files(details: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Details that name the masks' files, by the masks' names."""
    if not files:
        return dict(details)
    return {
        **details,
        _MASKS: {name: {**details[_MASKS][name], "file": file} for name, file in files.items()},
    }


def boxes_and_masks(file: MediaFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `wandb.Image` takes as `boxes` and `masks`, of what was recorded.

    Raises:
        OSError: A mask can't be read.
    """
    boxes = {
        name: {"box_data": each["box_data"], _LABELS: dict(each[_LABELS])}
        for name, each in file.details.get(_BOXES, {}).items()
    }
    masks = {
        name: {
            "mask_data": _array(file.path.with_name(each["file"])),
            **({_LABELS: dict(each[_LABELS])} if each[_LABELS] else {}),
        }
        for name, each in file.details.get(_MASKS, {}).items()
    }
    return boxes, masks


def lost_overlays(media: Media) -> dict[str, int]:
    """What a tracker that has no place for boxes and masks counts as altered."""
    if any(_BOXES in file.details or _MASKS in file.details for file in media.files):
        return {"boxes and masks on images are not stored": 1}
    return {}


def _pairs(labels: Mapping[Any, str]) -> list[list[Any]]:
    """Numbers of classes and their names; as keys of JSON the numbers would be texts."""
    return [[int(number), name] for number, name in labels.items()]


def _jsonable(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _png(mask: Any) -> bytes:
    from PIL import Image

    if not hasattr(mask, "_val"):
        return Path(mask._path).read_bytes()
    data = io.BytesIO()
    Image.fromarray(np.asarray(mask._val["mask_data"]).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def _array(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L"))
