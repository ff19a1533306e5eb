"""A journal as points of named series: sums, redefinitions, counts, rows of many shapes."""

from __future__ import annotations

import math
import random
import struct
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_tracking import read_run
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import Kind, RunStatus


def started(directory: Path) -> Recorder:
    recorder = Recorder()
    recorder.open(directory)
    return recorder


def test_running_totals_are_what_adding_at_the_call_gives(tmp_path: Path) -> None:
    """Across blocks and restarts, in doubles, where the order of adding matters."""
    dice = random.Random(25)
    totals = {"a": 0.0, "b": 0.0, "net": 0.0}
    expected: dict[str, list[float]] = {name: [] for name in totals}
    for _ in range(3):
        recorder = started(tmp_path / "journal")
        meter = TrackingMeterProvider(recorder).get_meter("train")
        add = {
            "a": meter.create_counter("a").add,
            "b": meter.create_counter("b").add,
            "net": meter.create_up_down_counter("net").add,
        }
        gauge = meter.create_gauge("g")
        for step in range(400):
            name = dice.choice("ab") if dice.random() < 0.7 else "net"
            amount = dice.choice([0.1, 1e16, 3.3e-7, 1])
            if name == "net":
                amount *= dice.choice([1, -1])
            add[name](amount, {"training.step": step})
            totals[name] += amount
            expected[name].append(totals[name])
            gauge.set(float(step), {"training.step": step})
        recorder.close(RunStatus.FINISHED)

    for slots in (3, 50, 10**6):
        stream = RecordStream(tmp_path / "journal")
        found: dict[str, list[float]] = {name: [] for name in (*totals, "g")}
        while (items := stream.read(slots)) is not None:
            for item in items:
                if isinstance(item, Points):
                    for index, value in zip(item.index.tolist(), item.values.tolist(), strict=True):
                        found[stream.series[index].name].append(value)
        stream.close()
        assert {name: found[name] for name in totals} == expected
        assert found["g"] == [float(step) for step in range(400)] * 3


def test_ids_that_mean_something_else_after_a_restart(tmp_path: Path) -> None:
    names = [f"s{n}" for n in range(6)]
    for turn in range(4):
        recorder = started(tmp_path / "journal")
        order = names[turn:] + names[:turn]
        for name in order:
            recorder.log({name: float(name[1:])}, step=turn)
        recorder.log({name: float(name[1:]) for name in reversed(order)}, step=turn)
        recorder.close(RunStatus.FINISHED)
    run = read_run(tmp_path / "journal")
    assert sorted(series.name for series in run.series) == names
    for name in names:
        points = run.of(name)
        assert points.steps.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert set(points.values.tolist()) == {float(name[1:])}


def test_many_definitions(tmp_path: Path) -> None:
    """More ids than the table begins with, in one read."""
    recorder = started(tmp_path / "journal")
    recorder.log({f"s{n}": float(n) for n in range(1000)}, step=0)
    recorder.close(RunStatus.FINISHED)
    run = read_run(tmp_path / "journal")
    assert [run.series[index].name for index in run.index] == [f"s{n}" for n in range(1000)]
    assert run.values.tolist() == [float(n) for n in range(1000)]


def test_automatic_steps_go_on_after_a_resume(tmp_path: Path) -> None:
    """Also after a kill, which is no close; given steps don't count."""
    expected = {"auto": 0, "row": 0}
    for turn in range(3):
        recorder = started(tmp_path / "journal")
        auto = TrackingMeterProvider(recorder).get_meter("train").create_gauge("auto")
        for _ in range(5 + turn):
            auto.set(1.0)
            expected["auto"] += 1
        auto.set(2.0, {"training.step": 1000})
        recorder.log({"row/a": 1.0, "row/b": 2.0})
        recorder.log({"row/a": 1.0})
        expected["row"] += 1
        recorder.close(RunStatus.FINISHED)
    run = read_run(tmp_path / "journal")
    auto_points = run.of("auto")
    assert auto_points.steps[auto_points.values == 1.0].tolist() == list(range(expected["auto"]))
    assert run.of("row/a").steps.tolist() == list(range(6))
    assert run.of("row/b").steps.tolist() == list(range(3))


def test_tags_stay_those_of_the_first_process(tmp_path: Path) -> None:
    tags = []
    for order in (["x", "y"], ["y", "x"]):
        recorder = started(tmp_path / "journal")
        for meter in order:
            gauge = TrackingMeterProvider(recorder).get_meter(meter).create_gauge("loss")
            gauge.set(1.0, {"training.step": 1})
        recorder.close(RunStatus.FINISHED)
        tags.append({series.meter: series.tag for series in read_run(tmp_path / "journal").series})
    assert tags[0] == tags[1] == {"x": "loss", "y": "y/loss"}


