"""What commands say to people: with nothing in it that could command a terminal, and notes on stderr."""

from __future__ import annotations

import re
from datetime import datetime

import typer
from rich.console import Console
from rich.table import Table

# C0 but line feed, C1, and what reorders or hides text.
_UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


_WIDEST = 1000
"""Columns of a table that no terminal limits."""


def safe(text: str) -> str:
    """The text with control and reordering characters shown as `\\x1b`."""
    return _UNSAFE.sub(lambda m: m[0].encode("unicode_escape", "surrogatepass").decode(), text)


def print_table(table: Table) -> None:
    """On stdout: as wide as the terminal, or as the table needs where there is none."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = _WIDEST
    console.print(table)


def when(nanoseconds: int, how: str) -> str:
    """A time since the epoch, in this place's time zone; what is no time stays a number."""
    try:
        return datetime.fromtimestamp(nanoseconds / 1e9).strftime(how)
    except (OverflowError, OSError, ValueError):
        return str(nanoseconds)


def note(text: str) -> None:
    """A line for people."""
    typer.echo(f"otel-tracking: {safe(text)}", err=True)
