"""Why a run failed: a text at the step that training was at, and told to trackers when they close the run."""

from __future__ import annotations

import contextlib
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from opentelemetry import metrics, trace

import otel_tracking as ot
from otel_tracking.feed import Feed
from otel_tracking.final_error import TAG, failure_of
from otel_tracking.journal.entries import Entry
from otel_tracking.journal.format import RecordType
from otel_tracking.reading import read_items
from otel_tracking.records import Failure, RunStatus
from otel_tracking.testing import RecordingTracker

RunScript = Callable[..., subprocess.CompletedProcess[str]]


def texts(directory: Path) -> list[tuple[str, int, str]]:
    """Tag, step and text of those in a journal."""
    return [
        (item.content["tag"], item.step, item.content["text"])
        for item, _ in read_items(directory)
        if isinstance(item, Entry) and item.type == RecordType.TEXT
    ]


def begun(tmp_path: Path, tracker: RecordingTracker | None = None, **options: str) -> ot.Tracking:
    tracking = ot.Tracking([tracker or RecordingTracker()], project_dir=tmp_path, **options)  # type: ignore[arg-type]
    tracking.init_trackers("p")
    return tracking


def fail(tracking: ot.Tracking, train: Callable[[ot.Tracking], None] | None = None) -> None:
    """Train in a `with` block that an exception ends."""
    with tracking:
        if train is not None:
            train(tracking)
        raise ValueError("no data\nat all")


def logged(tracking: ot.Tracking) -> None:
    """The step that the call says."""
    tracking.log({"loss": 1.0}, step=7)
    tracking.log({"counted": 1.0})


def measured(tracking: ot.Tracking) -> None:
    """The step of an instrument's attribute; a count that nobody gave is no step."""
    gauge = metrics.get_meter("train").create_gauge("loss")
    gauge.set(1.0, {"training.step": 7})
    for _ in range(30):
        gauge.set(1.0)


def in_a_span(tracking: ot.Tracking) -> None:
    """The step of the span that failed."""
    tracking.log({"loss": 1.0}, step=6)
    with trace.get_tracer("train").start_as_current_span("train step", attributes={"training.step": 7}):
        raise KeyError("in the span")


def said(tracking: ot.Tracking) -> None:
    """The process's, whatever was recorded last."""
    ot.set_step(7)
    tracking.log({"loss": 1.0}, step=3)


@pytest.mark.parametrize("train", [logged, measured, in_a_span, said])
def test_the_step_is_where_training_was(tmp_path: Path, train: Callable[[ot.Tracking], None]) -> None:
    tracker = RecordingTracker()
    tracking = begun(tmp_path, tracker)
    with pytest.raises((KeyError, ValueError)):
        fail(tracking, train)
    assert [(text.tag, text.step) for text in tracker.texts] == [(TAG, 7)]
    assert tracker.status is RunStatus.FAILED
    assert tracking.receipt().complete


