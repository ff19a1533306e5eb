"""A journal cut into batches, texts and configs: in order, no row in two, each after the cursor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_tracking.feed import Feed, Item
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.stream import RecordStream
from otel_tracking.recorder import Recorder
from otel_tracking.records import Batch, Config, Kind, RunStatus, Text


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder()
    made.open(tmp_path / "journal")
    yield made
    made.close(RunStatus.FINISHED)


def items(tmp_path: Path, *, max_points: int = 50_000, after: int = 0, tracker: str = "mine") -> list[Item]:
    feed = Feed(tmp_path / "journal", tracker=tracker, max_points=max_points)
    feed.start_after(after)
    taken = []
    while (item := feed.peek()) is not None:
        taken.append(item)
        feed.take()
    feed.close()
    return taken


def batches(found: list[Item]) -> list[Batch]:
    return [item for item in found if isinstance(item, Batch)]


def rows(found: list[Item]) -> list[tuple[int, int, dict[str, float]]]:
    """(position, step, values by tag) of each row."""
    result = []
    for batch in batches(found):
        for start, stop in batch.rows():
            tags = [batch.series[i].tag for i in batch.index[start:stop].tolist()]
            values = dict(zip(tags, batch.values[start:stop].tolist(), strict=True))
            result.append((int(batch.positions[start]), int(batch.steps[start]), values))
    return result


@pytest.mark.parametrize("max_points", [1, 2, 3, 4, 7, 10, 1000])
def test_no_row_is_cut_in_two(recorder: Recorder, tmp_path: Path, max_points: int) -> None:
    for step in range(20):
        recorder.log({"a": float(step), "b": -1.0, "c": 0.5}, step=step)
    found = items(tmp_path, max_points=max_points)
    assert rows(found) == [
        (position, step, {"a": float(step), "b": -1.0, "c": 0.5})
        for step, (position, _, _) in enumerate(rows(found))
    ]
    assert len(rows(found)) == 20
    for batch in batches(found):
        assert len(batch) % 3 == 0
        assert len(batch) <= max(max_points, 3), "one row may exceed it, two may not"


def test_a_row_larger_than_a_batch_is_one_batch(recorder: Recorder, tmp_path: Path) -> None:
    recorder.log({"before": 1.0}, step=0)
    recorder.log({f"v/{i}": float(i) for i in range(50)}, step=1)
    recorder.log({"after": 1.0}, step=2)
    assert [len(batch) for batch in batches(items(tmp_path, max_points=10))] == [1, 50, 1]


def test_texts_and_configs_keep_their_place(recorder: Recorder, tmp_path: Path) -> None:
    recorder.entry(RecordType.CONFIG, {"config": {"lr": 0.1}})
    recorder.log({"a": 1.0}, step=0)
    recorder.log({"note": "hello", "a": 2.0}, step=1)
    recorder.log({"a": 3.0}, step=2)
    found = items(tmp_path)
    kinds = [type(item) for item in found]
    assert kinds == [Config, Batch, Text, Batch]
    text = found[2]
    assert isinstance(text, Text)
    assert (text.tag, text.text, text.step) == ("note", "hello", 1)
    positions = [int(i.positions[0]) if isinstance(i, Batch) else i.position for i in found]
    assert positions == sorted(positions)


def test_what_lies_at_or_before_the_cursor_is_left_out_and_counted(
    recorder: Recorder, tmp_path: Path
) -> None:
    recorder.entry(RecordType.CONFIG, {"config": {"lr": 0.1}})
    for step in range(10):
        recorder.log({"a": 1.0, "b": 2.0}, step=step)
    recorder.log({"note": "x"}, step=10)
    whole = rows(items(tmp_path))
    cursor = whole[3][0]
    feed = Feed(tmp_path / "journal", tracker="mine", max_points=3)
    feed.start_after(cursor)
    first = feed.peek()
    assert isinstance(first, Batch)
    assert first.steps.tolist() == [4, 4]
    assert feed.skipped == 8
    feed.close()
    rest = items(tmp_path, after=cursor)
    assert rows(rest) == whole[4:]
    assert [type(item) for item in rest] == [Batch, Text]


def test_what_is_appended_later_comes_later(recorder: Recorder, tmp_path: Path) -> None:
    feed = Feed(tmp_path / "journal", tracker="mine", max_points=100)
    assert feed.peek() is None
    assert feed.idle
    recorder.log({"a": 1.0}, step=0)
    item = feed.peek()
    assert isinstance(item, Batch)
    assert feed.peek() is item, "until it is taken"
    assert not feed.idle
    feed.take()
    assert feed.idle
    assert recorder.journal is not None
    assert feed.position == recorder.journal.position
    recorder.log({"new": math.nan}, step=1)
    later = feed.peek()
    assert isinstance(later, Batch)
    assert [s.tag for s in later.series] == ["new"]
    assert math.isnan(later.values[0])
    feed.close()


def test_options_come_with_their_row_to_their_tracker_alone(recorder: Recorder, tmp_path: Path) -> None:
    recorder.log({"a": 1.0}, step=0)
    recorder.log(
        {"a": 2.0, "b": 2.0}, step=1, options={"mine": {"walltime": 5.0}, "other": {"commit": False}}
    )
    recorder.log({"a": 3.0}, step=2)
    recorder.log({"note": "t"}, step=3, options={"mine": {"k": 1}})
    found = items(tmp_path)
    with_options = {
        int(batch.steps[start]): dict(batch.options[int(batch.positions[start])])
        for batch in batches(found)
        for start, _ in batch.rows()
        if int(batch.positions[start]) in batch.options
    }
    assert with_options == {1: {"walltime": 5.0}}
    assert [dict(item.options) for item in found if isinstance(item, Text)] == [{"k": 1}]
    assert all(not batch.options for batch in batches(items(tmp_path, tracker="third")))


def test_options_of_a_row_without_a_step_reach_all_its_points(recorder: Recorder, tmp_path: Path) -> None:
    recorder.log({"a": 1.0, "b": 2.0, "c": 3.0}, options={"mine": {"walltime": 5.0}})
    recorder.log({"a": 4.0})
    found = batches(items(tmp_path, max_points=2))
    walls = [
        (value, batch.options.get(position, {}).get("walltime"))
        for batch in found
        for value, position in zip(batch.values.tolist(), batch.positions.tolist(), strict=True)
    ]
    assert walls == [(1.0, 5.0), (2.0, 5.0), (3.0, 5.0), (4.0, None)]


def test_options_reach_points_in_later_blocks_of_the_journal(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordStream.read, "__defaults__", (4,))  # slots in a block
    recorder.log({f"v{i}": float(i) for i in range(20)}, options={"mine": {"walltime": 5.0}})
    recorder.log({"v0": -1.0})
    found = batches(items(tmp_path))
    assert len(found) > 3
    walls = [
        batch.options.get(position, {}).get("walltime")
        for batch in found
        for position in batch.positions.tolist()
    ]
    assert walls == [5.0] * 20 + [None]


def test_the_status_is_what_the_journal_says_last(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.open(tmp_path / "journal")
    feed = Feed(tmp_path / "journal", tracker="mine", max_points=10)
    recorder.close(RunStatus.FAILED)
    assert feed.peek() is None
    seen = [feed.status]
    again = Recorder()
    again.open(tmp_path / "journal")
    assert feed.peek() is None
    seen.append(feed.status)
    again.close(RunStatus.FINISHED)
    assert feed.peek() is None
    assert [*seen, feed.status] == [RunStatus.FAILED, RunStatus.RUNNING, RunStatus.FINISHED]
    feed.close()


def test_counters_are_running_totals_also_after_the_cursor(recorder: Recorder, tmp_path: Path) -> None:
    registry = recorder.opened()
    assert registry is not None
    tokens = registry.series(name="tokens", kind=Kind.COUNTER)
    for step in range(5):
        recorder.point(tokens, 10, step=step)
    whole = batches(items(tmp_path))[0]
    assert whole.values.tolist() == [10.0, 20.0, 30.0, 40.0, 50.0]
    rest = batches(items(tmp_path, after=int(whole.positions[2])))[0]
    assert rest.values.tolist() == [40.0, 50.0]
