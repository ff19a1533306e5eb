"""A reader made from docs/journal.md alone agrees with ours: the page is enough, and right."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from otel_tracking import read_run
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus

# Nothing of otel_tracking is used from here ...


class Point(NamedTuple):
    series: str
    attributes: str
    step: int
    time: int
    value: float
    automatic: bool
    integer: bool
    position: int
    options: str


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def read(directory: Path) -> tuple[list[Point], list[tuple[int, Any]]]:
    """The points of a journal, and its other records as (type, content)."""
    points: list[Point] = []
    others: list[tuple[int, Any]] = []
    series: dict[int, Any] = {}
    shapes: dict[int, list[Any]] = {}
    totals: dict[str, float] = {}
    options: Any = None
    left = 0

    def add(
        definition: Any, step: int, time: int, value: float, position: int, automatic: bool, integer: bool
    ) -> None:
        nonlocal left
        if definition["kind"] in ("counter", "updowncounter"):
            same = json.dumps([definition[key] for key in ("meter", "name", "kind", "unit", "attributes")])
            value = totals[same] = totals.get(same, 0.0) + value
        given = json.dumps(options if left else None)
        left = max(0, left - 1)
        attributes = json.dumps(definition["attributes"])
        points.append(
            Point(definition["name"], attributes, step, time, value, automatic, integer, position, given)
        )

    for path in sorted(directory.glob("*.segment"), key=lambda path: int(path.stem)):
        data = path.read_bytes()
        magic, version, slots, number = struct.unpack_from("<8sIII", data)
        assert (magic, version, number) == (b"OTELTRK\0", 1, int(path.stem))
        assert struct.unpack_from("<I", data, 60)[0] == crc32c(data[:60])
        slot = 2
        while (slot + 1) * 32 <= min(len(data), slots * 32):
            word, step, time, last = struct.unpack_from("<QqqQ", data, slot * 32)
            if word == 0 or time == 0:
                break
            kind, id_, length = word & 15, word >> 4 & 0xFFFFFFF, word >> 32
            position = number << 32 | slot
            slot += 1
            if kind == 15:
                continue
            if kind == 1:
                value = struct.unpack("<d", struct.pack("<Q", last))[0]
                add(series[id_], step, time, value, position, bool(length & 1), bool(length & 2))
                continue
            size = -(-length // 32) * 32
            payload = data[slot * 32 : slot * 32 + size]
            if len(payload) < size or crc32c(payload) != last:
                break
            slot += size // 32
            if kind == 2:
                for definition, value in zip(
                    shapes[id_], struct.unpack(f"<{length // 8}d", payload[:length]), strict=True
                ):
                    add(definition, step, time, value, position, False, False)
                continue
            assert kind == 3
            content = json.loads(payload[:length])
            if id_ == 1:
                series[content["id"]] = content
            elif id_ == 2:
                shapes[content["id"]] = [series[column] for column in content["series"]]
            elif id_ == 5:
                options, left = content["options"], content["points"]
            else:
                others.append((id_, content))
    return points, others


# ... to here.


def test_the_second_reader_reads_the_same(tmp_path: Path, small_segments: Callable[[int], None]) -> None:
    """Two processes' worth of everything, over many segments."""
    small_segments(96)
    for status in (RunStatus.KILLED, RunStatus.FINISHED):
        recorder = Recorder()
        recorder.open(tmp_path / "journal", start={"pid": 7})
        meter = TrackingMeterProvider(recorder).get_meter("train")
        gauge, counter = meter.create_gauge("Loss", "nats", "how bad"), meter.create_counter("seen")
        automatic, changes = meter.create_gauge("auto"), meter.create_up_down_counter("open")
        if status is RunStatus.FINISHED:  # ids come otherwise
            recorder.log({"first": 1.0}, step=0)
        for step in range(200):
            gauge.set(1.0 / (step + 1), {"training.step": step, "fold": step % 3, "set": ("a", "b")})
            counter.add(0.1, {"training.step": -step})
            counter.add(1, {"training.step": step, "fold": True})
            changes.add(-3, {"training.step": step})
            automatic.set(float("nan") if step % 2 else float("-inf"))
            recorder.log({"a": step * 0.1, "b": -1.0} if step % 3 else {"b": 1.0, "a": 2.0, "c": 3}, step=step)
            if step % 50 == 0:
                recorder.log({"a": 5.0, "c": 6.0}, step=step, options={"wandb": {"commit": False}})
                recorder.log({"a": 5.0, "note": "é\ud800"}, options={"wandb": {"x": float("nan")}})
        recorder.close(status)

    points, others = read(tmp_path / "journal")
    run = read_run(tmp_path / "journal")
    assert len(list((tmp_path / "journal").glob("*.segment"))) > 30
    assert [point.step for point in points] == run.steps.tolist()
    assert [point.time for point in points] == run.times.tolist()
    assert [point.series for point in points] == [run.series[index].name for index in run.index]
    assert [json.loads(point.attributes) for point in points] == [
        {key: {"list": list(value)} if isinstance(value, tuple) else value for key, value in attributes.items()}
        for attributes in (run.series[index].attributes for index in run.index)
    ]
    assert list(map(repr, (point.value for point in points))) == list(map(repr, run.values.tolist()))

    mine = [point for point in points if point.series == "auto"]
    assert [point.step for point in mine] == list(range(400))
    assert all(point.automatic for point in mine)
    assert {point.series for point in points if point.integer} == {"seen", "open"}
    with_options = [(point.series, point.options) for point in points if point.options != "null"]
    assert with_options[:3] == [
        ("a", '{"wandb": {"commit": false}}'),
        ("c", '{"wandb": {"commit": false}}'),
        ("a", '{"wandb": {"x": NaN}}'),
    ]
    assert len(with_options) == 3 * 8
    assert [point.position for point in points] == sorted(point.position for point in points)
    kinds = [kind for kind, _ in others]
    assert kinds == [6, 4, 4, 4, 4, 7] * 2
    assert others[1][1]["text"] == "é\ud800"
    assert others[-1][1] == {"status": "finished"}
