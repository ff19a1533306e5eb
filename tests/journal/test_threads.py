"""Threads that record at once, while the journal rotates, moves and closes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from otel_tracking import read_run
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

Small = Callable[[int], None]


def together(*works: Callable[[], None]) -> None:
    """Run functions in a thread each; the first error of any is raised here."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_four_threads_and_rotation(recorder: Recorder, tmp_path: Path, small_segments: Small) -> None:
    small_segments(512)
    meter = TrackingMeterProvider(recorder).get_meter("train")
    counter, gauges = meter.create_counter("seen"), [meter.create_gauge(f"g{n}") for n in range(4)]

    def work(number: int) -> Callable[[], None]:
        def record() -> None:
            for step in range(5000):
                gauges[number].set(step + number * 0.25, {"training.step": step})
                counter.add(0.5, {"training.step": step})
                if step % 10 == 0:
                    recorder.log({f"row{number}/a": 1.0, f"row{number}/b": float(step)}, step=step)

        return record

    together(*(work(n) for n in range(4)))
    recorder.close(RunStatus.FINISHED)

    run = read_run(tmp_path / "journal")
    assert recorder.not_recorded() == {}
    for number in range(4):
        points = run.of(f"g{number}")
        assert points.steps.tolist() == list(range(5000))
        assert np.array_equal(points.values, points.steps + number * 0.25)
        assert run.of(f"row{number}/b").values.tolist() == list(range(0, 5000, 10))
    totals = run.of("seen").values
    assert totals.tolist() == [0.5 * (n + 1) for n in range(20000)]


def test_a_new_series_in_four_threads_at_once_is_one_series(recorder: Recorder, tmp_path: Path) -> None:
    gauges = [TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss") for _ in range(4)]
    barrier = threading.Barrier(4)

    def work(number: int) -> Callable[[], None]:
        def record() -> None:
            for step in range(300):
                if step % 100 == 0:
                    barrier.wait(30)
                gauges[number].set(1.0, {"training.step": step, "series": f"{step}"})
                gauges[number].set(2.0)

        return record

    together(*(work(n) for n in range(4)))
    run = read_run(tmp_path / "journal")
    assert len(run.series) == 301
    assert len({series.tag for series in run.series}) == 301
    automatic = run.of("loss", {})
    assert sorted(automatic.steps.tolist()) == list(range(1200))


@pytest.mark.parametrize("slots", [128, 2**15])
def test_a_call_while_the_journal_closes_is_recorded_or_counted(
    tmp_path: Path, small_segments: Small, slots: int
) -> None:
    small_segments(slots)
    for attempt in range(8):
        close_while_recording(tmp_path / str(attempt), after=300 + 97 * attempt)


def close_while_recording(directory: Path, *, after: int) -> None:
    recorder = Recorder()
    recorder.open(directory)
    meter = TrackingMeterProvider(recorder).get_meter("train")
    given, counted = meter.create_gauge("given"), meter.create_gauge("counted")
    calls: dict[str, Callable[[int], None]] = {
        "given": lambda step: given.set(1.0, {"training.step": step}),
        "counted": lambda step: counted.set(1.0),
        "row": lambda step: recorder.log({"row": 1.0}, step=step),
    }
    made = dict.fromkeys(calls, 0)
    ended = threading.Event()

    def work(name: str) -> Callable[[], None]:
        def record() -> None:
            more = 200
            while more:
                more -= ended.is_set()
                calls[name](made[name])
                made[name] += 1

        return record

    def close() -> None:
        while min(made.values()) < after:
            pass
        recorder.close(RunStatus.FINISHED)
        ended.set()

    together(*(work(name) for name in calls), close)
    run = read_run(directory)
    lost = recorder.not_recorded()
    assert len(run) + sum(lost.values()) == sum(made.values())
    assert set(lost) == {"recorded after the run had ended"}
    for name in calls:
        steps = run.of(name).steps.tolist()
        assert steps == list(range(len(steps)))


@pytest.mark.parametrize("existing", [False, True], ids=["renamed", "appended to an earlier one"])
def test_moving_the_journal_while_three_threads_record(
    tmp_path: Path, small_segments: Small, existing: bool
) -> None:
    small_segments(256)
    place = tmp_path / "run" / "journal"
    if existing:
        earlier = Recorder()
        earlier.open(place)
        for _ in range(10):
            TrackingMeterProvider(earlier).get_meter("train").create_gauge("auto").set(7.0)
        earlier.log({"a": -1.0, "b": -1.0}, step=-1)
        earlier.close(RunStatus.FAILED)

    recorder = Recorder()
    recorder.open(tmp_path / "pending")
    meter = TrackingMeterProvider(recorder).get_meter("train")
    gauge, auto = meter.create_gauge("gauge"), meter.create_gauge("auto")
    stop = threading.Event()
    made = [0, 0, 0]

    def record(number: int) -> Callable[[], None]:
        def run() -> None:
            while not stop.is_set() or made[number] < 2000:
                step = made[number]
                if number == 0:
                    gauge.set(step * 0.5, {"training.step": step})
                elif number == 1:
                    auto.set(7.0)
                else:
                    recorder.log({"a": float(step), "b": step + 0.5}, step=step)
                made[number] += 1

        return run

    def move() -> None:
        while min(made) < 500:
            pass
        recorder.move(place)
        reached = list(made)
        while min(m - r for m, r in zip(made, reached, strict=True)) < 500:
            pass
        stop.set()

    together(*(record(n) for n in range(3)), move)
    recorder.close(RunStatus.FINISHED)

    assert recorder.not_recorded() == {}
    assert not (tmp_path / "pending").exists()
    run = read_run(place)
    assert run.of("gauge").steps.tolist() == list(range(made[0]))
    assert np.array_equal(run.of("gauge").values, np.arange(made[0]) * 0.5)
    first = -1 if existing else 0
    assert run.of("a").steps.tolist() == list(range(first, made[2]))
    assert run.of("b").values[-made[2] :].tolist() == [step + 0.5 for step in range(made[2])]
    # Automatic counts go on where the earlier process ended, also those recorded before the move.
    assert run.of("auto").steps.tolist() == list(range(made[1] + (10 if existing else 0)))


def test_the_first_records_of_four_threads_open_one_journal(tmp_path: Path) -> None:
    opened = 0

    def opener(this: Recorder) -> None:
        nonlocal opened
        opened += 1
        this.open(tmp_path / "journal")

    recorder = Recorder()
    recorder.opener = opener
    barrier = threading.Barrier(4)

    def record() -> None:
        barrier.wait(10)
        recorder.log({"loss": 1.0}, step=1)

    together(*[record] * 4)
    assert opened == 1
    assert len(read_run(tmp_path / "journal")) == 4
    recorder.close(RunStatus.FINISHED)


def test_a_journal_that_cannot_be_merged_stays_where_it_is(tmp_path: Path) -> None:
    """The place has another writer: recording goes on where it was."""
    recorder, other = Recorder(), Recorder()
    other.open(tmp_path / "run")
    recorder.open(tmp_path / "pending")
    recorder.log({"a": 1.0}, step=1)
    with pytest.raises(Exception, match="is being written by another process"):
        recorder.move(tmp_path / "run")
    recorder.log({"a": 2.0}, step=2)
    assert read_run(tmp_path / "pending").steps.tolist() == [1, 2]
    other.close(RunStatus.FINISHED)
    recorder.move(tmp_path / "run")
    recorder.log({"a": 3.0}, step=3)
    recorder.close(RunStatus.FINISHED)
    assert read_run(tmp_path / "run").steps.tolist() == [1, 2, 3]
