"""`otel-tracking run`: a program, recorded without a change to it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from otel_tracking import discovery, identity, settings
from otel_tracking.cli.output import note
from otel_tracking.errors import ConfigurationError
from otel_tracking.ranks import parse
from otel_tracking.records import RunStatus
from otel_tracking.runner import deliver
from otel_tracking.runs import find_runs
from otel_tracking.runs import receipt as summary
from otel_tracking.sidecar import SITE, is_running, wait_for_sidecar


def run(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, after `--`.")],
    log_with: Annotated[
        str, typer.Option(help="Trackers, comma-separated, or `all`.", envvar=settings.LOG_WITH.variable)
    ] = "",
    project_dir: Annotated[
        str, typer.Option(help="Directory of all runs.", envvar=settings.PROJECT_DIR.variable)
    ] = "outputs",
    project: Annotated[
        str, typer.Option(help="What runs are collected under.", envvar=settings.PROJECT.variable)
    ] = "",
    run_id: Annotated[
        str,
        typer.Option(help="The run's identity; one that exists is resumed.", envvar=settings.RUN_ID.variable),
    ] = "",
    run_name: Annotated[
        str, typer.Option(help="The run's name for people.", envvar=settings.RUN_NAME.variable)
    ] = "",
    delivery: Annotated[
        str,
        typer.Option(
            help="`thread`: trackers run on threads of the program; `process`: in a process of their own; "
            "`off`: only the journal is written.",
            envvar=settings.DELIVERY.variable,
        ),
    ] = "thread",
    ranks: Annotated[
        str,
        typer.Option(
            help="Which ranks record: `main`, `local_main`, `all`, `0,3`, or by tracker `wandb=all,*=main`.",
            envvar=settings.RANKS.variable,
        ),
    ] = "",
) -> None:
    """Run a program; what it sends through OpenTelemetry's API goes into trackers."""
    known = discovery.known()
    names = [name.strip() for name in log_with.split(",") if name.strip()]
    try:
        for name in names:
            if name != discovery.ALL:
                discovery.check(name)
        parse(ranks or None, known=known)
        if delivery not in settings.DELIVERIES:
            raise ConfigurationError(f"delivery can't be {delivery!r}: {', '.join(settings.DELIVERIES)}")
    except ConfigurationError as error:
        note(str(error))
        raise typer.Exit(2) from None
    run_id = identity.check(run_id) if run_id else identity.mint()
    directory = Path(project_dir).absolute()
    environ = {
        **os.environ,
        settings.LOG_WITH.variable: ",".join(names),
        settings.PROJECT_DIR.variable: str(directory),
        settings.PROJECT.variable: project or settings.project(),
        settings.RUN_ID.variable: run_id,
        settings.RUN_NAME.variable: run_name,
        settings.RANKS.variable: ranks,
        settings.DELIVERY.variable: delivery,
        # Programs that this one starts by other means than inheriting PYTHONPATH.
        "OTEL_PYTHON_METER_PROVIDER": "otel_tracking",
        "OTEL_PYTHON_TRACER_PROVIDER": "otel_tracking",
        "PYTHONPATH": os.pathsep.join(filter(None, (SITE, os.environ.get("PYTHONPATH")))),
    }
    code = _wait(command, environ)
    try:
        _deliver(directory, run_id, code, delivery)
    finally:
        raise typer.Exit(code if code >= 0 else 128 - code)


def _wait(command: list[str], environ: dict[str, str]) -> int:
    try:
        child = subprocess.Popen(command, env=environ)
    except OSError as error:
        note(f"{command[0]} can't be run: {error.strerror}")
        raise typer.Exit(127 if isinstance(error, FileNotFoundError) else 126) from None

    def forward(number: int, frame: FrameType | None) -> Any:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the program too
    return child.wait()


def _deliver(directory: Path, run_id: str, code: int, delivery: str) -> None:
    """What the program could not deliver itself, and the receipt."""
    status = RunStatus.FINISHED if code == 0 else RunStatus.KILLED if code < 0 else RunStatus.FAILED
    runs = list(find_runs(directory, run_id))
    if not runs:
        note(
            f"nothing was recorded in {directory}: the program sent no metrics and no spans through "
            "OpenTelemetry's API, or made a `Tracking` with a `project_dir` of its own"
        )
    timeout = settings.END_TIMEOUT.get()
    for run in runs:
        if delivery == "process":
            wait_for_sidecar(run.directory, timeout)
        left_alone = delivery == "off" or is_running(run.directory)  # a sidecar that gets nowhere
        receipt = summary(run) if left_alone else deliver(run, status, timeout)
        note(f"{receipt}\n  in {run.directory}")
        if delivery == "off":
            note(f"deliver it with: otel-tracking sync {shlex.quote(str(run.directory))}")
