"""`otel-tracking dead-letters`: what trackers refused for good, and giving it to them again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from otel_tracking.cli.arguments import PATIENCE, ProjectDir, Run, selected
from otel_tracking.cli.output import note, print_table, safe
from otel_tracking.dead_letters import DeadLetters, Letter
from otel_tracking.errors import TrackingError
from otel_tracking.records import RunStatus
from otel_tracking.runner import deliver
from otel_tracking.runs import RunOnDisk

_SHOWN = 20
"""Letters of one tracker and reason that are printed; `--json` gives all."""


def dead_letters(
    run: Run,
    resend: Annotated[
        bool, typer.Option("--resend", help="Give trackers what they refused once more, and what is pending.")
    ] = False,
    tracker: Annotated[
        list[str] | None, typer.Option(help="Only that tracker; may be repeated. Default: all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each letter.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that sending again may take.")] = 3600.0,
    project_dir: ProjectDir = "outputs",
) -> None:
    """Show what trackers refused for good; exits with 1 if there is anything."""
    chosen = selected(project_dir, run)
    try:
        if resend:
            receipt = deliver(
                chosen, RunStatus.KILLED, timeout, patience=PATIENCE, trackers=tracker, resend=True
            )
            note(f"{receipt}\n  in {chosen.directory}")
        found = _letters(chosen, tracker)
    except (TrackingError, OSError) as error:
        note(str(error))
        raise typer.Exit(2) from None
    if as_json:
        for name, rank, letter in found:
            typer.echo(json.dumps({"tracker": name, "rank": rank, **asdict(letter)}))
    elif found:
        _show(found)
    else:
        note("there are no dead letters")
    raise typer.Exit(1 if found else 0)


def _letters(run: RunOnDisk, trackers: list[str] | None) -> list[tuple[str, int, Letter]]:
    return [
        (cursor.tracker, int(cursor.run["rank"]["rank"]), letter)
        for path, cursor in run.cursors()
        if not trackers or cursor.tracker in trackers
        for letter in DeadLetters(path).load()
    ]


def _show(found: list[tuple[str, int, Letter]]) -> None:
    ranks = len({rank for _, rank, _ in found}) > 1
    table = Table(box=None, pad_edge=False)
    for column in ("tracker", *(["rank"] if ranks else []), "what", "name"):
        table.add_column(column, overflow="fold")
    table.add_column("step", justify="right")
    table.add_column("value", justify="right")
    table.add_column("reason", overflow="fold")
    seen: Counter[tuple[str, str]] = Counter()
    for name, rank, letter in found:
        seen[name, letter.reason] += 1
        if seen[name, letter.reason] <= _SHOWN:
            value = f"{letter.content['value']:.6g}" if letter.kind == "point" else ""
            place = [safe(name), *([str(rank)] if ranks else []), letter.kind, safe(letter.name)]
            table.add_row(*place, str(letter.step), value, safe(letter.reason))
    print_table(table)
    for (name, reason), count in seen.items():
        if count > _SHOWN:
            note(f"{name}: {count - _SHOWN:,} more ({reason}); --json prints all")
    note("--resend gives them to the trackers once more")
