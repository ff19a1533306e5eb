"""Runs on disk: where they lie, what they hold, and which trackers are to get them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from otel_tracking import discovery
from otel_tracking.cursor import Cursor, cursor_path, journal_path
from otel_tracking.errors import ConfigurationError, JournalLocked, RunNotFound
from otel_tracking.journal.ownership import is_written, repair
from otel_tracking.journal.reader import PointCounter
from otel_tracking.ranks import RankPolicies
from otel_tracking.reading import end_status, first_start, journals
from otel_tracking.records import Rank, Receipt, RunInfo, RunStatus, TrackerReceipt
from otel_tracking.request import run_info, run_note
from otel_tracking.retention import Keep

_LISTED: Final = 10
"""How many runs an error names."""


@dataclass(frozen=True, slots=True)
class RunOnDisk:
    """A run's directory."""

    directory: Path
    description: Mapping[str, Any]
    """What `run.json` says."""

    @property
    def run_id(self) -> str:
        """The run's identity."""
        return str(self.description["run_id"])

    @property
    def created(self) -> int:
        """When it was begun, nanoseconds since the epoch; 0 if that is not known."""
        created = self.description.get("created")
        return created if isinstance(created, int) else 0

    @property
    def keep(self) -> Keep:
        """What is kept of its journals."""
        try:
            return Keep.parse(str(self.description.get("keep", "always")))
        except ConfigurationError:
            return Keep()

    @property
    def project_dir(self) -> Path:
        """Where all projects' runs lie."""
        return self.directory.parent.parent

    def cursors(self) -> list[tuple[Path, Cursor]]:
        """Every rank's trackers."""
        paths = sorted((self.directory / "cursors").glob("*.json"))
        return [(path, cursor) for path in paths if (cursor := Cursor.load(path)) is not None]

    def journal(self, cursor: Cursor) -> Path:
        """The journal that a cursor is about."""
        return journal_path(self.directory, cursor.run["rank"]["rank"])

    @property
    def recorded(self) -> bool:
        """Whether a process records it now."""
        return any(is_written(journal) for _, journal in journals(self.directory))

    def info(self, cursor: Cursor) -> RunInfo:
        """What a tracker is told: as it was when the run began, where the run lies now."""
        info = run_info(cursor.run, cursor)
        directory = self.directory / info.directory.name if info.group else self.directory
        then = (info.directory.parent if info.group else info.directory).parent.parent
        logging_dir = self.project_dir if info.logging_dir == then else info.logging_dir
        return replace(info, directory=directory, logging_dir=logging_dir)


def find_runs(project_dir: Path, run_id: str | None = None) -> Iterator[RunOnDisk]:
    """The runs below a directory; those of an id are that run and the later ones of its process."""
    for path in sorted(project_dir.glob("*/*/run.json")):
        run = run_in(path.parent)
        if run and (run_id is None or re.fullmatch(rf"{re.escape(run_id)}(-[0-9]+)?", run.run_id)):
            yield run


def run_in(directory: Path) -> RunOnDisk | None:
    """The run of that directory; None if it holds none."""
    try:
        description = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # being written, or not ours
    if not (isinstance(description, dict) and description.get("run_id")):
        return None
    return RunOnDisk(directory, description)


def select(project_dir: Path, run: str) -> RunOnDisk:
    """One run, by its id, by the beginning of its id, or by its directory.

    Raises:
        RunNotFound: There is none.
        ConfigurationError: There are several.
    """
    if len(Path(run).parts) > 1 or Path(run, "run.json").is_file():
        found = [there] if (there := run_in(Path(run).absolute())) else []
    else:
        runs = list(find_runs(project_dir))
        found = [each for each in runs if each.run_id == run]
        found = found or [each for each in runs if run and each.run_id.startswith(run)]
    if not found:
        raise RunNotFound(run, project_dir, [each.run_id for each in find_runs(project_dir)][-_LISTED:])
    if len(found) > 1:
        places = ", ".join(str(each.directory) for each in found[:_LISTED])
        raise ConfigurationError(f"{run!r} is more than one run; give a directory: {places}")
    return found[0]


