"""`otel-tracking doctor`: what on this machine stands in the way, and what to do about each."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from otel_tracking import discovery, settings
from otel_tracking.capabilities import Server
from otel_tracking.cli.arguments import ProjectDir
from otel_tracking.cli.output import note, print_table, safe
from otel_tracking.doctor.finding import Finding, State, ok, remark
from otel_tracking.doctor.folders import look_at_folder, look_at_writable
from otel_tracking.doctor.servers import look_at_server, named
from otel_tracking.doctor.trackers import look_at_trackers

_OTLP: Final = tuple(
    Server(variables=(variable,), schemes=("grpc", "http", "https"), bare=True)
    for variable in (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    )
)


def doctor(
    log_with: Annotated[
        str,
        typer.Option(
            help="Trackers, with commas between. Default: OTEL_TRACKING_LOG_WITH, else all installed.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    project_dir: ProjectDir = "outputs",
    logging_dir: Annotated[
        str, typer.Option(help="Of `Tracking(logging_dir=...)`, if it is another.", show_default=False)
    ] = "",
) -> None:
    """Look at this machine: packages, logins, folders, servers. Exits with 1 if there is a problem."""
    names = _names(log_with)
    findings = list(_look(names, Path(project_dir).absolute(), logging_dir))
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in findings], indent=1))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "about", "found", "to do"):
            table.add_column(column, overflow="fold")
        for each in findings:
            table.add_row(each.state.value, safe(each.about), safe(each.text), safe(each.fix))
        print_table(table)
    if any(each.state is State.PROBLEM for each in findings):
        raise typer.Exit(1)


def _names(log_with: str) -> list[str]:
    known = discovery.known()
    named = [name for part in log_with.split(",") if (name := part.strip())]
    for name in named:
        if name != discovery.ALL and name not in known:
            note(f"there is no tracker {name!r}; known: {', '.join(known)}")
            raise typer.Exit(2)
    if discovery.ALL in named:
        return list(known)
    return (
        named
        or discovery.named_by_environment()
        or [name for name in known if discovery.installed_version(name)]
    )


def _look(names: list[str], project_dir: Path, logging_dir: str) -> Iterator[Finding]:
    found = [named(server, os.environ) for server in _OTLP]
    receivers = [look_at_server("OTLP", each) for each in found if each is not None]
    yield ok("Python", f"{platform.python_version()} on {platform.platform()}")
    for package in ("otel-tracking", "opentelemetry-api", "opentelemetry-sdk"):
        yield ok(package, version(package))
    yield from look_at_folder("project directory", project_dir, settings.PROJECT_DIR.variable)
    if logging_dir:
        yield look_at_writable("logging directory", Path(logging_dir).absolute(), "logging_dir")
    if settings.DELIVERY.get() == "off":
        text = f"{settings.DELIVERY.variable}=off: only the journal is written"
        yield remark("delivery", text, "`otel-tracking sync` delivers it later")
    yield from look_at_trackers(names)
    for answer in receivers:
        yield answer()


def _as_json(finding: Finding) -> dict[str, str]:
    return {
        "about": finding.about,
        "state": finding.state.value,
        "text": finding.text,
        "fix": finding.fix,
    }
