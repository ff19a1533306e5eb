"""Files of media, beside the segments: each once, named by its content's hash."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from otel_tracking.journal.entries import Entry
from otel_tracking.records import Media, MediaFile, MediaKind

FOLDER: Final = "media"
_CHUNK: Final = 2**20
_NOT_IN_SUFFIX: Final = re.compile(r"[^A-Za-z0-9.]")
_LONGEST_SUFFIX: Final = 16
_DRAFT: Final = ".draft-"
_drafts = itertools.count()


def store(journal: Path, source: bytes | Path, suffix: str, *, fsync: bool) -> tuple[str, int]:
    """Copy content into a journal, unless it is there already.

    Args:
        journal: Its directory.
        source: The content, or a file with it.
        suffix: Ends the name, `.png`; what is no letter, digit or dot is left out.
        fsync: Whether it has to survive the machine's death.

    Returns:
        Its SHA-256 in hex, and bytes.

    Raises:
        FileNotFoundError: The journal is not there any more, or the source is not.
        OSError: The file can't be read, or there is no space.
    """
    folder = journal / FOLDER
    folder.mkdir(exist_ok=True)
    draft = folder / f"{_DRAFT}{os.getpid()}-{next(_drafts)}"
    digest, size = hashlib.sha256(), 0
    try:
        with draft.open("xb") as file:
            for chunk in _chunks(source):
                digest.update(chunk)
                size += len(chunk)
                file.write(chunk)
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        draft.rename(folder / file_name(digest.hexdigest(), suffix))
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    return digest.hexdigest(), size


def remove_drafts(journal: int) -> None:
    """Remove what a killed writer had not finished: the next one may have its process id.

    Args:
        journal: A descriptor of its directory.
    """
    try:
        folder = os.open(FOLDER, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY, dir_fd=journal)
    except FileNotFoundError:
        return
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(_DRAFT)]
        for name in names:
            os.unlink(name, dir_fd=folder)
    finally:
        os.close(folder)


def file_name(sha256: str, suffix: str) -> str:
    """What content is called in `media/`."""
    return sha256 + _NOT_IN_SUFFIX.sub("", suffix)[:_LONGEST_SUFFIX]


def _chunks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    file: BinaryIO
    with source.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def take_over(source: Path, target: Path) -> None:
    """Move all files from one journal into another, both on one file system.

    Raises:
        OSError: They can't be moved.
    """
    folder = source / FOLDER
    if not folder.is_dir():
        return
    (target / FOLDER).mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.rename(target / FOLDER / file.name)


def file_content(file: MediaFile, suffix: str) -> dict[str, Any]:
    """A file as JSON values."""
    return {
        "sha256": file.sha256,
        "suffix": suffix,
        "size": file.size,
        "name": file.name,
        "type": file.media_type,
        "caption": file.caption,
        "details": dict(file.details),
    }


def media_content(media: Media) -> dict[str, Any]:
    """Media as JSON values, the options being those of one tracker."""
    return {
        "kind": media.kind.value,
        "tag": media.tag,
        "files": [file_content(file, file.path.name[len(file.sha256) :]) for file in media.files],
        "details": dict(media.details),
        "options": dict(media.options),
    }


def media_of(entry: Entry, journal: Path, tracker: str) -> Media:
    """What an entry says, with one tracker's options."""
    content = {**entry.content, "options": entry.content["options"].get(tracker, {})}
    return media_from(content, journal, entry.step, entry.time, entry.position)


def media_from(content: Mapping[str, Any], journal: Path, step: int, time: int, position: int) -> Media:
    """What `media_content` made."""
    files = [
        MediaFile(
            path=journal / FOLDER / file_name(file["sha256"], file["suffix"]),
            sha256=file["sha256"],
            size=file["size"],
            name=file["name"],
            media_type=file["type"],
            caption=file["caption"],
            details=file["details"],
        )
        for file in content["files"]
    ]
    kind = MediaKind(content["kind"])
    return Media(kind, content["tag"], files, content["details"], step, time, position, content["options"])
