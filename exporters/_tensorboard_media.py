"""Media as what TensorBoard's plugins show: images, audio, distributions, and texts for all else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary  # type: ignore[import-untyped]

from otel_tracking.media.overlays import lost_overlays
from otel_tracking.media.tables import rows_of
from otel_tracking.records import Media, MediaFile, MediaKind
from otel_tracking_exporters._tensorboard_summaries import text_value

_MOST_ROWS: Final = 1000


def media_values(tag: str, media: Media) -> tuple[list[Summary.Value], str]:
    """What stands for media in an event, and what is changed by it, or nothing.

    Args:
        tag: Escaped.
        media: Of any kind.
    """
    if media.kind is MediaKind.HISTOGRAM:
        return [Summary.Value(tag=tag, histo=_histogram(media.details))], ""
    if media.kind is MediaKind.TABLE:
        shown, changed = _markdown(media)
        return [text_value(tag, shown)], changed
    if all(file.media_type.startswith("image/") for file in media.files) and media.kind in (
        MediaKind.IMAGE,
        MediaKind.FIGURE,
        MediaKind.VIDEO,  # a GIF moves
    ):
        values = [Summary.Value(tag=_numbered(tag, media, n), image=_image(f)) for n, f in _files(media)]
        return values, "".join(lost_overlays(media))
    if media.kind is MediaKind.AUDIO:
        return [Summary.Value(tag=_numbered(tag, media, n), audio=_audio(f)) for n, f in _files(media)], ""
    if media.kind is MediaKind.HTML:
        html = media.files[0].path.read_text(encoding="utf-8", errors="replace")
        return [text_value(tag, html)], "HTML is a text"
    listed = "\n".join(
        f"- `{file.name}`, {file.size:,} bytes, SHA-256 `{file.sha256}`" for file in media.files
    )
    return [text_value(tag, listed)], f"{media.kind.plural}: a text names the files; the journal has them"


def forms_of(values: Iterable[Summary.Value]) -> dict[str, str]:
    """What tags have, but those of texts, which no other data has."""
    forms = {value.tag: value.WhichOneof("value") for value in values}
    return {tag: form for tag, form in forms.items() if form != "tensor"}


def _files(media: Media) -> list[tuple[int, MediaFile]]:
    return list(enumerate(media.files))


def _numbered(tag: str, media: Media, number: int) -> str:
    return tag if len(media.files) == 1 else f"{tag}/{number}"


def _image(file: MediaFile) -> Summary.Image:
    with Image.open(file.path) as image:
        width, height, channels = image.width, image.height, len(image.getbands())
    return Summary.Image(
        width=width, height=height, colorspace=channels, encoded_image_string=file.path.read_bytes()
    )


def _audio(file: MediaFile) -> Summary.Audio:
    return Summary.Audio(
        sample_rate=file.details.get("rate", 0),
        num_channels=file.details.get("channels", 0),
        length_frames=file.details.get("frames", 0),
        encoded_audio_string=file.path.read_bytes(),
        content_type=file.media_type,
    )


def _histogram(details: Mapping[str, Any]) -> HistogramProto:
    return HistogramProto(
        min=details["min"],
        max=details["max"],
        num=details["count"],
        sum=details["sum"],
        sum_squares=details["sum_squares"],
        # A bucket is what lies under its limit and over the one before: the first is empty.
        bucket_limit=details["edges"],
        bucket=[0, *details["counts"]],
    )


def _markdown(media: Media) -> tuple[str, str]:
    rows = rows_of(media)
    lines = [media.details["columns"], ["---"] * len(media.details["columns"]), *rows[:_MOST_ROWS]]
    shown = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
    if len(rows) > _MOST_ROWS:
        return shown, f"a table is a text, of its first {_MOST_ROWS:,} rows"
    return shown, "a table is a text (Markdown)"


def _cell(value: Any) -> str:
    if isinstance(value, MediaFile):
        return f"({value.media_type})"
    text = "" if value is None else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")
