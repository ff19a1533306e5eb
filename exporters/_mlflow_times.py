"""Timestamps that keep apart what MLflow would take for one point.

MLflow stores a point once for each (name, step, value, millisecond). A point equal to an earlier one
in all four is moved on to the next free millisecond.

The same points, sent again from any earlier position, get timestamps that are stored already, so
nothing is stored twice: each takes the first free millisecond from its own on, and with fewer points
remembered that can only be one that was taken before. New points need to know what was taken shortly
before them; `rewind` says from where a later process has to look at the points again to know it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import TypeAlias

_MIN_POINTS = 1_000
_MAX_POINTS = 20_000
_SPAN_MS = 1_000

_Group: TypeAlias = tuple[str, int, float | None]
_Taken: TypeAlias = list[tuple[int, int, int]]
"""Ascending and apart: from, to (excluded), and the journal position before the first of the points."""


class Timestamps:
    """Gives each point a millisecond in which its name, step and value occur once.

    Remembers the last two spans of points, and what was moved beyond the present. A span lasts a second
    of recorded time and 1,000 points, at most 20,000 points. Two points equal in all four that come
    farther apart than that (a time given by hand, again and again the same) stay one point to MLflow.
    """

    def __init__(self, position: int = 0) -> None:
        """Start with nothing remembered.

        Args:
            position: The journal position after which points are going to come.
        """
        self._older: dict[_Group, _Taken] = {}
        self._newer: dict[_Group, _Taken] = {}
        self._pending: dict[_Group, _Taken] = {}
        self._position = self._older_start = self._newer_start = position
        self._older_end = 0
        self._assigned = 0
        self._count = 0
        self._began = 0

    @property
    def rewind(self) -> int:
        """The position after which points have to be given again to remember what is remembered now."""
        return min(self._older_start, self._newer_start)

    def assign(self, points: Iterable[tuple[str, int, float | None, int]]) -> list[int]:
        """The milliseconds for points, in order, given as (name, step, value or None for NaN, millisecond).

        They are remembered from the next `keep` on; another `assign` before it forgets them.
        """
        self._pending = {}
        times = [self._take((name, step, value), wanted) for name, step, value, wanted in points]
        self._assigned = len(times)
        return times

    def keep(self, position: int, last: int) -> None:
        """Remember what `assign` gave last.

        Args:
            position: The journal position of the last of those points.
            last: The millisecond it was recorded in.
        """
        if not self._count:
            self._began = last
        self._remember(self._pending)
        self._pending = {}
        self._position = position
        self._count += self._assigned
        if self._count < _MIN_POINTS or (self._count < _MAX_POINTS and last - self._began < _SPAN_MS):
            return
        # What was moved beyond the end of its own span may be wanted still.
        ahead = {
            group: taken
            for group, taken in self._older.items()
            if taken[-1][1] > self._older_end + 1 and group not in self._newer
        }
        self._older, self._newer = self._newer, {}
        self._older_start, self._newer_start = self._newer_start, position
        self._older_end = last
        self._count = 0
        self._remember(ahead)

    def _take(self, group: _Group, wanted: int) -> int:
        """The first free millisecond from `wanted` on, which is taken from then on."""
        taken = self._pending.get(group)
        if taken is None:
            known = self._newer.get(group) or self._older.get(group) or ()
            taken = [run for run in known if run[1] > wanted - _SPAN_MS]
            self._pending[group] = taken
        after = bisect_right(taken, wanted, key=itemgetter(0))
        if after and wanted <= taken[after - 1][1]:
            start, free, first = taken.pop(after - 1)
            after -= 1
        else:
            start, free, first = wanted, wanted, self._position
        end = free + 1
        if after < len(taken) and taken[after][0] == end:
            _, end, other = taken.pop(after)
            first = min(first, other)
        taken.insert(after, (start, end, first))
        return free

    def _remember(self, groups: Mapping[_Group, _Taken]) -> None:
        self._newer.update(groups)
        origins = (run[2] for taken in groups.values() for run in taken)
        self._newer_start = min(self._newer_start, min(origins, default=self._newer_start))
