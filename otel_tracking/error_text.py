"""Why a run failed, recorded as a text, at the step that training was at."""

from __future__ import annotations

import logging
from typing import Final

from otel_tracking.final_error import REASON, TAG, failure_of
from otel_tracking.journal.format import FLAG_AUTOMATIC_STEP, POINT, RecordType
from otel_tracking.journal.reader import Block, JournalReader
from otel_tracking.recorder import Recorder
from otel_tracking.steps import ambient

_LOG: Final = logging.getLogger(__name__)


def record_error(recorder: Recorder, error: BaseException) -> None:
    """Record it, so that each tracker shows why the run failed; an error in that is only logged."""
    journal = recorder.journal
    if journal is None or journal.closed:
        return
    try:
        failure = failure_of(error)
        step = ambient()
        content = {"tag": TAG, "text": failure.traceback, "options": {}, REASON: failure.reason}
        recorder.entry(
            RecordType.TEXT, content, step=_step_reached(journal.descriptor) if step is None else step
        )
    except Exception:  # noqa: BLE001 - of the error's own code, or of a disk; the run has to end all the same
        _LOG.exception("it can't be recorded why the run failed")


def _step_reached(journal: int) -> int:
    """The step that training was at: that of the last point for which one was given; 0 if there is none.

    Args:
        journal: A descriptor of its directory.
    """
    reader = JournalReader(journal)
    try:
        for segment in reversed(reader.segments()):
            reader.go_to(segment)
            found = None
            while (block := reader.read()) is not None and block.first >> 32 == segment:
                step = _step_in(block)
                found = found if step is None else step
            if found is not None:
                return found
    finally:
        reader.close()
    return 0


def _step_in(block: Block) -> int | None:
    for run in reversed(block.runs):
        if run.points_each:
            heads = block.words[run.start : run.stop : run.stride]
            if run.kind == POINT:
                heads = heads[(heads[:, 0] & FLAG_AUTOMATIC_STEP) == 0]
            if len(heads):
                return int(heads[-1, 1])
    return None
