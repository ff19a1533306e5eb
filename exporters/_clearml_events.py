"""What is recorded as ClearML's events, written where its own reporter writes them, without its threads.

`Logger.report_*` take no time and queue: what is queued is lost with the process, each hundredth call waits,
and the end waits for minutes. `clearml.backend_interface.metrics` is what these calls lead to.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from clearml import Task
from clearml.backend_interface.metrics import Metrics
from clearml.backend_interface.metrics.events import MediaEvent, PlotEvent, ScalarEvent

from otel_tracking.config import without_surrogates
from otel_tracking.errors import Retry
from otel_tracking.media.tables import rows_of
from otel_tracking.names import NameRule
from otel_tracking.records import Media, MediaFile, MediaKind

NAMES: Final = NameRule(
    forbidden=r"\x00-\x1f\x7f",
    forbidden_parts=r"(?:(?<=/)|^)\.(?=\.?(?:/|\Z))",  # files lie in folders of these names
)
_ALL_FILES: Final = -1
"""ClearML overwrites all but the last five files of a series, unless told otherwise."""


def title_and_series(name: str) -> tuple[str, str]:
    """The chart and the line that an escaped name is, two names never one.

    `train/loss` is `loss` in the chart `train`; `loss` is `loss` in the chart `loss`, so that `loss/loss` has
    to be written another way.
    """
    title, slash, series = name.partition("/")
    if not slash:
        return name, name
    if not title:
        title = "_x2f_"
    if not series:
        return title, "_x_"
    return title, f"_x{ord(series[0]):x}_{series[1:]}" if series == title else series


class EventWriter:
    """Writes events of one task: offline to its `metrics.jsonl`, else to the server; when a call returns."""

    def __init__(self, task: Task) -> None:
        destination = task.get_logger().get_default_upload_destination()
        self._destination = destination
        self._metrics = Metrics(session=task.session, task=task, storage_uri=destination)

    def write(self, events: Sequence[Any]) -> None:
        """Write events.

        Raises:
            Retry: The server did not take them, or the file can't be written.
        """
        try:
            result = self._metrics.write_events(list(events), async_enable=False)
        except OSError as error:
            raise Retry(f"ClearML's events can't be written: {error}") from error
        if result is not None and not result.ok():
            raise Retry(f"ClearML's server did not take events: {result.meta!s:.300}")
        for event in events:
            if event.upload_exception is not None:
                failed, event.upload_exception = event.upload_exception, None
                raise Retry(f"ClearML could not upload a file: {failed!s:.300}")

    def scalar(self, name: str, step: int, value: float, time: int) -> Any:
        """An event of a finite number."""
        title, series = title_and_series(name)
        return ScalarEvent(title, series, value, step, timestamp=_milliseconds(time))

    def text(self, name: str, step: int, time: int, position: int, text: str) -> Any:
        """An event with a text as a file."""
        return self._file(name, step, time, f"{step}-{position}", ".txt", io.BytesIO(text.encode()))

    def media(self, name: str, media: Media) -> tuple[list[Any], str]:
        """Events of media that is no artifact, and what is changed by them, or nothing."""
        if media.kind is MediaKind.HISTOGRAM:
            return [self._plot(name, media, _histogram(media, name))], ""
        if media.kind is MediaKind.TABLE:
            events, cells = [], {}
            for file in media.files[1:]:
                cells[file.sha256] = file.sha256[:16]
                stem = f"{media.step}-{media.position}-{file.sha256[:16]}"
                events.append(self._stored(f"{name}/images", media, stem, file))
            return [self._plot(name, media, _table(media, cells)), *events], ""
        stems = [f"{media.step}-{media.position}-{number}" for number in range(len(media.files))]
        several = len(media.files) > 1
        return [
            self._stored(f"{name}/{number}" if several else name, media, stem, file)
            for number, (stem, file) in enumerate(zip(stems, media.files, strict=True))
        ], ""

    def _stored(self, name: str, media: Media, stem: str, file: MediaFile) -> Any:
        content = io.BytesIO(file.path.read_bytes())
        return self._file(name, media.step, media.time, stem, file.path.suffix, content)

    def _file(self, name: str, step: int, time: int, stem: str, suffix: str, content: io.BytesIO) -> Any:
        title, series = title_and_series(name)
        return MediaEvent(
            title,
            series,
            stream=content,
            iter=step,
            timestamp=_milliseconds(time),
            upload_uri=self._destination,
            file_history_size=_ALL_FILES,
            override_filename=stem,
            override_filename_ext=suffix or ".bin",
        )

    def _plot(self, name: str, media: Media, plot: dict[str, Any]) -> Any:
        title, series = title_and_series(name)
        return PlotEvent(
            title, series, plot_str=json.dumps(plot), iter=media.step, timestamp=_milliseconds(media.time)
        )


def _milliseconds(time: int) -> int:
    return max(time // 1_000_000, 1)  # 0 would be now


def _histogram(media: Media, name: str) -> dict[str, Any]:
    edges = media.details["edges"]
    bars = {
        "type": "bar",
        "x": [(low + high) / 2 for low, high in pairwise(edges)],
        "y": media.details["counts"],
        "width": [high - low for low, high in pairwise(edges)],
        "name": name,
    }
    return {"data": [bars], "layout": {"title": name, "bargap": 0, "meta": {"edges": edges}}}


def _table(media: Media, cells: dict[str, str]) -> dict[str, Any]:
    columns = media.details["columns"]
    rows = [
        [cells[cell.sha256] if isinstance(cell, MediaFile) else cell for cell in row]
        for row in rows_of(media)
    ]
    table = {
        "type": "table",
        "header": {"values": columns},
        "cells": {"values": [list(column) for column in zip(*rows, strict=True)] if rows else []},
    }
    return {"data": [table], "layout": {}}


def upload_artifact(task: Task, name: str, media: Media, folder: Path) -> None:
    """Have files uploaded as an artifact: one as it is, several as a zip.

    Args:
        task: Whose.
        name: The artifact's.
        media: The files.
        folder: An empty one, for links with the files' own names.

    Raises:
        Retry: It was not taken.
    """
    files = []
    for file in media.files:
        path = folder.joinpath(*(_FILES.escape(part) for part in file.name.split("/")))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(file.path.absolute())
        files.append(path)
    what = files[0] if len(files) == 1 else folder
    metadata = {"step": media.step, "name": without_surrogates(media.tag)}
    if not task.upload_artifact(name, artifact_object=what, metadata=metadata, wait_on_upload=True):
        raise Retry("ClearML did not take an artifact")


_FILES: Final = NameRule(forbidden=r"\x00-\x1f\x7f\\", forbidden_parts=r"^\.(?=\.?\Z)", max_bytes=200)
