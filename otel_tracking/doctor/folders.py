"""Whether a folder can hold journals: writable, with locks and reserved space, and room."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from otel_tracking.doctor.finding import Finding, ok, problem, remark
from otel_tracking.journal.locking import Lock

_LOW: Final = 2**30
_SEGMENT: Final = 2**20
_NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "ceph", "glusterfs", "9p")


def look_at_folder(about: str, folder: Path, setting: str) -> Iterator[Finding]:
    """Findings about a folder that may not exist yet; a file is made in it, or above it, and removed.

    Args:
        about: What it is for people.
        folder: Where.
        setting: What to set for another one.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        yield problem(about, f"{place} is no folder", f"remove it, or set {setting} to another folder")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".otel-tracking-doctor-", dir=place) as name:
            yield from _try_out(about, folder, Path(name), setting)
    except OSError as error:
        why = error.strerror or str(error)
        yield problem(
            about,
            f"{folder} can't be written: {why}",
            f"chmod u+rwx {place}, or set {setting} to a folder of yours",
        )


def _try_out(about: str, folder: Path, place: Path, setting: str) -> Iterator[Finding]:
    try:
        Lock(place / "lock").release()
    except OSError as error:
        yield problem(
            about,
            f"{folder} has no file locks ({error.strerror})",
            f"set {setting} to a folder on a local disk",
        )
        return
    try:
        _map(place / "map")
    except OSError as error:
        yield problem(
            about,
            f"files in {folder} can't be reserved and mapped ({error.strerror})",
            f"set {setting} to a folder on a local disk, or make room",
        )
        return
    free = shutil.disk_usage(place).free
    room = f"{free / 2**30:,.1f} GiB free"
    if free < _LOW:
        yield problem(about, f"{folder}: {room}", f"make room, or set {setting} to another disk")
        return
    kind = file_system(place)
    if kind in _NETWORK:
        yield remark(
            about,
            f"{folder} is on {kind}, {room}: a server that is away stops the training loop",
            f"set {setting} to a folder on a local disk",
        )
    else:
        yield ok(about, f"{folder} can be written, {room}" + (f" ({kind})" if kind else ""))


def _map(path: Path) -> None:
    with path.open("w+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _SEGMENT)
        else:
            file.truncate(_SEGMENT)
        with mmap.mmap(file.fileno(), _SEGMENT) as mapped:
            mapped.write(b"x")


def file_system(path: Path) -> str:
    """The type of the file system that a path lies on, as Linux calls it; empty elsewhere."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    resolved = path.resolve()
    best, kind = Path("/"), ""
    for line in mounts:
        _, point, type_, *_ = line.split(" ")
        where = Path(point.replace("\\040", " "))
        if (resolved == where or where in resolved.parents) and len(where.parts) >= len(best.parts):
            best, kind = where, type_
    return kind
