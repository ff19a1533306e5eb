"""Texts and media as Aim's objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from aim.sdk.objects import Audio, Distribution, Image, Text
from aim.sdk.run import Run
from PIL import Image as Pictures

from otel_tracking.config import without_surrogates
from otel_tracking.media.histograms import quantiles
from otel_tracking.media.tables import as_csv
from otel_tracking.names import FILE_PATHS
from otel_tracking.records import Media, MediaFile, MediaKind

_AUDIO: Final = ("mp3", "wav", "flac")
_TEXT: Final = "text"


@dataclass(frozen=True, slots=True)
class Form:
    """What media is in Aim: known without reading a file of it."""

    type: str
    """Of the data that its series has; empty if it is an artifact, which has none."""
    make: Callable[[], Any]
    """Makes the object to track, or the list of several."""
    changed: str = ""
    """What is changed by it, or nothing."""


def form_of(media: Media) -> Form:
    """Aim's own kind of object that is nearest."""
    if media.kind is MediaKind.ARTIFACT:
        return Form("", list)
    if media.kind is MediaKind.HISTOGRAM:
        return _of_histogram(media)
    if media.kind is MediaKind.TABLE:
        hashes = ", which names its images by their hash" if len(media.files) > 1 else ""
        return Form(
            _TEXT, lambda: Text(without_surrogates(as_csv(media, {}))), f"a table is a text (CSV){hashes}"
        )
    file = media.files[0]
    kind, _, format_ = file.media_type.partition("/")
    if kind == "image":
        return Form(media.kind.value, lambda: _images(media), _of_moving(media))
    if kind == "audio" and file.path.suffix[1:].lower() in _AUDIO:
        return Form(media.kind.value, lambda: _audio(file))
    if format_ == "html":
        return Form(
            _TEXT, lambda: Text(file.path.read_text(encoding="utf-8", errors="replace")), "HTML is a text"
        )
    return Form("", list, f"{media.kind.plural}: an artifact")


def _of_moving(media: Media) -> str:
    if media.kind is MediaKind.VIDEO:
        return "a video is an image; Aim keeps its first frame"
    moves = any(file.details.get("frames", 1) > 1 for file in media.files)
    return "an image that moves is its first frame" if moves else ""


def _of_histogram(media: Media) -> Form:
    counts, edges = media.details["counts"], media.details["edges"]
    widths = [high - low for low, high in pairwise(edges)]
    if max(widths) - min(widths) <= 1e-9 * (edges[-1] - edges[0]):
        return Form(media.kind.value, lambda: Distribution(hist=counts, bin_range=(edges[0], edges[-1])))
    told = ", ".join(f"{name} {value:g}" for name, value in quantiles(media.details).items())
    return Form(
        _TEXT, lambda: Text(told), "a histogram with bins of several widths is a text of its quantiles"
    )


def _images(media: Media) -> Any:
    images = []
    for each in media.files:
        with Pictures.open(each.path) as image:
            # Aim writes images anew, and as JPEG unless told otherwise.
            as_format = "gif" if image.format == "GIF" else "png"
            images.append(Image(str(each.path), caption=each.caption, format=as_format))
    return images if len(images) > 1 else images[0]


def _audio(file: MediaFile) -> Audio:
    return Audio(str(file.path), format=file.path.suffix[1:].lower(), rate=file.details.get("rate"))


def log_files(run: Run, media: Media) -> None:
    """Copy files to the run's artifacts, `<repository>/.aim/artifacts/<hash>/<name>/<step>/...` unless set.

    Raises:
        OSError: They can't be copied.
    """
    if run.artifacts_uri is None:
        run.set_artifacts_uri(Path(run.repo.path, "artifacts").absolute().as_uri())
    for file in media.files:
        name = f"{FILE_PATHS.escape(media.tag)}/{media.step}-{media.position}/{FILE_PATHS.escape(file.name)}"
        run.log_artifact(str(file.path), name=name, block=True)
