"""What a series is called in trackers: a tag of its name and attributes, never one tag for two series."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from otel_tracking.names import NameRule
from otel_tracking.records import AttributeValue, MediaKind

_RESERVED = re.compile(r"[%/.]")
_RESERVED_IN_SEQUENCES = re.compile(r"[%/.,]")
_KINDS: Final = ("series", "text", *(kind.value for kind in MediaKind))
_ROOM: Final = 3 * max(len(f" ({kind})") for kind in _KINDS)
KIND_PARTS: Final = rf" (?=\((?:{'|'.join(_KINDS)})\)(?:/\d+)?\Z)"
"""Not allowed where `of_kind` is used (`NameRule.forbidden_parts`): no other name is one that it makes."""


def render(name: str, attributes: Mapping[str, AttributeValue]) -> str:
    """The tag of a series: `accuracy` with `{"class": "cat"}` is `accuracy/class.cat`.

    Keys are sorted. `%`, `/` and `.` inside keys and texts are percent-encoded, `,` inside the
    texts of a sequence too. Attributes of one type each give distinct tags; `1`, `"1"` and `True`,
    `"true"` read alike, and `TagAssigner` tells those apart.
    """
    if not attributes:
        return name
    parts = [f"{_encode(key)}.{_value(value)}" for key, value in sorted(attributes.items())]
    return "/".join((name, *parts))


class TagAssigner:
    """Gives each series of a run a tag of its own, and remembers it.

    The plain tag goes to the first series that asks. A later series of another meter gets its
    meter's name in front (`validation/accuracy`); what still collides ends in `~2`, `~3`, ...

    Not synchronised between threads, but a signal handler may assign in the middle of an `assign`.
    """

    def __init__(self) -> None:
        self._tags: dict[Hashable, str] = {}
        self._owners: dict[str, tuple[Hashable, str]] = {}

    def assign(
        self, identity: Hashable, name: str, attributes: Mapping[str, AttributeValue], meter: str = ""
    ) -> str:
        """The tag of the series; the same one for the same identity.

        Args:
            identity: What makes the series itself: `Series.identity`.
            name: The instrument's name.
            attributes: Without the step.
            meter: The meter's name; empty for `Tracking.log`.
        """
        known = self._tags.get(identity)
        if known is not None:
            return known
        owner = (identity, meter)
        # `setdefault` looks and takes in one step, which a signal handler can't divide.
        tag = next(
            tag
            for tag in self._candidates(render(name, attributes), meter)
            if self._owners.setdefault(tag, owner) == owner
        )
        return self._tags.setdefault(identity, tag)

    def restore(self, tag: str, identity: Hashable, meter: str = "") -> None:
        """Take over an assignment made before, so that a resumed run keeps its tags."""
        self._tags[identity] = tag
        self._owners[tag] = (identity, meter)

    def _candidates(self, plain: str, meter: str) -> Iterator[str]:
        yield plain
        base = plain
        if meter and self._owners[plain][1] != meter:
            base = f"{_encode(meter)}/{plain}"
            yield base
        for number in itertools.count(2):
            yield f"{base}~{number}"


def of_kind(tag: str, kind: str, names: NameRule) -> str:
    """A tag's name for data of that kind, where its own has data of another kind: `<name> (<kind>)`.

    Args:
        tag: As recorded.
        kind: `series`, `text` or a `MediaKind`.
        names: The tracker's rule; it forbids `KIND_PARTS`. Room is left to say the kind three times.
    """
    if names.max_length:
        names = replace(names, max_length=names.max_length - _ROOM)
    return f"{names.escape(tag)} ({kind})"


def distinct(name: str, taken: Container[str]) -> str:
    """The name, or the name with `~2`, `~3`, ... if it is taken."""
    if name not in taken:
        return name
    return next(other for number in itertools.count(2) if (other := f"{name}~{number}") not in taken)


def _value(value: AttributeValue) -> str:
    if isinstance(value, tuple):
        return ",".join(_scalar(v, _RESERVED_IN_SEQUENCES) for v in value)
    return _scalar(value, _RESERVED)


def _scalar(value: str | bool | int | float, reserved: re.Pattern[str]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # A number's dot is harmless: the key before it has none, so the first dot of a part ends the key.
    return _encode(value, reserved) if isinstance(value, str) else repr(value)


def _encode(text: str, reserved: re.Pattern[str] = _RESERVED) -> str:
    return reserved.sub(lambda m: f"%{ord(m[0]):02X}", text)
