"""`otel-tracking trackers`: which there are, which are installed, and what each can store."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from otel_tracking import discovery
from otel_tracking.capabilities import Declaration, Feature, Level
from otel_tracking.cli.output import note, print_table, safe
from otel_tracking.doctor.trackers import extra
from otel_tracking.records import MediaKind

_SIGNS: Final = {Level.EXACT: "exact", Level.CHANGED: "changed", Level.NOT_STORED: "-"}


def trackers(
    name: Annotated[str, typer.Argument(help="All about one tracker.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List the trackers: installed or not, how to keep each offline, and what it stores how well."""
    known = discovery.known()
    if name and name not in known:
        note(f"there is no tracker {name!r}; known: {', '.join(known)}")
        raise typer.Exit(2)
    found = {each: about(each) for each in known if name in ("", each)}
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    elif name:
        _print_one(name, found[name])
    else:
        _print_all(found)


def about(name: str) -> dict[str, Any]:
    """What is known of a tracker, as JSON values. Its package is not imported."""
    declaration = discovery.declaration(name)
    version = discovery.installed_version(name)
    return {
        "title": declaration.title if declaration else name,
        "installed": version,
        "extra": extra(name),
        "install": f"pip install '{extra(name)}'",
        "offline": declaration.offline if declaration else "",
        "stores": declaration.stores if declaration else "",
        "capabilities": _capabilities(declaration) if declaration else {},
    }


def _capabilities(declaration: Declaration) -> dict[str, dict[str, str]]:
    features: list[Feature | MediaKind] = [*Feature, *MediaKind]
    return {
        label(feature): {
            "level": declaration.of(feature).level.value,
            "note": declaration.of(feature).note,
        }
        for feature in features
    }


def label(feature: Feature | MediaKind) -> str:
    """What people read of a capability."""
    return feature.plural if isinstance(feature, MediaKind) else feature.value


def _print_all(found: dict[str, dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("tracker", "installed", "extra", "offline", "data"):
        table.add_column(column, overflow="fold")
    for name, each in found.items():
        table.add_row(
            name,
            safe(each["installed"] or "no"),
            safe(each["extra"]),
            safe(each["offline"]),
            safe(each["stores"]),
        )
    print_table(table)
    matrix = Table(box=None, pad_edge=False)
    matrix.add_column("")
    described = {name: each for name, each in found.items() if each["capabilities"]}
    for name in described:
        matrix.add_column(name)
    for feature in [label(each) for each in (*Feature, *MediaKind)]:
        levels = [Level(each["capabilities"][feature]["level"]) for each in described.values()]
        matrix.add_row(feature, *(_SIGNS[level] for level in levels))
    typer.echo()
    print_table(matrix)
    typer.echo("\n`otel-tracking trackers NAME` says more of one.")


def _print_one(name: str, each: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("tracker", safe(f"{each['title']} ({name})"))
    table.add_row("installed", safe(each["installed"] or f"no: {each['install']}"))
    table.add_row("extra", safe(each["extra"]))
    table.add_row("offline", safe(each["offline"]))
    table.add_row("data", safe(each["stores"]))
    for feature, capability in each["capabilities"].items():
        told = capability["level"] + (f": {capability['note']}" if capability["note"] else "")
        table.add_row(feature, safe(told))
    print_table(table)
