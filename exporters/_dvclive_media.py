"""Texts and media as files in DVCLive's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from otel_tracking.config import without_surrogates
from otel_tracking.media.overlays import lost_overlays
from otel_tracking.media.tables import as_csv
from otel_tracking.names import FILE_PATHS
from otel_tracking.records import Media, MediaKind, Text


def write_text(folder: Path, text: Text) -> str:
    """A file of its own, `texts/<name>/<step>-<position>.txt`; what is changed, or nothing."""
    path = folder / "texts" / FILE_PATHS.escape(text.tag) / f"{text.step}-{text.position}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = without_surrogates(text.text)
    path.write_text(content, encoding="utf-8", newline="")
    return "" if content == text.text else "lone surrogates are escaped"


def write_media(folder: Path, media: Media) -> str:
    """Files where DVCLive has its own, or near them; what is changed, or nothing."""
    tag = FILE_PATHS.escape(media.tag)
    if media.kind in (MediaKind.IMAGE, MediaKind.FIGURE) and _are_images(media):
        # DVC shows `<folder>/<step>.png` as one image with a slider.
        for number, file in enumerate(media.files):
            place = folder / "plots" / "images" / tag
            suffix = file.path.suffix
            _copy(
                file.path, place, f"{media.step}{suffix}", f"{media.step}-{media.position}-{number}{suffix}"
            )
        return "".join(lost_overlays(media))
    if media.kind is MediaKind.HISTOGRAM:
        edges, counts = media.details["edges"], media.details["counts"]
        bins = [
            {"from": low, "to": high, "count": count}
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ]
        _write(folder / "plots" / "custom" / tag, f"{media.step}-{media.position}.json", json.dumps(bins))
        return "a histogram is a plot's JSON file"
    base = folder / "artifacts" / media.kind.value / tag
    if media.kind is MediaKind.TABLE:
        names = {file.sha256: f"{file.sha256[:16]}{file.path.suffix}" for file in media.files[1:]}
        for file in media.files[1:]:
            _copy(file.path, base, names[file.sha256])
        _write(base, f"{media.step}-{media.position}.csv", as_csv(media, names))
        return "a table is a CSV file"
    for file in media.files:
        name = FILE_PATHS.escape(file.name)
        place = base / f"{media.step}-{media.position}" / name
        _copy(file.path, place.parent, place.name)
    return "" if media.kind is MediaKind.ARTIFACT else f"{media.kind.plural}: a file"


def _are_images(media: Media) -> bool:
    return all(file.media_type.startswith("image/") for file in media.files)


def _write(folder: Path, name: str, content: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8", newline="")


def _copy(source: Path, folder: Path, *names: str) -> None:
    """Under the first name that is free or has that content."""
    folder.mkdir(parents=True, exist_ok=True)
    content = source.read_bytes()
    for name in names[:-1]:
        path = folder / name
        if not path.exists() or path.read_bytes() == content:
            break
    else:
        path = folder / names[-1]
    shutil.copyfile(source, path)
