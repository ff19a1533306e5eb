"""`otel-tracking export`: a run's points as CSV, Parquet or OTLP, and its spans for Perfetto."""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from otel_tracking.cli.arguments import ProjectDir, Run, selected
from otel_tracking.cli.output import note
from otel_tracking.errors import TrackingError
from otel_tracking.runs import RunOnDisk


class Format(enum.StrEnum):
    """What can be written."""

    CSV = "csv"
    PARQUET = "parquet"
    OTLP_JSON = "otlp-json"
    CHROME_TRACE = "chrome-trace"


def export(
    run: Run,
    format_: Annotated[Format, typer.Option("--format", help="What to write.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file; all but Parquet go to stdout without one."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    project_dir: ProjectDir = "outputs",
) -> None:
    """Write every point of a run to a file: exact values, steps and times, in recorded order; and spans."""
    chosen = selected(project_dir, run)
    try:
        _export(chosen, format_, output, force=force)
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        raise typer.Exit(1) from None
    except (TrackingError, OSError) as error:
        note(str(error))
        raise typer.Exit(1) from None


def _export(run: RunOnDisk, format_: Format, output: Path | None, *, force: bool) -> None:
    if output is not None and output.exists() and not force:
        raise TrackingError(f"{output} is there already; --force replaces it")
    if format_ is Format.PARQUET:
        if output is None:
            raise TrackingError("a Parquet file can't go to stdout: name it with -o")
        try:
            from otel_tracking.export.parquet_file import write_parquet
        except ImportError as error:
            raise TrackingError(
                f"Parquet needs pyarrow: pip install 'otel-tracking[parquet]' ({error})"
            ) from error
        with _draft(output, "wb") as binary:
            write_parquet(run.directory, run.run_id, binary)
        return
    with _text(output) as text:
        _writer(format_)(run.directory, run.run_id, text)


def _writer(format_: Format) -> Callable[[Path, str, IO[str]], None]:
    if format_ is Format.CSV:
        from otel_tracking.export.csv_file import write_csv

        return write_csv
    if format_ is Format.CHROME_TRACE:
        from otel_tracking.export.chrome_trace import write_chrome_trace

        return write_chrome_trace
    from otel_tracking.export.otlp_json import write_otlp_json

    return write_otlp_json


@contextlib.contextmanager
def _text(output: Path | None) -> Iterator[IO[str]]:
    if output is None:
        with open(
            sys.stdout.fileno(), "w", encoding="utf-8", errors="backslashreplace", newline="", closefd=False
        ) as file:
            yield file
        return
    with _draft(output, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file


@contextlib.contextmanager
def _draft(output: Path, mode: str, **how: Any) -> Iterator[IO[Any]]:
    """A file that gets its name once it is whole."""
    draft = output.with_name(f".{output.name}.draft")
    try:
        with draft.open(mode, **how) as file:
            yield file
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
