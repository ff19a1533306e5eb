"""An Aim repository on this machine: there as a whole or not at all, and in it one run, whatever is killed.

Aim makes a repository over seconds, in place. One that a kill left half made it neither uses nor mends, so a
new one is made beside its place, and moved there.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]  # no types
from aim.sdk.configs import get_aim_repo_name
from aim.sdk.repo import Repo
from aim.sdk.utils import clean_repo_path, generate_run_hash

from otel_tracking.errors import Retry

_DRAFT: Final = ".draft"
_NOTE: Final = "aim-run.json"
_making: Final = threading.Lock()


def folder_of(repository: Any) -> Path | None:
    """The folder of a repository on this machine: what `aim.Run` takes as `repo`; None of another."""
    if isinstance(repository, Repo):
        return None if repository.is_remote_repo else Path(repository.path)
    place = str(repository)
    if place.startswith("ssh://") or Repo.is_remote_path(place):
        return None
    return Path(clean_repo_path(place), get_aim_repo_name())


def make(folder: Path) -> None:
    """Make the repository if there is none.

    Raises:
        Retry: It is half made.
        OSError: It can't be made.
    """
    with _making:
        if _is_whole(folder):
            return
        _remove_drafts(folder)
        if folder.exists():
            raise Retry(
                f"the Aim repository {folder} is half made, or of an old version. If no process is making "
                "it, move it away, or run `aim upgrade 2to3` if it has runs"
            )
        draft = folder.with_name(f"{folder.name}.{os.getpid()}{_DRAFT}")
        try:
            Repo(str(draft), init=True).structured_db.engine.dispose()
            Path(draft, folder.name).rename(folder)
        except OSError:
            if not _is_whole(folder):  # by now, of another process
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _remove_drafts(folder: Path) -> None:
    """Remove what processes left that were killed while they made it.

    There is no lock to wait for: a repository takes seconds, and MLflow's database lies in the same folder.
    """
    for left in folder.parent.glob(f"{folder.name}.*{_DRAFT}"):
        process = left.name.removeprefix(f"{folder.name}.").removesuffix(_DRAFT)
        if process.isdecimal() and (int(process) == os.getpid() or not psutil.pid_exists(int(process))):
            shutil.rmtree(left, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    return Path(folder, "VERSION").exists()  # written last


def reserve(folder: Path, run_directory: Path) -> tuple[str, bool]:
    """The hash of an empty run: that of a start that was killed before its state was saved, or a new one.

    Args:
        folder: The repository's.
        run_directory: The run's own; a note there keeps the hash until `state_is_saved`.

    Returns:
        The hash, and whether it is a new one.
    """
    note = run_directory / _NOTE
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        run_hash = noted["hash"] if noted["repository"] == str(folder) else None
    except (OSError, ValueError, KeyError, TypeError):
        run_hash = None
    is_new = run_hash is None
    if run_hash is None:
        run_hash = generate_run_hash()
        note.write_text(json.dumps({"repository": str(folder), "hash": run_hash}), encoding="utf-8")
    Path(folder, "meta", "chunks", run_hash).mkdir(parents=True, exist_ok=True)
    return run_hash, is_new


def state_is_saved(run_directory: Path) -> None:
    """A later start finds the run by its state."""
    Path(run_directory, _NOTE).unlink(missing_ok=True)
