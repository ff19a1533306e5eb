"""`otel-tracking verify`: whether what was recorded is still there."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from otel_tracking.cli.arguments import ProjectDir, Run, selected
from otel_tracking.cli.output import note, print_table, safe
from otel_tracking.errors import TrackingError
from otel_tracking.journal.format import segment_name
from otel_tracking.journal.verifying import SegmentReport, mend
from otel_tracking.journal.verifying import verify as look
from otel_tracking.reading import journals
from otel_tracking.runs import RunOnDisk

_LISTED = 10
"""Damaged blocks that are named."""


def verify(
    run: Run,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Cut what a killed process left, and seal what is not. Damage stays as it is."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    project_dir: ProjectDir = "outputs",
) -> None:
    """Look at every byte of a run's journals; exits with 1 if anything is damaged, missing or torn."""
    chosen = selected(project_dir, run)
    try:
        if repair:
            for _, journal in journals(chosen.directory):
                mend(journal)
        found = [(rank, look(journal)) for rank, journal in journals(chosen.directory)]
    except (TrackingError, OSError) as error:
        note(str(error))
        raise typer.Exit(2) from None
    whole = all(report.whole for _, reports in found for report in reports)
    if as_json:
        ranks = [{"rank": rank, "segments": [asdict(each) for each in reports]} for rank, reports in found]
        typer.echo(json.dumps(ranks, indent=1))
    else:
        _show(chosen, found)
    raise typer.Exit(0 if whole else 1)


def _show(run: RunOnDisk, found: list[tuple[int, list[SegmentReport]]]) -> None:
    reports = [report for _, of_rank in found for report in of_rank]
    points = sum(each.points for each in reports)
    typer.echo(f"run {safe(run.run_id)}: {_count(len(reports), 'segment')}, {_count(points, 'point')}")
    if all(each.whole for each in reports):
        typer.echo("  nothing is damaged")
        return
    lost, texts = sum(each.lost for each in reports), sum(each.lost_texts for each in reports)
    typer.echo(f"  lost: {_count(lost, 'point')}" + (f", {_count(texts, 'text')}" if texts else ""))
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "segment"):
        table.add_column(column)
    for column in ("points", "lost"):
        table.add_column(column, justify="right")
    table.add_column("what is wrong")
    for rank, of_rank in found:
        for each in of_rank:
            if not each.whole:
                numbers = (f"{each.points:,}", f"{each.lost:,}")
                table.add_row(str(rank), segment_name(each.index), *numbers, _wrong(each))
    print_table(table)
    if any(each.torn for each in reports):
        note("--repair cuts what is torn: no whole record goes with it")


def _wrong(report: SegmentReport) -> str:
    wrong = [*report.problems]
    if report.damaged_blocks:
        blocks = ", ".join(map(str, report.damaged_blocks[:_LISTED]))
        more = ", ..." if len(report.damaged_blocks) > _LISTED else ""
        wrong.append(f"blocks of 64 KiB damaged: {blocks}{more}")
    if report.lost_texts:
        wrong.append(f"{_count(report.lost_texts, 'text')} lost")
    if report.torn:
        wrong.append(f"{_count(report.torn, 'slot')} at the end torn: a process was killed in the middle")
    return "; ".join(wrong)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
