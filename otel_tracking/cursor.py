"""How far a tracker has come with a journal, on disk beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal.recovery import last_segment
from otel_tracking.records import TrackerReceipt
from otel_tracking.redaction import without_secrets


@dataclass(slots=True)
class Cursor:
    """What one follower knows between two starts. JSON values only."""

    tracker: str
    run: dict[str, Any] = field(default_factory=dict)
    """What `RunInfo` is made of again, by a process that did not begin the run."""
    position: int = 0
    """Everything at or before it is stored in the tracker."""
    delivered: int = 0
    altered: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    stored_altered: dict[str, int] = field(default_factory=dict)
    """Texts, media and configs that the tracker has in another form, by reason."""
    not_stored: dict[str, int] = field(default_factory=dict)
    """Those, and rewinds, that it refused for good. Files older than `stored_altered` have it all in here."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The tracker's own."""
    given: int = 0
    """Everything at or before it may have been given to a tracker that does not store exactly once."""
    perhaps_twice: int = 0
    """Points that were given to it again."""
    finished: str = ""
    """The status with which the run was closed in the tracker."""
    segment: int = -1
    """The last of the journal's segments when it was: a process that goes on with the run makes another."""

    def counts(self) -> Cursor:
        """A copy whose numbers stay as they are."""
        return replace(
            self,
            altered=dict(self.altered),
            dropped=dict(self.dropped),
            stored_altered=dict(self.stored_altered),
            not_stored=dict(self.not_stored),
        )

    def receipt(
        self,
        recorded: int,
        *,
        errors: Mapping[str, int],
        state: str,
        renamed: Mapping[str, str] | None = None,
    ) -> TrackerReceipt:
        """What became of the points.

        Args:
            recorded: Points in the journal, counted after this cursor was last moved.
            errors: What the tracker raised, by text.
            state: What it is doing.
            renamed: Tags that it stores under another name.
        """
        return TrackerReceipt(
            tracker=self.tracker,
            recorded=recorded,
            delivered=self.delivered,
            pending=recorded - self.delivered - sum(self.dropped.values()),
            altered=self.altered,
            dropped=self.dropped,
            stored_altered=self.stored_altered,
            not_stored=self.not_stored,
            perhaps_twice=self.perhaps_twice,
            errors=errors,
            renamed=renamed or {},
            state=state,
        )

    def save(self, path: Path) -> None:
        """Write, so that a reader or a restart sees the old file or the new one.

        Only the user can read it: a tracker's options may hold what nobody else should see. Once the run is
        closed in the tracker they are not kept.
        """
        if self.finished and self.run:
            self.run = {**self.run, "options": without_secrets(self.run["options"])}
        draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
        content = json.dumps({"version": 1, **asdict(self)}, indent=1)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Cursor | None:
        """Read; None if there is none.

        Raises:
            UnsupportedJournal: The file is damaged, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UnsupportedJournal(f"{path}: {error}; remove the file to deliver the run again") from None
        if not isinstance(content, dict) or content.pop("version", None) != 1:
            raise UnsupportedJournal(f"{path} is of another version; this release reads version 1")
        try:
            return cls(**content)
        except TypeError as error:
            raise UnsupportedJournal(f"{path}: {error}") from None

    def done_with(self, journal: Path) -> bool:
        """Whether nothing is left to do: the run is closed, and no process has gone on with it since."""
        return bool(self.finished) and self.segment == last_segment(journal)


def lock_path(cursor: Path) -> Path:
    """What the process that moves a cursor has locked."""
    return cursor.with_name(f"{cursor.name}.lock")


def cursor_path(run_directory: Path, rank: int, tracker: str) -> Path:
    """Where the cursor of a rank's tracker lies."""
    return run_directory / "cursors" / f"rank-{rank:05d}-{tracker}.json"


def journal_path(run_directory: Path, rank: int) -> Path:
    """Where the journal of a rank lies."""
    return run_directory / "journal" / f"rank-{rank:05d}"
