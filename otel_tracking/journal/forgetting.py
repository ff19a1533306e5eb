"""Removing a segment from a journal: its seal stays, and says what there was."""

from __future__ import annotations

import contextlib
import dataclasses
import os

import numpy as np

from otel_tracking.journal import seal
from otel_tracking.journal.compressed import segment_names
from otel_tracking.journal.continuing import steps_until
from otel_tracking.journal.entries import entry_bytes, series_content
from otel_tracking.journal.format import RecordType, position
from otel_tracking.journal.stream import RecordStream


def sizes(directory: int) -> dict[int, int]:
    """The bytes of each segment that is not removed.

    Args:
        directory: Descriptor of the journal's.
    """
    found: dict[int, int] = {}
    for index in seal.sealed(directory):
        for name in segment_names(index):
            with contextlib.suppress(FileNotFoundError):
                found[index] = os.stat(name, dir_fd=directory).st_size
    return dict(sorted(found.items()))


def forget(directory: int, index: int) -> None:
    """Remove a sealed segment, the oldest one that is there.

    What later segments need stays in its seal: definitions, the totals of counters, and where automatic
    counts of steps go on.

    Args:
        directory: Descriptor of the journal's.
        index: Of the segment.

    Raises:
        OSError: The seal can't be written; nothing is removed.
    """
    known = seal.load(directory, index)
    if known is None:
        return
    if not known.forgotten:
        state = entry_bytes(RecordType.STATE, _state_after(directory, known))
        places = np.append(known.places, np.uint32(known.slots - 1))
        seal.write(directory, dataclasses.replace(known, places=places, copies=known.copies + state))
    for name in segment_names(index):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)


def _state_after(directory: int, known: seal.Seal) -> dict[str, list[list[object]]]:
    """The totals of counters, and the next automatic step of each series, after a segment."""
    stream = RecordStream(directory)
    try:
        steps = steps_until(stream, position(known.segment, known.slots))
        return {
            "totals": [[series_content(stream.series[i]), total] for i, total in stream.totals.items()],
            "steps": [
                [series_content(series), step]
                for series, step in zip(stream.series, steps.tolist(), strict=True)
                if step
            ],
        }
    finally:
        stream.close()
