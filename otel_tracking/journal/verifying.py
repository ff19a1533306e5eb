"""Looking for what is damaged in a journal, and mending what can be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from otel_tracking.errors import UnsupportedJournal
from otel_tracking.journal import recovery, seal
from otel_tracking.journal.compressed import CompressedSource, open_source
from otel_tracking.journal.forgetting import sizes
from otel_tracking.journal.format import HEADER_SLOTS, SLOT, Header, never_written
from otel_tracking.journal.ownership import is_written, not_written
from otel_tracking.journal.scan import points_in, scan
from otel_tracking.journal.seal import BLOCK_SLOTS, Seal
from otel_tracking.journal.sealed import SealedSegment
from otel_tracking.journal.source import Missing, Source


@dataclass(slots=True)
class SegmentReport:
    """What one segment is like."""

    index: int
    sealed: bool = False
    points: int = 0
    """That can be read."""
    damaged_blocks: list[int] = field(default_factory=list)
    """Of 64 KiB, from 0."""
    lost: int = 0
    """Points that were recorded and can't be read."""
    lost_texts: int = 0
    removed: int = 0
    """Points that were removed to save space, with the segment."""
    torn: int = 0
    """Slots at the end that hold no whole record: what a process was writing when it was killed."""
    problems: list[str] = field(default_factory=list)
    """What else is wrong, in words."""

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.damaged_blocks or self.lost or self.lost_texts or self.torn or self.problems)


def verify(journal: Path) -> list[SegmentReport]:
    """Look at every byte of a journal; nothing is changed.

    Raises:
        OSError: It can't be read.
    """
    written = is_written(journal)
    directory = os.open(journal, os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = recovery.segments(directory)
        last = there[-1] if there else -1
        return [
            _look(directory, index, written=written and index >= last - 1)
            if index in there
            else SegmentReport(index, problems=["is missing"])
            for index in range(last + 1)
        ]
    finally:
        os.close(directory)


def mend(journal: Path) -> None:
    """Cut what a killed process left, and seal what is not sealed, or not any more. Damage stays.

    Raises:
        JournalLocked: A process is writing here.
        UnsupportedJournal: A segment of another version lies here.
        OSError: It can't be written.
    """
    with not_written(journal) as directory:
        for index in recovery.segments(directory):
            if _has_damaged_seal(directory, index):
                os.unlink(seal.seal_name(index), dir_fd=directory)
        recovery.repair(directory)


def _has_damaged_seal(directory: int, index: int) -> bool:
    """Whether a segment's seal can be made again."""
    there = index in sizes(directory)
    return there and seal.exists(directory, index) and seal.load(directory, index) is None


def _look(directory: int, index: int, *, written: bool) -> SegmentReport:
    report = SegmentReport(index)
    known = seal.load(directory, index)
    source: Source
    try:
        source = open_source(directory, index)
    except FileNotFoundError:
        source = Missing(removed=known is not None and known.forgotten)
        if not source.removed:
            report.problems.append("is missing")
    except UnsupportedJournal as error:
        report.problems.append(str(error))
        source = Missing(removed=False)
    if isinstance(source, CompressedSource) and source.problem:
        report.problems.append(source.problem)
    try:
        if known is not None:
            _look_at_sealed(report, source, known)
        else:
            if seal.exists(directory, index):
                report.problems.append("its seal is damaged")
            if not isinstance(source, Missing):
                _look_at_open(report, source, written=written)
    finally:
        source.close()
    return report


def _look_at_sealed(report: SegmentReport, source: Source, known: Seal) -> None:
    report.sealed = True
    if isinstance(source, Missing) and source.removed:
        report.removed = int(known.points.sum())
        return
    segment = SealedSegment(source, known)
    report.damaged_blocks = [block for block in range(len(known.crcs)) if not segment.fine(block)]
    slot = HEADER_SLOTS
    while (stretch := segment.read(slot, BLOCK_SLOTS)) is not None:
        report.points += points_in(stretch.runs)
        report.lost += stretch.lost
        report.lost_texts += stretch.lost_texts
        slot = stretch.end


def _look_at_open(report: SegmentReport, source: Source, *, written: bool) -> None:
    head = source.read(0, HEADER_SLOTS)
    if never_written(head):
        report.problems.append("the machine died before it was on the disk")
        return
    try:
        Header.unpack(head)
    except UnsupportedJournal as error:
        report.problems.append(str(error))
        return
    data = source.read(HEADER_SLOTS, source.slots)
    found = scan(data)
    report.points = points_in(found.runs)
    if not written:
        rest = data[found.stop * SLOT :].rstrip(b"\0")
        report.torn = -(-len(rest) // SLOT)