def test_without_a_step_it_is_0(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    with pytest.raises(ValueError, match="no data"):
        fail(begun(tmp_path, tracker), lambda tracking: tracking.log({"loss": 1.0}))
    assert [(text.tag, text.step) for text in tracker.texts] == [(TAG, 0)]


def test_it_reads_as_python_prints_it(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    with pytest.raises(ValueError, match="no data") as raised:
        fail(begun(tmp_path, tracker))
    (text,) = tracker.texts
    printed = "".join(traceback.format_exception(raised.value)).splitlines()
    begin, *frames = text.text.splitlines()
    assert begin == printed[0] == "Traceback (most recent call last):"
    assert frames == printed[-len(frames) :]  # the exception has gone on since
    assert text.text.endswith("\nValueError: no data\nat all")
    assert tracker.failure == Failure("ValueError: no data\nat all", text.text)


def test_who_says_that_it_failed_says_why_in_an_except_block_alone(tmp_path: Path) -> None:
    handled, outside = RecordingTracker(), RecordingTracker()
    tracking = begun(tmp_path, handled)
    try:
        raise ValueError("no data")
    except ValueError:
        tracking.end_training(status="failed")
    begun(tmp_path, outside).end_training(status="failed")
    assert handled.failure is not None
    assert handled.failure.reason == "ValueError: no data"
    assert (outside.status, outside.failure, outside.texts) == (RunStatus.FAILED, None, [])


@pytest.mark.parametrize(("status", "error"), [("finished", ValueError), ("killed", KeyboardInterrupt)])
def test_a_run_that_did_not_fail_has_none(tmp_path: Path, status: str, error: type[BaseException]) -> None:
    tracker = RecordingTracker()
    tracking = begun(tmp_path, tracker)
    try:
        raise error
    except error:
        tracking.end_training(status=status)
    assert (tracker.status, tracker.failure, tracker.texts) == (RunStatus(status), None, [])


def test_a_run_that_goes_on_has_not_failed(tmp_path: Path) -> None:
    first, second = RecordingTracker(), RecordingTracker()
    with pytest.raises(ValueError, match="no data"):
        fail(begun(tmp_path, first, run_id="same"))
    tracking = begun(tmp_path, second, run_id="same")
    tracking.log({"loss": 1.0}, step=1)
    tracking.end_training()
    assert first.failure is not None
    assert (second.status, second.failure, second.texts) == (RunStatus.FINISHED, None, [])


def test_who_has_the_text_already_is_told_too(tmp_path: Path) -> None:
    """A kill may come between the text and the end: whoever closes the run then goes on behind the text."""
    with pytest.raises(ValueError, match="no data"):
        fail(begun(tmp_path, run_id="run"), logged)
    feed = Feed(tmp_path / "p" / "run" / "journal" / "rank-00000", tracker="recording", max_points=10)
    feed.start_after(2**62)
    assert feed.peek() is None
    feed.close()
    assert feed.failure is not None
    assert (feed.status, feed.failure.reason) == (RunStatus.FAILED, "ValueError: no data\nat all")


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (ValueError("no data"), RunStatus.FAILED),
        (KeyboardInterrupt(), RunStatus.KILLED),
        (SystemExit(0), RunStatus.FINISHED),
        (None, RunStatus.FINISHED),
    ],
    ids=["error", "Ctrl-C", "exit", "none"],
)
@pytest.mark.parametrize("directly", [True, False], ids=["there", "in a function"])
def test_a_run_that_a_finally_ends(
    tmp_path: Path, raised: BaseException | None, status: RunStatus, directly: bool
) -> None:
    tracker = RecordingTracker()
    tracking = begun(tmp_path, tracker)

    def close() -> None:
        tracking.end_training()

    def train() -> None:
        try:
            tracking.log({"loss": 1.0}, step=7)
            if raised is not None:
                raise raised
        finally:
            if directly:
                tracking.end_training()
            else:
                close()

    with contextlib.suppress(ValueError, KeyboardInterrupt, SystemExit):
        train()
    assert tracker.status is status
    assert [text.step for text in tracker.texts] == [7] * (status is RunStatus.FAILED)


def test_a_second_try_is_not_failed_by_the_first_ones_error(tmp_path: Path) -> None:
    first, second = RecordingTracker(), RecordingTracker()

    def train(tracker: RecordingTracker, error: Exception | None) -> None:
        tracking = begun(tmp_path, tracker)
        try:
            if error is not None:
                raise error
        finally:
            tracking.end_training()

    try:
        train(first, MemoryError("batch of 64"))
    except MemoryError:
        train(second, None)
    assert (first.status, second.status) == (RunStatus.FAILED, RunStatus.FINISHED)
    try:
        raise MemoryError
    except MemoryError:
        with pytest.raises(ValueError, match="again"):
            train(second, ValueError("again"))
    assert second.status is RunStatus.FAILED


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("of the error's own")


def test_what_is_said_can_be_stored_anywhere() -> None:
    assert failure_of(Hostile()).reason.startswith(f"{__name__}.Hostile: <exception str() failed>")
    assert failure_of(ValueError("a\ud800b\0c")).reason == "ValueError: a\\ud800b\\x00c"
    assert failure_of(ValueError("api_key=abcdefgh12345678")).reason == "ValueError: api_key=<redacted>"
    long = failure_of(ValueError(f"begin {'x' * 10**6} end"))
    assert len(long.reason) < 600
    assert len(long.traceback) < 21_000
    assert long.reason.startswith("ValueError: begin")
    assert long.reason.endswith(" end")


EXITS = """
import sys
import otel_tracking as ot

tracking = ot.Tracking(project_dir="out", run_id="run")
tracking.init_trackers("p")
tracking.log({"loss": 1.0}, step=7)
"""


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ("sys.exit('no data')", "SystemExit: no data"),
        ("raise ExceptionGroup('several', [ValueError('one'), TypeError('two')])", "TypeError: two"),
    ],
)
def test_however_the_interpreter_ends(run_script: RunScript, tmp_path: Path, ends: str, reason: str) -> None:
    run_script(f"{EXITS}\n{ends}\n", check=False)
    ((tag, step, text),) = texts(tmp_path / "out" / "p" / "run" / "journal" / "rank-00000")
    assert (tag, step) == (TAG, 7)
    assert reason in text
