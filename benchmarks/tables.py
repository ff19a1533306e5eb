"""Tables of results, in Markdown that also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Results of one benchmark."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in lines
        ]
        text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([f"### {self.title}", "", *text])


COMPARISON = ("", "ours", "peer", "ratio", "at most", "")


def compared(what: str, ours: float, peer: float, *, at_most: int | None = None) -> Sequence[str]:
    """A row of a `COMPARISON`.

    Args:
        what: What is compared.
        ours: Nanoseconds.
        peer: Nanoseconds.
        at_most: The target: ours is no more than this part (1/n) of the peer's; None if there is none.
    """
    times = peer / ours
    ratio = f"1/{times:.1f}"
    if at_most is None:
        return (what, micros(ours), micros(peer), ratio, "", "")
    return (what, micros(ours), micros(peer), ratio, f"1/{at_most}", verdict(times >= at_most))


def verdict(met: bool) -> str:
    """Whether a target is met."""
    return "met" if met else "NOT met"


def micros(nanoseconds: float) -> str:
    """Microseconds, or milliseconds where those are thousands, with the digits that matter."""
    value, unit = nanoseconds / 1000, "us"
    if value >= 1000:
        value, unit = value / 1000, "ms"
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f} {unit}"
