"""`otel-tracking runs`: what lies here, and what trackers have not got yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from otel_tracking.cli.arguments import ProjectDir
from otel_tracking.cli.output import note, print_table, safe, when
from otel_tracking.errors import TrackingError
from otel_tracking.runs import RunOnDisk, find_runs, receipt, status_of_run

_ID_WIDTH = 24
"""Of an id that was made up. People copy them."""
_UNITS = ("B", "KB", "MB", "GB", "TB")


def runs(
    project: Annotated[str, typer.Option(help="Only the runs of that project.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    project_dir: ProjectDir = "outputs",
) -> None:
    """List the runs of a directory: how they ended, and what is delivered."""
    directory = Path(project_dir).absolute()
    found = [
        _about(run) for run in find_runs(directory) if project in ("", str(run.description.get("project")))
    ]
    found.sort(key=lambda about: about["created"])
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    if not found:
        note(f"there are no runs in {directory}")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("project", overflow="fold")
    table.add_column("run", no_wrap=True, min_width=_ID_WIDTH, overflow="fold")
    for column in ("begun", "status"):
        table.add_column(column)
    table.add_column("points", justify="right")
    table.add_column("size", justify="right")
    table.add_column("trackers")
    for about in found:
        table.add_row(
            safe(about["project"]),
            safe(about["run"]),
            when(about["created"], "%Y-%m-%d %H:%M"),
            about["status"],
            f"{about['points']:,}",
            size(about["bytes"]),
            safe(about["error"] or _trackers(about["trackers"]) or "none"),
        )
    print_table(table)
    pending = sum(1 for path in (directory / ".pending").glob("*"))
    if pending:
        place = directory / ".pending"
        note(f"{pending} journals in {place} are of processes that ended before their run had a name")


def _about(run: RunOnDisk) -> dict[str, Any]:
    about = {
        "project": str(run.description.get("project", "")),
        "run": run.run_id,
        "directory": str(run.directory),
        "created": run.created,
        "bytes": 0,
        "status": "",
        "points": 0,
        "trackers": {},
        "error": "",
    }
    try:
        about["bytes"] = sum(path.stat().st_size for path in (run.directory / "journal").rglob("*.segment*"))
        found = receipt(run)
        about["status"] = status_of_run(run)
    except (TrackingError, OSError) as error:
        return {**about, "error": str(error)}
    trackers = {
        name: {
            "delivered": tracker.delivered,
            "pending": tracker.pending,
            "dropped": sum(tracker.dropped.values()),
            "state": tracker.state,
        }
        for name, tracker in found.trackers.items()
    }
    return {**about, "points": found.recorded, "trackers": trackers}


def _trackers(trackers: dict[str, dict[str, Any]]) -> str:
    """What is not delivered stands behind a tracker's name."""
    words = []
    for name, tracker in trackers.items():
        left = [f"{tracker[what]:,} {what}" for what in ("pending", "dropped") if tracker[what]]
        if not left and tracker["state"] == "unfinished":
            left = ["open"]
        words.append(f"{name} ({', '.join(left)})" if left else name)
    return ", ".join(words)


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
