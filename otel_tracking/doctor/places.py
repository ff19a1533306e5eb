"""Where declared files and folders are here, and what such a file says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from otel_tracking.capabilities import File, Switch

_VARIABLE: Final = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
_LARGEST: Final = 2**20


def value(variable: str, environment: Mapping[str, str]) -> str:
    """Of an environment variable, without blanks around it; empty is unset."""
    return environment.get(variable, "").strip()


def is_on(switch: Switch, environment: Mapping[str, str]) -> bool:
    """Whether its variable has a value that turns it on."""
    found = value(switch.variable, environment)
    return bool(found) and re.fullmatch(switch.on, found) is not None


def find(places: Sequence[str], environment: Mapping[str, str]) -> tuple[str, Path] | None:
    """The first place that names no variable that is unset: as it is declared, and where that is."""
    for place in places:
        names = _VARIABLE.findall(place)
        if all(value(name, environment) for name in names):
            found = _VARIABLE.sub(lambda match: value(match[1], environment), place)
            return place, Path(os.path.expandvars(found)).expanduser()
    return None


def setting(places: Sequence[str]) -> str:
    """The variable to set for another place; empty if there is none."""
    found = _VARIABLE.search(places[0]) if places else None
    return found[1] if found else ""


def look_up(file: File, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """What a file says: its place as declared, and what was looked up. None if it doesn't say it.

    Where the pattern has no group, what was looked up is empty, so that no secret is handed around.
    """
    found = find(file.places, environment)
    if found is None:
        return None
    try:
        with found[1].open(encoding="utf-8", errors="replace") as opened:
            text = opened.read(_LARGEST)
    except (OSError, ValueError):
        return None
    match = re.search(file.pattern, text, re.MULTILINE)
    if match is None:
        return None
    return found[0], (match[1] or "") if match.re.groups else ""
