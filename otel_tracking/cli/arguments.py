"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from otel_tracking import settings
from otel_tracking.cli.output import note
from otel_tracking.errors import TrackingError
from otel_tracking.runs import RunOnDisk, select

Run: TypeAlias = Annotated[
    str, typer.Argument(help="The run: its id, the beginning of it, or its directory.")
]
ProjectDir: TypeAlias = Annotated[
    str, typer.Option(help="Directory of all runs.", envvar=settings.PROJECT_DIR.variable)
]


PATIENCE = 60.0
"""Seconds after which commands give up trackers that get nowhere. A server that restarts is up by then."""


def selected(project_dir: str, run: str) -> RunOnDisk:
    """The run that was named; says so and exits with 2 if there is none."""
    try:
        return select(Path(project_dir).absolute(), run)
    except TrackingError as error:
        note(str(error))
        raise typer.Exit(2) from None
