"""`otel-tracking show`: one run, at a glance."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import math
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from otel_tracking import environment
from otel_tracking.cli.arguments import ProjectDir, Run, selected
from otel_tracking.cli.output import note, print_table, safe, when
from otel_tracking.config import flatten_config
from otel_tracking.errors import TrackingError
from otel_tracking.records import Float64Array, MediaKind
from otel_tracking.runs import RunOnDisk, receipt, status_of_run
from otel_tracking.summary import CURVE_POINTS, RunSummary, SeriesSummary, summarize

_BARS = "▁▂▃▄▅▆▇█"
_LONGEST_VALUE = 100


def show(
    run: Run,
    series: Annotated[str, typer.Option(help="Only series whose tag fits that pattern (`train/*`).")] = "*",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    project_dir: ProjectDir = "outputs",
) -> None:
    """Show a run: configuration, status, what was delivered, and the course of each series."""
    chosen = selected(project_dir, run)
    try:
        summary = summarize(chosen.directory)
        found = receipt(chosen, points=summary.points + summary.damaged + summary.removed)
        status = status_of_run(chosen)
    except (TrackingError, OSError) as error:
        note(str(error))
        raise typer.Exit(1) from None
    summary.series = [each for each in summary.series if fnmatch.fnmatchcase(each.series.tag, series)]
    if as_json:
        about = _as_json(chosen, summary)
        about |= {"status": status, "receipt": dataclasses.asdict(found)}
        typer.echo(json.dumps(about, indent=1))
        return
    _show_head(chosen, summary, status)
    typer.echo(safe(str(found)) + "\n")
    _show_series(summary)


def _show_head(run: RunOnDisk, summary: RunSummary, status: str) -> None:
    head = Table(box=None, pad_edge=False, show_header=False)
    head.add_row("run", safe(run.run_id))
    if run.description.get("name") not in (None, run.run_id):
        head.add_row("name", safe(str(run.description["name"])))
    head.add_row("project", safe(str(run.description.get("project", ""))))
    head.add_row("directory", safe(str(run.directory)))
    head.add_row("status", status)
    for begun, about in summary.starts:
        at = when(begun, "%Y-%m-%d %H:%M:%S")
        head.add_row("begun", safe(f"{at} on {about.get('host', '?')}, process {about.get('pid', '?')}"))
    git = environment.read(run.directory).get("git")
    if isinstance(git, dict):
        changed = " with changes" if git.get("dirty") else ""
        head.add_row("code", safe(f"{git.get('commit', '?')} on {git.get('branch', '?')}{changed}"))
    for step in summary.rewinds:
        head.add_row("gone back", f"to step {step}")
    if summary.damaged:
        head.add_row("damaged", f"{summary.damaged:,} points; see `otel-tracking verify`")
    if summary.removed:
        head.add_row("removed", f"{summary.removed:,} points, to save space")
    if summary.texts:
        head.add_row("texts", f"{summary.texts:,}")
    for kind, count in sorted(summary.media.items()):
        head.add_row("media", f"{count:,} {MediaKind(kind).plural}")
    for name, value in flatten_config(summary.config).items():
        text = safe(str(value))
        shown = text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
        head.add_row("config", f"{safe(name)} = {shown}")
    print_table(head)
    typer.echo()


def _show_series(summary: RunSummary) -> None:
    if not summary.series:
        return
    ranks = len({each.rank for each in summary.series}) > 1
    table = Table(box=None, pad_edge=False)
    table.add_column("series", overflow="fold")
    if ranks:
        table.add_column("rank", justify="right")
    for column in ("points", "last step", "last value", "lowest", "highest"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("course", no_wrap=True, min_width=CURVE_POINTS // 2)
    for each in sorted(summary.series, key=lambda one: (one.series.tag, one.rank)):
        numbers = (each.last_value, each.lowest, each.highest)
        table.add_row(
            safe(each.series.tag),
            *([str(each.rank)] if ranks else []),
            f"{each.points:,}",
            str(each.last_step),
            *(f"{number:.6g}" for number in numbers),
            sparkline(each.curve.means()),
        )
    print_table(table)


def sparkline(values: Float64Array) -> str:
    """Bars of eight heights, between the lowest and the highest; a blank where there is no number."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return " " * len(values)
    low, span = float(finite.min()), float(np.ptp(finite / 2))  # halves: the whole may overflow
    heights = np.zeros(len(values)) if not span else (values / 2 - low / 2) / span * (len(_BARS) - 1)
    return "".join(
        " " if math.isnan(value) else _BARS[round(height)]
        for value, height in zip(values.tolist(), heights.tolist(), strict=True)
    )


def _as_json(run: RunOnDisk, summary: RunSummary) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "directory": str(run.directory),
        "description": dict(run.description),
        "config": summary.config,
        "environment": environment.read(run.directory),
        "starts": [{"time_ns": begun, **about} for begun, about in summary.starts],
        "rewinds": summary.rewinds,
        "texts": summary.texts,
        "media": summary.media,
        "damaged": summary.damaged,
        "removed": summary.removed,
        "series": [_series_as_json(each) for each in summary.series],
    }


def _series_as_json(each: SeriesSummary) -> dict[str, Any]:
    return {
        **dataclasses.asdict(each.series),
        "rank": each.rank,
        "points": each.points,
        "last_step": each.last_step,
        "last_value": each.last_value,
        "lowest": each.lowest,
        "highest": each.highest,
        "curve": each.curve.means().tolist(),
    }
