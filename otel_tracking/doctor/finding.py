"""What a look at something found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """How it is."""

    OK = "ok"
    NOTE = "note"
    """Nothing is wrong, and it is good to know."""
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    about: str
    """`wandb`, `project directory`, ..."""
    state: State
    text: str
    """What was found; never a secret."""
    fix: str = ""
    """What to do, as a command or a setting."""


def ok(about: str, text: str) -> Finding:
    """All is well."""
    return Finding(about, State.OK, text)


def remark(about: str, text: str, fix: str = "") -> Finding:
    """Nothing is wrong."""
    return Finding(about, State.NOTE, text, fix)


def problem(about: str, text: str, fix: str) -> Finding:
    """Something will not work."""
    return Finding(about, State.PROBLEM, text, fix)
