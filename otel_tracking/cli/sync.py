"""`otel-tracking sync`: what was recorded goes into trackers, now or at last."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from otel_tracking import discovery
from otel_tracking.cli.arguments import PATIENCE, ProjectDir
from otel_tracking.cli.output import note, safe
from otel_tracking.errors import ConfigurationError, TrackingError
from otel_tracking.ranks import RankPolicies, parse
from otel_tracking.records import RunStatus, TrackerReceipt
from otel_tracking.runner import deliver
from otel_tracking.runs import RunOnDisk, add_tracker, find_runs, select
from otel_tracking.sidecar import is_running, wait_for_sidecar

_State = Mapping[tuple[str, int], TrackerReceipt]


def sync(
    run: Annotated[str, typer.Argument(help="The run: its id, the beginning of it, or its directory.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Every run of the project directory.")] = False,
    to: Annotated[
        list[str] | None,
        typer.Option(
            help="A tracker to deliver to, also one that the run was not recorded for; may be repeated. "
            "Default: those that the run was recorded for."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="A run that is being recorded: go on until it ends.")
    ] = False,
    ranks: Annotated[
        str, typer.Option(help="Which ranks a tracker gets that is new to the run, as for `run`.")
    ] = "",
    timeout: Annotated[
        float, typer.Option(help="Seconds that a run's delivery may take, from the end of its process.")
    ] = 3600.0,
    project_dir: ProjectDir = "outputs",
) -> None:
    """Deliver what trackers have not got yet. Repeating it changes nothing."""
    directory = Path(project_dir).absolute()
    try:
        if bool(run) == every:
            raise ConfigurationError("name one run, or give --all")
        policies = parse(ranks or None, known=discovery.known())
        for name in to or ():
            discovery.check(name)
        chosen = list(find_runs(directory)) if every else [select(directory, run)]
    except ConfigurationError as error:
        note(str(error))
        raise typer.Exit(2) from None
    if not chosen:
        note(f"there are no runs in {directory}")
    complete = [_sync(each, to, policies, follow=follow, timeout=timeout) for each in chosen]
    raise typer.Exit(0 if all(complete) else 1)


def _sync(
    run: RunOnDisk, to: list[str] | None, policies: RankPolicies, *, follow: bool, timeout: float
) -> bool:
    """Whether all has been delivered."""
    try:
        for name in to or ():
            add_tracker(run, name, policies)
        if not run.recorded and is_running(run.directory):
            note(f"{run.run_id}: waiting for its sidecar")
            wait_for_sidecar(run.directory, timeout)
        with _bars(run) as show:
            receipt = deliver(
                run,
                RunStatus.KILLED,
                timeout,
                patience=PATIENCE,
                trackers=to,
                follow=follow,
                on_progress=show,
            )
    except (TrackingError, OSError) as error:
        note(f"{run.directory}: {error}")
        return False
    note(f"{receipt}\n  in {run.directory}")
    if not receipt.trackers:
        note("no tracker is to get this run; name one: --to tensorboard")
    return all(receipt.trackers[name].pending == 0 for name in to or receipt.trackers)


@contextlib.contextmanager
def _bars(run: RunOnDisk) -> Iterator[Callable[[_State], None]]:
    """A bar for each tracker and rank, on a terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[points]}", markup=False),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[tuple[str, int], TaskID] = {}

        def show(state: _State) -> None:
            for (name, rank), receipt in state.items():
                done = receipt.recorded - receipt.pending
                if (name, rank) not in tasks:
                    what = safe(f"{run.run_id} > {name}" + (f" (rank {rank})" if rank else ""))
                    tasks[name, rank] = progress.add_task(what, points="", state="")
                progress.update(
                    tasks[name, rank],
                    total=max(receipt.recorded, 1),
                    completed=done if receipt.recorded else 1,
                    points=f"{done:,} of {receipt.recorded:,}",
                    state=receipt.state,
                )

        yield show
