"""Texts and media as the types that SwanLab shows."""

from __future__ import annotations

import hashlib
import html
from typing import Final

from swanlab.proto.swanlab.metric.column.v1.column_pb2 import ColumnType

from otel_tracking.config import without_surrogates
from otel_tracking.media.tables import rows_of
from otel_tracking.records import Media, MediaFile, MediaKind

TEXT: Final = ColumnType.COLUMN_TYPE_TEXT
_MOST_ROWS: Final = 10_000


def as_items(media: Media) -> tuple[int, list[tuple[str, str, bytes, str]], str]:
    """The type, the files (name, SHA-256, content, caption), and what is changed, or nothing."""
    if media.kind is MediaKind.TABLE:
        return ColumnType.COLUMN_TYPE_HTML, [item(media, "html", _table(media))], "a table is HTML"
    if media.kind is MediaKind.HISTOGRAM:
        return (
            ColumnType.COLUMN_TYPE_HTML,
            [item(media, "html", _histogram(media))],
            "a histogram is HTML, and its quantiles are series",
        )
    if media.kind is MediaKind.ARTIFACT:
        listed = "".join(
            f"<li>{html.escape(file.name)}, {file.size:,} bytes, SHA-256 {file.sha256}</li>"
            for file in media.files
        )
        named = item(media, "html", _bytes(f"<ul>{listed}</ul>"))
        return ColumnType.COLUMN_TYPE_HTML, [named], "artifacts: HTML names the files; the journal has them"
    types = {file.media_type.partition("/")[0] for file in media.files}
    files = [_of_file(media, number, file) for number, file in enumerate(media.files)]
    if types == {"image"}:  # GIFs too, as SwanLab's own videos are
        return ColumnType.COLUMN_TYPE_IMAGE, files, ""
    if types == {"audio"}:
        return ColumnType.COLUMN_TYPE_AUDIO, files, ""
    if types == {"video"}:
        return ColumnType.COLUMN_TYPE_VIDEO, files, ""
    return ColumnType.COLUMN_TYPE_HTML, files, ""


def item(media: Media, suffix: str, content: bytes, caption: str = "") -> tuple[str, str, bytes, str]:
    """A file made here."""
    sha256 = hashlib.sha256(content).hexdigest()
    return f"{media.step:03d}-{media.position}-{sha256[:8]}.{suffix}", sha256, content, caption


def _of_file(media: Media, number: int, file: MediaFile) -> tuple[str, str, bytes, str]:
    name = f"{media.step:03d}-{media.position}-{number}-{file.sha256[:8]}{file.path.suffix}"
    return name, file.sha256, file.path.read_bytes(), file.caption


def _table(media: Media) -> bytes:
    rows = rows_of(media)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in media.details["columns"])
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows[:_MOST_ROWS]
    )
    more = f"<p>{len(rows):,} rows in all</p>" if len(rows) > _MOST_ROWS else ""
    return _bytes(f"<table border=1><tr>{head}</tr>{body}</table>{more}")


def _bytes(text: str) -> bytes:
    return str(without_surrogates(text)).encode()


def _cell(value: object) -> str:
    if isinstance(value, MediaFile):
        import base64

        data = base64.b64encode(value.path.read_bytes()).decode()
        title = html.escape(value.caption)
        return f'<img title="{title}" src="data:{html.escape(value.media_type)};base64,{data}">'
    return "" if value is None else html.escape(str(value))


def _histogram(media: Media) -> bytes:
    counts, edges = media.details["counts"], media.details["edges"]
    most = max(counts) or 1
    rows = "".join(
        f"<tr><td>{low:.4g} to {high:.4g}</td><td>{count:g}</td>"
        f'<td><div style="background:#528d59;height:1em;width:{300 * count / most:.0f}px"></div></td></tr>'
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    )
    return f"<table>{rows}</table>".encode()
