"""What commands say to people: on stderr, with nothing in it that could command a terminal."""

from __future__ import annotations

import re

import typer

# C0 but line feed, C1, and what reorders or hides text.
_UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)


def safe(text: str) -> str:
    """The text with control and reordering characters shown as `\\x1b`."""
    return _UNSAFE.sub(lambda m: m[0].encode("unicode_escape", "surrogatepass").decode(), text)


def note(text: str) -> None:
    """A line for people."""
    typer.echo(f"otel-tracking: {safe(text)}", err=True)
