"""What a tracker refused for good: a JSON object a line, beside the journal, to look at and to send again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from otel_tracking.journal.entries import series_content, series_of
from otel_tracking.journal.media import media_content, media_from
from otel_tracking.records import Batch, Config, Media, Rewind, Series, Text, Written

_MOST_POINTS: Final = 1000
"""In one batch that is sent again."""


Key: TypeAlias = tuple[str, int, str]
"""What tells letters apart: kind, position, name."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A point, a text, media or a config, and why it was refused."""

    kind: str
    """`point`, `text`, `media` or `config`."""
    reason: str
    position: int
    """In the journal."""
    time_ns: int
    """Nanoseconds since the epoch."""
    step: int
    content: Mapping[str, Any]
    """Of a point `value` and `series`; of a text `tag`, `text`, `options`; of a config `config`; of
    media what the journal has, where its files are."""

    @property
    def name(self) -> str:
        """What people call it."""
        of = self.content["series"] if self.kind == "point" else self.content
        return str(of.get("tag", "config"))

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return self.kind, self.position, self.name


def letters_of(item: Batch | Text | Media | Config | Rewind, written: Written) -> list[Letter]:
    """What a tracker refused of what it was given. A rewind is no data, and makes none."""
    letters = []
    for reason, places in written.rejected.items():
        if isinstance(item, Batch):
            for place in places:
                content = {
                    "value": float(item.values[place]),
                    "series": series_content(item.series[int(item.index[place])]),
                }
                where = int(item.positions[place]), int(item.times[place]), int(item.steps[place])
                letters.append(Letter("point", reason, *where, content))
        elif isinstance(item, Text) and places:
            content = {"tag": item.tag, "text": item.text, "options": dict(item.options)}
            letters.append(Letter("text", reason, item.position, item.time, item.step, content))
        elif isinstance(item, Media) and places:
            content = media_content(item)
            letters.append(Letter("media", reason, item.position, item.time, item.step, content))
        elif isinstance(item, Config) and places:
            content = {"config": dict(item.values)}
            letters.append(Letter("config", reason, item.position, item.time, 0, content))
    return letters


def items_of(
    letters: Sequence[Letter], positions: Sequence[int], journal: Path
) -> Iterator[Batch | Text | Media | Config]:
    """Letters as a tracker takes them.

    Args:
        letters: In the order in which they were recorded.
        positions: What to give each of them instead of its own.
        journal: Where the files of media are.
    """
    pairs = zip(letters, positions, strict=True)
    for kind, group in groupby(pairs, key=lambda pair: pair[0].kind):
        of_kind = list(group)
        if kind == "point":
            for start in range(0, len(of_kind), _MOST_POINTS):
                yield _batch(of_kind[start : start + _MOST_POINTS])
            continue
        for letter, position in of_kind:
            if kind == "text":
                tag, text, options = (letter.content[key] for key in ("tag", "text", "options"))
                yield Text(tag, text, letter.step, letter.time_ns, position, options)
            elif kind == "media":
                yield media_from(letter.content, journal, letter.step, letter.time_ns, position)
            else:
                yield Config(letter.content["config"], letter.time_ns, position)


def _batch(pairs: Sequence[tuple[Letter, int]]) -> Batch:
    table: dict[object, tuple[int, Series]] = {}
    index = []
    for letter, _ in pairs:
        _, series = series_of({"id": 0, **letter.content["series"]})
        index.append(table.setdefault(series.identity, (len(table), series))[0])
    return Batch(
        [series for _, series in table.values()],
        np.array(index, dtype=np.int32),
        np.array([letter.step for letter, _ in pairs], dtype=np.int64),
        np.array([letter.time_ns for letter, _ in pairs], dtype=np.int64),
        np.array([letter.content["value"] for letter, _ in pairs], dtype=np.float64),
        np.array([position for _, position in pairs], dtype=np.int64),
    )


class DeadLetters:
    """The letters of one rank's tracker."""

    def __init__(self, cursor: Path) -> None:
        """Nothing is read or made yet.

        Args:
            cursor: Where the cursor of that rank's tracker lies.
        """
        self.path: Final = cursor.parent.parent / "dead-letters" / f"{cursor.stem}.jsonl"

    def add(self, letters: Iterable[Letter]) -> None:
        """Append.

        Raises:
            OSError: They can't be written.
        """
        self.path.parent.mkdir(exist_ok=True)
        _write(self.path, letters, os.O_APPEND)

    def load(self) -> list[Letter]:
        """All, as they were recorded. What was refused twice, around a crash, is here once.

        Raises:
            OSError: They can't be read.
        """
        found: dict[object, Letter] = {}
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                letter = Letter(**json.loads(line))
            except (ValueError, TypeError):
                continue  # a process was killed in the middle of it; it is written again
            found[letter.key] = letter
        return sorted(found.values(), key=lambda letter: letter.position)

    def replace(self, letters: Sequence[Letter]) -> None:
        """Have these instead.

        Raises:
            OSError: They can't be written.
        """
        if not letters:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(exist_ok=True)
        draft = self.path.with_suffix(".draft")
        _write(draft, letters, os.O_TRUNC)
        draft.replace(self.path)


def _write(path: Path, letters: Iterable[Letter], how: int) -> None:
    # Like a cursor, for its owner alone.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        # A killed process may have left the beginning of a line.
        file.writelines("\n" + json.dumps(asdict(letter), separators=(",", ":")) for letter in letters)
