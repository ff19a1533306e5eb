"""Whether a folder can hold journals: writable, with locks and reserved space, and room."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from otel_tracking.doctor.finding import Finding, State, ok, problem, remark
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
    try:
        place = _nearest(folder)
        if not place.is_dir():
            yield _no_folder(about, place, setting)
            return
        with _scratch(place) as name:
            yield from _try_out(about, folder, Path(name), setting)
    except OSError as error:
        yield _not_writable(about, folder, setting, error)


def look_at_writable(about: str, folder: Path, setting: str) -> Finding:
    """Whether files can be made in a folder that may not exist yet, which is all that trackers need.

    Args:
        about: Whose it is.
        folder: Where.
        setting: What to set for another one; empty if there is nothing.
    """
    try:
        place = _nearest(folder)
        if not place.is_dir():
            return _no_folder(about, place, setting)
        with _scratch(place) as name:
            Path(name, "file").write_bytes(b"x")
    except OSError as error:
        return _not_writable(about, folder, setting, error)
    return ok(about, f"{folder} can be written" if place == folder else f"{folder} can be made")


def look_at_file(about: str, path: Path, setting: str) -> Finding:
    """Whether a database's file can be written, and others beside it, as databases need.

    Args:
        about: Whose it is.
        path: Of the file; it may not exist yet.
        setting: What to set for another one.
    """
    if path.is_dir():
        return problem(about, f"{path} is a folder, not a file", f"set {setting} to a file in it")
    beside = look_at_writable(about, path.parent, setting)
    if beside.state is not State.OK:
        return beside
    try:
        if path.exists():
            with path.open("r+b"):
                pass
    except OSError as error:
        text = f"{path} can't be written: {error.strerror or error}"
        return problem(about, text, f"chmod u+rw {path}, or set {setting} to another file")
    return ok(about, f"{path} can be written" if path.exists() else f"{path} can be made")


def _nearest(folder: Path) -> Path:
    """The folder, or what there is of its parents.

    Raises:
        OSError: That can't be seen.
    """
    place = folder.absolute()
    while not place.exists() and place != place.parent:
        if place.is_symlink():  # to nothing: what stands in the way is the link itself
            return place
        place = place.parent
    return place


def _scratch(place: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=".otel-tracking-doctor-", dir=place)


def _no_folder(about: str, place: Path, setting: str) -> Finding:
    return problem(about, f"{place} is no folder", f"remove it{_or_another(setting)}")


def _not_writable(about: str, folder: Path, setting: str, error: OSError) -> Finding:
    why = error.strerror or str(error)
    place = folder.absolute()
    with contextlib.suppress(OSError):
        place = _nearest(folder)
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = f"chmod u+rwx {place}{_or_another(setting)}"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = f"make room on the disk of {place}{_or_another(setting)}"
    elif setting:
        fix = f"set {setting} to a folder that can be written"
    else:
        fix = f"let {place} be written"
    return problem(about, f"{folder} can't be written: {why}", fix)


def _or_another(setting: str) -> str:
    return f", or set {setting} to another folder" if setting else ""


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
