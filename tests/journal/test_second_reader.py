"""A reader written from `docs/journal.md` alone finds what ours finds."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import pytest
from opentelemetry.sdk.trace import TracerProvider

import otel_tracking as ot
from otel_tracking.journal.compressed import FORMS
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus
from otel_tracking.spans import TrackingSpanProcessor

Found = tuple[str, int, int, bytes, tuple[str, str]]
"""tag, step, time, the value's bytes, ids of the trace and the span in which it was recorded"""


def records(journal: Path) -> Iterator[tuple[int, int, int, int, int, bytes]]:
    """(kind, id, step, time, number of the span, value or payload) of every record."""
    paths = {
        path.name[:8]: path for pattern in ("packed", "segment") for path in journal.glob(f"*.{pattern}")
    }
    for _, path in sorted(paths.items()):
        data = unpacked(path.read_bytes()) if path.suffix == ".packed" else path.read_bytes()
        magic, version, _, index = struct.unpack_from("<8sIIQ", data)
        (crc,) = struct.unpack_from("<I", data, 60)
        assert (magic, version) == (b"OTELTRK\0", 1)
        assert index == int(path.name.split(".")[0])
        assert crc == google_crc32c.value(data[:60])
        at = 64
        while at + 32 <= len(data):
            word, step, time, tail = struct.unpack_from("<Qqq8s", data, at)
            kind, id_, upper = word & 15, word >> 4 & 0xFFFFFFF, word >> 32
            if not word or not time or kind == 15:
                break
            if kind == 1:
                yield kind, id_, step, time, upper >> 2, tail
                at += 32
                continue
            slots = data[at + 32 : at + 32 + -(-upper // 32) * 32]
            crc, number = struct.unpack("<II", tail)
            if google_crc32c.value(slots) != crc:
                break
            yield kind, id_, step, time, number, slots[:upper]
            at += 32 + len(slots)


def unpacked(data: bytes) -> bytes:
    """The slots of a packed segment."""
    magic, version, blocks, _, slots = struct.unpack_from("<8sIIQQ", data)
    table_crc, crc = struct.unpack_from("<II", data, 56)
    assert (magic, version, crc) == (b"OTELPAK\0", 1, google_crc32c.value(data[:60]))
    table = data[64 : 64 + 8 * (blocks + 1)]
    assert table_crc == google_crc32c.value(table)
    assert data.endswith(table + data[:64])
    offsets = struct.unpack(f"<{blocks + 1}Q", table)
    found = b""
    for number in range(blocks):
        block = data[offsets[number] : offsets[number + 1]]
        assert struct.unpack_from("<I", block)[0] == google_crc32c.value(block[4:])
        period = block[4]
        groups = min(2048, slots - 2048 * number) // period
        widths = block[8 : 8 + 4 * period]
        at = 8 + 4 * period
        columns = []
        for width in widths:
            if width == 8:
                columns.append(list(struct.unpack_from(f"<{groups}Q", block, at)))
                at += 8 * groups
                continue
            word, least = struct.unpack_from("<qq", block, at)
            at += 16
            columns.append([word % 2**64])
            for _ in range(groups - 1):
                word += least + int.from_bytes(block[at : at + width], "little")
                columns[-1].append(word % 2**64)
                at += width
        found += (
            b"".join(struct.pack(f"<{4 * period}Q", *words) for words in zip(*columns, strict=True))
            + block[at:]
        )
    assert len(found) == 32 * slots
    return found


def read(journal: Path) -> list[Found]:
    series: dict[int, dict[str, object]] = {}
    shapes: dict[int, list[int]] = {}
    sums: dict[str, float] = {}
    spans: dict[int, tuple[str, str]] = {0: ("", "")}
    found: list[Found] = []

    def add(id_: int, step: int, time: int, number: int, value: bytes) -> None:
        tag = str(series[id_]["tag"])
        if series[id_]["kind"] in ("counter", "updowncounter"):
            sums[tag] = sums.get(tag, 0.0) + struct.unpack("<d", value)[0]
            value = struct.pack("<d", sums[tag])
        found.append((tag, step, time, value, spans[number]))

    for kind, id_, step, time, number, content in records(journal):
        if kind == 1:
            add(id_, step, time, number, content)
        elif kind == 2:
            for column, at in zip(shapes[id_], range(0, len(content), 8), strict=True):
                add(column, step, time, number, content[at : at + 8])
        elif id_ == 13:
            trace_id, span_id, number, _ = struct.unpack("<16s8sII", content)
            spans[number] = trace_id.hex(), span_id.hex()
        elif id_ in (1, 2):
            definition = json.loads(content)
            if id_ == 1:
                series[definition["id"]] = definition
            else:
                shapes[definition["id"]] = definition["series"]
    return found


def record(journal: Path, *, start: int) -> None:
    recorder = Recorder()
    recorder.opener = lambda r: r.open(journal)
    meter = TrackingMeterProvider(recorder).get_meter("train")
    spans = TracerProvider(shutdown_on_exit=False)
    spans.add_span_processor(TrackingSpanProcessor(recorder))
    tracer = spans.get_tracer("train")
    loss, tokens = meter.create_gauge("loss"), meter.create_counter("tokens")
    change = meter.create_up_down_counter("change")
    for step in range(start, start + 300):
        with tracer.start_as_current_span("step") if step % 3 else contextlib.nullcontext():
            recorder.log({"a": step / 3, "b": -0.0, "c": {"d": float("nan")}}, step=step)
            loss.set(step / 7, {"training.step": step, "class": "cat"})
            tokens.add(0.1, {"training.step": -step})
            change.add(-step, {"training.step": step, "fold": True})
            recorder.log({"text": "é\ud800", "e": 1.5}, step=step, options={"wandb": {"commit": False}})
        loss.set(1.0)
    recorder.close(RunStatus.FINISHED)


@pytest.mark.parametrize("smallest", [0, 2**20], ids=["packed", "plain"])
def test_it_finds_what_ours_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smallest: int) -> None:
    monkeypatch.setitem(FORMS, "pack", dataclasses.replace(FORMS["pack"], smallest=smallest))
    journal = tmp_path / "journal"
    for start in (0, 300):  # the second process defines its series anew
        record(journal, start=start)
    ours = ot.read_run(journal)
    assert bool(list(journal.glob("*.packed"))) == (smallest == 0)
    values = [struct.pack("<d", value) for value in ours.values.tolist()]
    links = zip(ours["trace_id"], ours["span_id"], strict=True)
    expected = list(zip(ours["tag"], ours.steps.tolist(), ours.times.tolist(), values, links, strict=True))
    assert len(expected) == 2 * (300 * 8 + 200)
    assert len({link for *_, link in expected}) == 2 * 200 + 1
    assert read(journal) == expected


def test_it_reads_a_journal_that_is_being_written(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    record(journal, start=0)
    before = read(journal)
    writer = JournalWriter(journal)
    try:
        assert read(journal) == before
    finally:
        writer.close()
