"""The event encoder against protobuf's own parser and tensorboard's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]
    LegacyEventFileLoader,
)
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import SummaryMetadata  # type: ignore[import-untyped]

from otel_tracking_exporters._tensorboard_events import (
    encode_rows,
    frame,
    position_of,
    records,
    scalar,
    stamp,
)

INT64 = np.iinfo(np.int64)
TAGS = ["a", "b/c", "loss" * 40, "训练/损失", "nul\0", "‮rtl", "x" * 70_000]


def encode(rows: list[tuple[int, list[int], int, float]], values: list[float]) -> bytes:
    """Rows of (position, series, step, wall time)."""
    return encode_rows(
        [scalar(tag) for tag in TAGS],
        np.array([i for _, series, _, _ in rows for i in series], dtype=np.int32),
        np.array([step for _, series, step, _ in rows for _ in series], dtype=np.int64),
        np.array([wall for _, series, _, wall in rows for _ in series]),
        np.array(values, dtype=np.float32),
        np.array([position for position, series, _, _ in rows for _ in series], dtype=np.int64),
    )


def test_what_tensorboard_reads_is_what_was_encoded(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = []
    for position in range(1, 600):
        series = rng.permutation(len(TAGS) - 1)[: rng.integers(1, 5)].tolist()
        step = int(rng.choice([0, 1, -1, 127, 128, 2**40, INT64.max, INT64.min]))
        rows.append((position, series, step, 1.7e9 + position / 7))
    rows.append((700, [6], 5, 1.0))
    values = rng.normal(size=sum(len(row[1]) for row in rows)).astype(np.float32)
    values[:6] = [np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38]
    path = tmp_path / "events"
    path.write_bytes(encode(rows, values.tolist()))

    events = list(LegacyEventFileLoader(str(path)).Load())

    assert [[v.tag for v in e.summary.value] for e in events] == [[TAGS[i] for i in row[1]] for row in rows]
    assert [(e.step, e.wall_time) for e in events] == [row[2:] for row in rows]
    read = np.array([v.simple_value for e in events for v in e.summary.value], dtype=np.float32)
    assert read.tobytes() == values.tobytes()
    assert [position_of(payload) for _, payload in records(path.read_bytes())] == [row[0] for row in rows]


@pytest.mark.parametrize("step", [0, 1, 127, 128, 2**14 - 1, 2**14, 2**62, INT64.max, -1, INT64.min])
def test_a_step_of_any_width(step: int) -> None:
    ((_, payload),) = records(encode([(1, [0], step, 2.5)], [1.0]))
    assert Event.FromString(payload).step == step


def test_points_of_one_position_with_two_steps_are_two_events() -> None:
    data = encode([(1, [0], 1, 1.0), (1, [1], 2, 1.0)], [1.0, 2.0])
    assert [Event.FromString(payload).step for _, payload in records(data)] == [1, 2]


def test_metadata_travels_with_the_number() -> None:
    metadata = SummaryMetadata(summary_description="what it is").SerializeToString()
    one = np.ones(1, dtype=np.int64)
    data = encode_rows(
        [scalar("t", metadata)], np.zeros(1, np.int32), one, np.ones(1), np.ones(1, np.float32), one
    )
    ((_, payload),) = records(data)
    value = Event.FromString(payload).summary.value[0]
    assert (value.metadata.summary_description, value.simple_value) == ("what it is", 1.0)


def test_others_events_carry_no_position() -> None:
    event = Event(step=3, wall_time=1.0)
    assert position_of(event.SerializeToString()) == 0
    assert position_of(stamp(7) + event.SerializeToString()) == 7
    # A parser that passes on what it does not know puts it last: no longer ours.
    assert position_of(Event.FromString(stamp(7) + event.SerializeToString()).SerializeToString()) == 0


def test_reading_stops_at_a_record_torn_or_damaged_anywhere() -> None:
    first, second = frame(b"first record"), frame(b"second")
    for cut in range(len(second)):
        assert [p for _, p in records(first + second[:cut])] == [b"first record"]
    for at in range(len(second)):
        damaged = bytearray(second)
        damaged[at] ^= 0x40
        assert [p for _, p in records(first + bytes(damaged) + first)] == [b"first record"]
    assert list(records(first + second, len(first))) == [(len(first) + len(second), b"second")]