def add_tracker(run: RunOnDisk, name: str, policies: RankPolicies) -> None:
    """Have a run go to a tracker that it was not recorded for, as if it had been; once is enough.

    Args:
        run: Any run that has a journal.
        name: The tracker.
        policies: Which ranks' records it gets. Where one rank alone has recorded, it gets those.

    Raises:
        ConfigurationError: There is no journal, or none of a rank that the policies want.
        UnknownTracker, TrackerNotInstalled: There is no such tracker.
        OSError: The run's directory can't be written.
    """
    discovery.load(name)
    starts = [start for _, journal in journals(run.directory) if (start := first_start(journal)) is not None]
    ranks = [_rank(start) for start in starts]
    wanted = [i for i, rank in enumerate(ranks) if len(ranks) == 1 or policies.wants(name, rank)]
    if not wanted:
        raise ConfigurationError(f"{run.directory} holds no records of a rank that {name} is to get")
    for i in wanted:
        path = cursor_path(run.directory, ranks[i].rank, name)
        if path.exists():
            continue
        grouped = len(ranks) > 1 and policies.grouped(name, ranks[i])
        info = _described(run, ranks[i], starts[i], grouped=grouped)
        info.directory.mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True)
        Cursor(name, run=run_note(info)).save(path)


def _described(run: RunOnDisk, rank: Rank, start: Mapping[str, Any], *, grouped: bool) -> RunInfo:
    name = str(run.description.get("name") or run.run_id)
    return RunInfo(
        project=str(run.description["project"]),
        run_id=run.run_id,
        name=f"{name}-rank{rank.rank}" if grouped else name,
        directory=run.directory / f"rank-{rank.rank}" if grouped else run.directory,
        logging_dir=run.project_dir,
        rank=rank,
        group=run.run_id if grouped else "",
        resource=start["resource"],
    )


def _rank(start: Mapping[str, Any]) -> Rank:
    """Who recorded a journal."""
    said = start["resource"]
    known = ("rank", "world_size", "local_rank", "node_rank")
    return Rank(**{each: said[f"training.{each}"] for each in known})


def ended_at(journal: Path) -> int | None:
    """The last segment of a journal that no process writes, after repairing what a killed one left.

    None if a process writes it.
    """
    try:
        return repair(journal)
    except JournalLocked:
        return None


def status_of_run(run: RunOnDisk) -> str:
    """`running`, `finished`, `failed`, or `killed`, if its process said nothing before it died."""
    if run.recorded:
        return str(RunStatus.RUNNING)
    said = {end_status(journal) or RunStatus.KILLED for _, journal in journals(run.directory)}
    worst = (RunStatus.KILLED, RunStatus.FAILED, RunStatus.FINISHED)
    return str(next(status for status in worst if status in said))


def receipt(
    run: RunOnDisk, errors: Mapping[str, Mapping[str, int]] | None = None, *, points: int | None = None
) -> Receipt:
    """What was recorded and what became of it, by the cursors; ranks of one tracker added up.

    Args:
        run: Any run.
        errors: By tracker: what it raised.
        points: In all journals, if that is known.
    """
    counts: dict[Path, int] = {}
    trackers: dict[str, TrackerReceipt] = {}
    for _, cursor in run.cursors():
        journal = run.journal(cursor)
        if journal not in counts:
            done = cursor.done_with(journal)
            counts[journal] = cursor.delivered + sum(cursor.dropped.values()) if done else _points(journal)
        one = cursor.receipt(
            counts[journal],
            errors=(errors or {}).get(cursor.tracker, {}),
            state=cursor.finished or "unfinished",
        )
        trackers[cursor.tracker] = _sum(trackers[cursor.tracker], one) if cursor.tracker in trackers else one
    if points is None:
        rest = [journal for _, journal in journals(run.directory) if journal not in counts]
        points = sum(counts.values()) + sum(map(_points, rest))
    return Receipt(run.run_id, points, {}, trackers)


def _sum(a: TrackerReceipt, b: TrackerReceipt) -> TrackerReceipt:
    return TrackerReceipt(
        tracker=a.tracker,
        recorded=a.recorded + b.recorded,
        delivered=a.delivered + b.delivered,
        pending=a.pending + b.pending,
        altered=merged(a.altered, b.altered),
        dropped=merged(a.dropped, b.dropped),
        stored_altered=merged(a.stored_altered, b.stored_altered),
        not_stored=merged(a.not_stored, b.not_stored),
        errors=merged(a.errors, b.errors),
        renamed={**a.renamed, **b.renamed},
        perhaps_twice=a.perhaps_twice + b.perhaps_twice,
        state=a.state if a.state == b.state else f"{a.state}, {b.state}",
    )


def merged(a: Mapping[str, int], b: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason, added up."""
    return {reason: a.get(reason, 0) + b.get(reason, 0) for reason in {**a, **b}}


def _points(journal: Path) -> int:
    counter = PointCounter(journal)
    try:
        return counter.count()
    finally:
        counter.close()
