"""The command `otel-tracking`; one module a command."""

from __future__ import annotations

import logging

import typer

from otel_tracking.cli import run

app = typer.Typer(
    name="otel-tracking",
    help="Experiment tracking through OpenTelemetry: record once, every point exactly once in every tracker.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("run", context_settings={"ignore_unknown_options": True})(run.run)


@app.callback()
def _options() -> None:
    """Options of all commands."""


def main() -> None:
    """The entry point."""
    logging.basicConfig(level=logging.WARNING, format="otel-tracking: %(message)s")
    app()
