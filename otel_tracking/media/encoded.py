"""What media are once they are files, or can't be."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from otel_tracking.records import MediaKind


class Unencodable(Exception):
    """A value is nothing that the kind of media can be made of; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A file to be."""

    source: bytes | Path
    """Its content, or a file that has it."""
    suffix: str
    media_type: str
    name: str = ""
    """As the user knows it; empty if it has none."""
    caption: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, bytes] = field(default_factory=dict)
    """PNG files of what lies over an image, by name; `details` has more of them."""


@dataclass(frozen=True, slots=True)
class EncodedMedia:
    """One thing logged under one name."""

    kind: MediaKind
    files: tuple[Encoded, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    """What was changed to make it."""


def from_file(path: str | os.PathLike[str], kind: str) -> Encoded:
    """A file as it is.

    Args:
        path: Where it lies.
        kind: What it should be, for the error: `an image`.

    Raises:
        Unencodable: There is none.
    """
    file = Path(path)
    if not file.is_file():
        raise Unencodable(f"there is no file {os.fspath(path)!r:.200} to be {kind}")
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return Encoded(file, file.suffix, media_type, file.name)


def type_name(value: object) -> str:
    """For errors."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
