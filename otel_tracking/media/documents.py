"""Figures, HTML, and files of any kind."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Final

from otel_tracking.media.encoded import Encoded, EncodedMedia, Unencodable, from_file, type_name
from otel_tracking.media.images import encode_image, is_image
from otel_tracking.records import MediaKind

_MOST_FILES: Final = 10_000


def encode_figure(value: Any) -> EncodedMedia:
    """A figure of matplotlib (its axes do too) or of plotly, or an image of one.

    matplotlib's becomes PNG as it is drawn; plotly's HTML that needs plotly's script from its usual place.

    Raises:
        Unencodable: It is none.
    """
    figure = getattr(value, "figure", None) if not hasattr(value, "savefig") else value
    if figure is not None and hasattr(figure, "savefig"):
        data = io.BytesIO()
        figure.savefig(data, format="png", bbox_inches="tight")
        return EncodedMedia(MediaKind.FIGURE, (_png(data.getvalue()),))
    if hasattr(value, "to_html") and hasattr(value, "to_json"):
        html = value.to_html(include_plotlyjs="cdn").encode()
        document = Encoded(html, ".html", "text/html", details={"library": "plotly"})
        return EncodedMedia(MediaKind.FIGURE, (document,))
    if is_image(value):
        return EncodedMedia(MediaKind.FIGURE, (encode_image(value, []),))
    raise Unencodable(f"{type_name(value)} is no figure of matplotlib or plotly")


def _png(data: bytes) -> Encoded:
    return encode_image(data, [])


def encode_html(value: Any) -> EncodedMedia:
    """A text, or a path that ends in `.html` or `.htm`.

    Raises:
        Unencodable: It is none.
    """
    is_path = isinstance(value, os.PathLike) or (
        isinstance(value, str) and value.lower().endswith((".html", ".htm")) and "<" not in value
    )
    if is_path:
        return EncodedMedia(MediaKind.HTML, (from_file(value, "HTML"),))
    if not isinstance(value, str):
        raise Unencodable(f"{type_name(value)} is no HTML: a text, or the path of a file")
    data = value.encode(errors="backslashreplace")
    return EncodedMedia(MediaKind.HTML, (Encoded(data, ".html", "text/html"),))


def encode_artifact(path: str | os.PathLike[str]) -> EncodedMedia:
    """A file, or all files of a folder and the folders in it.

    Links to files are followed; other things than files are left out.

    Raises:
        Unencodable: There is nothing at the path, or no file in it.
    """
    root = Path(path)
    if not root.is_dir():
        return EncodedMedia(MediaKind.ARTIFACT, (from_file(root, "an artifact"),))
    files = []
    for place, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            file = Path(place, name)
            if file.is_file():
                known = file.relative_to(root).as_posix()
                files.append(Encoded(file, file.suffix, from_file(file, "").media_type, known))
        if len(files) > _MOST_FILES:
            raise Unencodable(f"more than {_MOST_FILES:,} files in {os.fspath(path)!r:.200}")
    if not files:
        raise Unencodable(f"there is no file in {os.fspath(path)!r:.200}")
    return EncodedMedia(MediaKind.ARTIFACT, tuple(files))