def test_points_rows_and_texts_keep_their_order(tmp_path: Path) -> None:
    recorder = started(tmp_path / "journal")
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("g")
    expected: list[tuple[str, float]] = []
    for step in range(300):
        if step % 2:
            gauge.set(float(step), {"training.step": step})
            expected.append(("g", float(step)))
        row = {name: float(step) for name in "abcdefgh"[: step % 7]}
        recorder.log(row, step=step)
        expected += row.items()
        if step % 50 == 0:
            recorder.text("note", str(step), step=step)
            expected.append(("note", float(step)))
    recorder.close(RunStatus.FINISHED)
    stream = RecordStream(tmp_path / "journal")
    found: list[tuple[str, float]] = []
    while (items := stream.read(100)) is not None:
        for item in items:
            if isinstance(item, Points):
                names = [stream.series[index].name for index in item.index.tolist()]
                found += zip(names, item.values.tolist(), strict=True)
            elif item.type is RecordType.TEXT:
                found.append(("note", float(item.content["text"])))
    stream.close()
    assert found == expected


def test_points_flags(tmp_path: Path) -> None:
    recorder = started(tmp_path / "journal")
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("g")
    gauge.set(1, {"training.step": 1})
    gauge.set(1.0, {"training.step": 1})
    gauge.set(np.int64(2))  # type: ignore[arg-type]  # more than the API promises
    gauge.set(2.5)
    recorder.close(RunStatus.FINISHED)
    stream = RecordStream(tmp_path / "journal")
    points = [item for item in stream.read() or [] if isinstance(item, Points)]
    stream.close()
    (batch,) = points
    assert batch.integers().tolist() == [True, False, True, False]
    assert batch.automatic().tolist() == [False, False, True, True]
    assert batch.steps.tolist() == [1, 1, 0, 1]


names = st.text(min_size=0, max_size=12)
numbers = st.floats(width=64) | st.integers(-(2**53), 2**53)
steps = st.integers(-(2**63), 2**63 - 1)
point = st.tuples(st.just("point"), names, numbers, steps)
row = st.tuples(st.just("row"), st.dictionaries(names, numbers, min_size=0, max_size=6), st.none(), steps)
text = st.tuples(st.just("text"), names, names, steps)
restart = st.tuples(st.just("restart"), st.none(), st.none(), st.just(0))


def same(left: float, right: float) -> bool:
    return struct.pack("<d", left) == struct.pack("<d", right) or (math.isnan(left) and math.isnan(right))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(point | row | text | restart, max_size=25))
def test_whatever_is_recorded_comes_back(
    tmp_path: Path, records: list[tuple[str, object, object, int]]
) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        journal = Path(directory, "journal")
        recorder = started(journal)
        expected: list[tuple[str, int, object]] = []
        for kind, what, value, step in records:
            if kind == "point":
                assert recorder.registry is not None
                assert isinstance(what, str)
                recorder.point(recorder.registry.series(name=what, kind=Kind.GAUGE), value, step=step)
                expected.append((what, step, value))
            elif kind == "row":
                assert isinstance(what, dict)
                recorder.log(what, step=step)
                expected += [(name, step, number) for name, number in what.items()]
            elif kind == "text":
                assert isinstance(what, str)
                assert isinstance(value, str)
                recorder.text(what, value, step=step)
                expected.append((what, step, value))
            else:
                recorder.close(RunStatus.FINISHED)
                recorder = started(journal)
        recorder.close(RunStatus.FINISHED)
        assert recorder.not_recorded() == {}

        stream = RecordStream(journal)
        found: list[tuple[str, int, object]] = []
        while (items := stream.read(7)) is not None:
            for item in items:
                if isinstance(item, Points):
                    tags = [stream.series[index].name for index in item.index.tolist()]
                    found += zip(tags, item.steps.tolist(), item.values.tolist(), strict=True)
                elif item.type is RecordType.TEXT:
                    found.append((item.content["tag"], item.step, item.content["text"]))
        stream.close()

    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    for (_, _, got), (_, _, given_value) in zip(found, expected, strict=True):
        if isinstance(given_value, str):
            assert got == given_value
        else:
            assert isinstance(got, float)
            assert isinstance(given_value, int | float)
            assert same(got, float(given_value))
