"""Which run to go on with: one that is named, or the one that a checkpoint is of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from otel_tracking.errors import ConfigurationError, RunNotFound
from otel_tracking.identity import check, directory_name
from otel_tracking.request import RunRequest

_VERSION: Final = 1
_LISTED: Final = 10
"""How many runs an error lists."""


def resumed(request: RunRequest, run: str | os.PathLike[str], *, required: bool) -> RunRequest:
    """The request for going on with a run.

    Args:
        request: As for a new run.
        run: The run's id, or its directory.
        required: Whether it has to be there: a rank that records nothing may not see it.

    Raises:
        RunNotFound: There is no such run.
        ConfigurationError: It is one of another project, or this is no run's id.
    """
    path = Path(run)
    if isinstance(run, os.PathLike) or len(path.parts) > 1:
        path = path.absolute()
        if path.parent.name != directory_name(request.project):
            raise ConfigurationError(
                f"{path} is no run of the project {request.project!r}: it lies in {path.parent.name!r}"
            )
        request = replace(request, project_dir=path.parent.parent, run_id=check(path.name))
    else:
        path = request.project_dir / directory_name(request.project) / check(str(run))
        request = replace(request, run_id=path.name)
    if required and not (path / "run.json").is_file():
        raise RunNotFound(path.name, path.parent, _runs(path.parent))
    return request


def _runs(project: Path) -> list[str]:
    """The runs of a project, the last ones first."""
    found = sorted(project.glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.name for path in found[:_LISTED]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The identity of a run, as a checkpoint holds it."""

    project: str
    run_id: str
    """Empty where a rank records nothing."""

    def state(self) -> dict[str, Any]:
        """JSON values."""
        return {"version": _VERSION, "project": self.project, "run_id": self.run_id}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Checkpoint:
        """Read what `state` gave.

        Raises:
            ConfigurationError: It is something else.
        """
        try:
            version, project, run_id = state["version"], state["project"], state["run_id"]
        except (KeyError, TypeError, IndexError):
            version = None
        if version != _VERSION or not (isinstance(project, str) and isinstance(run_id, str)):
            raise ConfigurationError(f"this is nothing that state_dict() gave: {state!r:.200}")
        return cls(project, check(run_id) if run_id else "")

    def resumed(self, request: RunRequest) -> RunRequest:
        """The request for going on with it. It need not be there: a checkpoint may have moved alone.

        Raises:
            ConfigurationError: The request is for another project.
        """
        if request.project != self.project:
            raise ConfigurationError(
                f"the checkpoint is of a run of the project {self.project!r}, and not of {request.project!r}"
            )
        return replace(request, run_id=self.run_id) if self.run_id else request
