"""What a run is to be, and how that is noted down for other processes."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from otel_tracking.config import to_jsonable
from otel_tracking.cursor import Cursor
from otel_tracking.ranks import RankPolicies
from otel_tracking.records import Rank, RunInfo
from otel_tracking.resource import resource
from otel_tracking.retention import Keep
from otel_tracking.tracker import Tracker

NO_TRACKER: Final = ""
"""Whose policy holds where there is only the journal: none is named so, so that the default applies."""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a run is to be."""

    project: str
    project_dir: Path
    load: Callable[[], tuple[Mapping[str, Callable[[], Tracker]], Mapping[str, str]]]
    """Makes the makers of the wanted trackers, and for each other why there is none. It may import
    packages, on a thread of its own."""
    names: Sequence[str]
    """The wanted trackers, before they are imported."""
    logging_dir: Path | None = None
    run_id: str | None = None
    run_name: str = ""
    policies: RankPolicies = field(default_factory=RankPolicies)
    init_kwargs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: float = 0.05
    delivery: str = "thread"
    """Where trackers are fed: `thread`, `process` (a sidecar), or `off`: nowhere yet."""
    fsync: str = "off"
    """How much of the journal survives the death of the machine, as for `JournalWriter`."""
    compress: str = "pack"
    """The form of the journal's segments, as for `JournalWriter`."""
    keep: Keep = field(default_factory=Keep)
    """What is kept of the journal."""
    system_metrics: float = 0.0
    """Seconds between two samples of system metrics; 0 for none."""
    ordinal: int = 1
    """1 for the first run that this process begins."""


def wants(request: RunRequest, rank: Rank) -> bool:
    """Whether this rank records anything in that run."""
    return any(request.policies.wants(name, rank) for name in request.names or [NO_TRACKER])


def run_note(info: RunInfo) -> dict[str, Any]:
    """A `RunInfo` as JSON values, for the cursor."""
    note = {each.name: getattr(info, each.name) for each in fields(info)}
    del note["state"], note["position"]
    return to_jsonable(note)


def run_info(note: Mapping[str, Any], cursor: Cursor) -> RunInfo:
    """The `RunInfo` that a cursor keeps; its `run` must not be empty."""
    return RunInfo(
        **{
            **note,
            "directory": Path(note["directory"]),
            "logging_dir": Path(note["logging_dir"]),
            "rank": Rank(**note["rank"]),
            "state": cursor.state,
            "position": cursor.position,
        }
    )


def start_note(request: RunRequest, rank: Rank) -> dict[str, Any]:
    """What a journal says of the process that begins to write it."""
    return {
        "project": request.project,
        "pid": os.getpid(),
        "host": platform.node(),
        "python": platform.python_version(),
        "resource": resource(request.project, rank),
    }
