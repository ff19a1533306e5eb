"""The command `otel-tracking`; one module a command."""

from __future__ import annotations

import logging

import typer

from otel_tracking.cli import dead_letters, doctor, export, run, runs, show, sync, trackers, verify

app = typer.Typer(
    name="otel-tracking",
    help="Experiment tracking through OpenTelemetry: record once, every point exactly once in every tracker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", context_settings={"ignore_unknown_options": True})(run.run)
app.command("dead-letters")(dead_letters.dead_letters)
app.command("export")(export.export)
app.command("runs")(runs.runs)
app.command("show")(show.show)
app.command("sync")(sync.sync)
app.command("verify")(verify.verify)
app.command("trackers")(trackers.trackers)
app.command("doctor")(doctor.doctor)


@app.callback()
def _options() -> None:
    """Options of all commands."""


def main() -> None:
    """The entry point."""
    logging.basicConfig(level=logging.WARNING, format="otel-tracking: %(message)s")
    app()
