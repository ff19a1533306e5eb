"""What `log` and instruments take, what they refuse, and that no one's exception is kept."""

from __future__ import annotations

import collections
import enum
import functools
import json
import logging
import signal
import types
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otel_tracking import read_run
from otel_tracking.errors import raised_by_handler
from otel_tracking.journal.entries import Entry
from otel_tracking.journal.format import RecordType
from otel_tracking.journal.stream import Points, RecordStream
from otel_tracking.journal.writer import JournalWriter
from otel_tracking.provider import TrackingMeterProvider
from otel_tracking.reading import RunData
from otel_tracking.recorder import Recorder
from otel_tracking.records import RunStatus
from otel_tracking.rows import MAX_ROW


def recorded(recorder: Recorder) -> RunData:
    assert recorder.journal is not None
    return read_run(recorder.journal.path)


def rows(recorder: Recorder) -> list[tuple[str, int, float]]:
    run = recorded(recorder)
    names = [run.series[index].name for index in run.index]
    return list(zip(names, run.steps.tolist(), run.values.tolist(), strict=True))


def entries(recorder: Recorder, type_: RecordType) -> list[Entry]:
    assert recorder.journal is not None
    stream = RecordStream(recorder.journal.path)
    found = []
    while (items := stream.read()) is not None:
        found += [item for item in items if isinstance(item, Entry) and item.type is type_]
    stream.close()
    return found


# log


def test_numbers_of_every_kind(recorder: Recorder) -> None:
    values = {
        "int": 3,
        "bool": True,
        "float32": np.float32(0.5),
        "float64": np.float64(0.25),
        "int64": np.int64(-4),
        "0-d": np.array(1.5),
        "one": np.array([[2.5]]),
        "tensor": torch.tensor(3.5, requires_grad=True),
        "bfloat16": torch.tensor(4.5, dtype=torch.bfloat16),
        "Fraction": Fraction(1, 2),
        "Decimal": Decimal("0.5"),
    }
    for _ in range(2):  # the second time by the short way
        recorder.log(values, step=1)
    expected = [3.0, 1.0, 0.5, 0.25, -4.0, 1.5, 2.5, 3.5, 4.5, 0.5, 0.5]
    assert rows(recorder) == [(name, 1, value) for name, value in zip(values, expected, strict=True)] * 2
    assert recorder.not_recorded() == {}


def test_a_known_row_with_other_types_than_before(recorder: Recorder) -> None:
    for value in (1.0, 2, np.float32(3), "four", None, {"x": 5.0}, 6.0):
        recorder.log({"a": value, "b": 0.5}, step=1)
    assert recorded(recorder).of("a").values.tolist() == [1.0, 2.0, 3.0, 6.0]
    assert recorded(recorder).of("a/x").values.tolist() == [5.0]
    assert recorded(recorder).of("b").values.tolist() == [0.5] * 7
    assert [entry.content["text"] for entry in entries(recorder, RecordType.TEXT)] == ["four"]
    assert sum(recorder.not_recorded().values()) == 1


def test_nan_infinities_and_negative_zero_are_kept(recorder: Recorder) -> None:
    given = [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308]
    for _ in range(2):
        recorder.log({f"v{n}": value for n, value in enumerate(given)}, step=1)
    assert np.array_equal(recorded(recorder).values, np.array(given * 2), equal_nan=True)
    assert np.signbit(recorded(recorder).of("v3").values).all()


def test_nested_mappings_are_groups(recorder: Recorder) -> None:
    recorder.log({"class": {"cat": 0.9, "dog": {"big": 0.8}}, "class/cat": 0.1, "x": 1.0}, step=2)
    assert rows(recorder) == [
        ("class/cat", 2, 0.9),
        ("class/dog/big", 2, 0.8),
        ("class/cat~2", 2, 0.1),
        ("x", 2, 1.0),
    ]
    groups = {series.name: series.group for series in recorded(recorder).series}
    assert groups == {"class/cat": "class", "class/dog/big": "class/dog", "class/cat~2": "", "x": ""}


def test_texts_beside_numbers(recorder: Recorder) -> None:
    mistaken: Any = {"wandb": {"x": 1}, "mlflow": None}
    recorder.log({"note": "hello \ud800 \u202e\0", "a": 1.0}, step=3, options=mistaken)
    (text,) = entries(recorder, RecordType.TEXT)
    assert (text.step, text.content["text"]) == (3, "hello \ud800 \u202e\0")
    assert text.content["options"] == {"wandb": {"x": 1}}
    assert rows(recorder) == [("a", 3, 1.0)]


def test_options_stand_before_the_points_they_are_for(recorder: Recorder) -> None:
    recorder.log({"a": 1.0, "b": 2.0}, step=1, options={"wandb": {"commit": False, "odd": object(), 3: None}})
    recorder.log({"a": 1.0})
    recorder.log({"a": 1.0, "b": 1.0}, options={"x": {"y": float("nan")}})
    first, second = entries(recorder, RecordType.OPTIONS)
    assert first.content["points"] == second.content["points"] == 2
    assert first.content["options"]["wandb"]["commit"] is False
    assert first.content["options"]["wandb"]["3"] is None
    assert "object" in first.content["options"]["wandb"]["odd"]
    positions = [int(p) for item in _items(recorder) if isinstance(item, Points) for p in item.positions]
    assert first.position < positions[0] == positions[1] < positions[2] < second.position < positions[3]


def _items(recorder: Recorder) -> Iterator[Points | Entry]:
    assert recorder.journal is not None
    stream = RecordStream(recorder.journal.path)
    while (items := stream.read()) is not None:
        yield from items
    stream.close()


def test_more_values_than_one_row_holds(recorder: Recorder) -> None:
    count = 2 * MAX_ROW + 5
    values = {f"v{n}": float(n) for n in range(count)}
    for step in range(2):
        recorder.log(values, step=step, options={"wandb": {"commit": True}} if step else None)
    recorder.log(values)
    assert recorded(recorder).values.tolist() == [float(n) for n in range(count)] * 3
    assert [e.content["points"] for e in entries(recorder, RecordType.OPTIONS)] == [MAX_ROW, MAX_ROW, 5]


def test_keys_that_are_no_texts(recorder: Recorder) -> None:
    class Name(str):
        pass

    class Level(enum.StrEnum):
        LOW = "low"

    for _ in range(2):
        recorder.log({1: 1.0, None: 2.0, Name("n"): 3.0, Level.LOW: 4.0}, step=1)  # type: ignore[dict-item]  # a mistake
        recorder.log({True: 5.0}, step=1)  # type: ignore[dict-item]  # equal to the key 1
    assert (
        rows(recorder)
        == [("1", 1, 1.0), ("None", 1, 2.0), ("n", 1, 3.0), ("low", 1, 4.0), ("True", 1, 5.0)] * 2
    )


def test_mappings_that_are_no_dicts(recorder: Recorder) -> None:
    ordered = collections.OrderedDict(a=1.0, b=2.0)
    for values in (
        ordered,
        types.MappingProxyType({"a": 3.0, "b": 4.0}),
        collections.ChainMap({"a": 5.0, "b": 6.0}),
    ):
        for _ in range(2):
            recorder.log(values, step=1)
    assert recorded(recorder).of("a").values.tolist() == [1.0, 1.0, 3.0, 3.0, 5.0, 5.0]


@pytest.mark.parametrize("values", [None, 5, [1.0], "text", {"a"}])
def test_what_is_no_mapping_is_refused(
    recorder: Recorder, values: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, None):
        recorder.log(values, step=step)
    (reason,) = recorder.not_recorded()
    assert "log takes a mapping, not" in reason
    assert recorder.not_recorded()[reason] == 2
    said = [record for record in caplog.records if reason in record.getMessage()]
    assert len(said) == 1  # once a reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "NoneType is not a number"),
        ([1.0], "list is not a number"),
        (1j, "complex is not a number"),
        (np.ones(2), "can't be read as one number"),
        (torch.ones(3), "can't be read as one number"),
        (10**400, "too large for a double"),
        (object(), "object is not a number"),
    ],
)
def test_values_that_are_no_numbers_are_refused_and_the_others_kept(
    recorder: Recorder, value: object, reason: str
) -> None:
    for _ in range(2):
        recorder.log({"bad": value, "good": 1.0}, step=1)
    assert rows(recorder) == [("good", 1, 1.0)] * 2
    ((text, count),) = recorder.not_recorded().items()
    assert reason in text
    assert count == 2


def test_numbers_that_no_double_holds_are_counted(recorder: Recorder) -> None:
    recorder.log({"a": 2**53 + 1, "b": Fraction(1, 3)}, step=1)
    assert recorder.rounded == 2
    assert rows(recorder) == [("a", 1, float(2**53)), ("b", 1, 1 / 3)]


def test_an_empty_row(recorder: Recorder) -> None:
    recorder.log({}, step=1)
    recorder.log({})
    recorder.log({"only": {}}, step=1)
    recorder.log({"a": 1.0}, step=2)
    assert rows(recorder) == [("a", 2, 1.0)]
    assert recorder.not_recorded() == {}


def test_a_text_longer_than_a_segment_is_counted(recorder: Recorder) -> None:
    recorder.log({"note": "x" * (9 * 2**20), "a": 1.0}, step=1)
    recorder.log({"x" * (9 * 2**20): 1.0}, step=1)
    assert rows(recorder) == [("a", 1, 1.0)]
    assert recorder.not_recorded() == {"larger than a journal segment": 2}


def test_after_the_end_everything_is_counted(recorder: Recorder, caplog: pytest.LogCaptureFixture) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    gauge.set(1.0, {"training.step": 1})
    recorder.log({"a": 1.0, "b": 2.0}, step=1)
    recorder.close(RunStatus.FINISHED)
    gauge.set(1.0, {"training.step": 2})
    gauge.set(1.0)
    recorder.log({"a": 1.0, "b": 2.0}, step=2)
    recorder.log({"c": 1.0})
    recorder.text("note", "text")
    assert recorder.not_recorded() == {"recorded after the run had ended": 6}
    assert len([r for r in caplog.records if "after the end" in r.message]) == 1
    recorder.close(RunStatus.FINISHED)
    assert len(recorded(recorder)) == 3


def test_a_journal_closed_by_someone_else_is_counted(recorder: Recorder) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    gauge.set(1.0, {"training.step": 1})
    recorder.log({"a": 1.0, "b": 1.0}, step=1)
    assert recorder.journal is not None
    recorder.journal.close()
    gauge.set(1.0, {"training.step": 2})
    gauge.set(1.0)
    recorder.log({"a": 1.0, "b": 1.0}, step=2)
    recorder.text("note", "text")
    assert recorder.not_recorded() == {"the journal is closed": 5}


def test_a_locked_journal_is_counted_and_said_once(
    recorder: Recorder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = JournalWriter(tmp_path / "journal")
    for step in range(3):
        recorder.log({"a": 1.0}, step=step)
    other.close()
    ((reason, count),) = recorder.not_recorded().items()
    assert "being written by another process" in reason
    assert count == 3
    assert len(caplog.records) == 1


# Instruments


def test_attributes_that_look_alike_are_series_of_their_own(recorder: Recorder) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    alike: list[Any] = [1, True, 1.0, "1", "True", (1,), (True,), ("1",), 0, False, -0.0, 0.0, ""]
    for turn in range(3):
        for n, value in enumerate(alike):
            gauge.set(float(n), {"training.step": turn, "fold": value})
    run = recorded(recorder)
    assert len(run.series) == len(alike)
    assert [repr(series.attributes["fold"]) for series in run.series] == [repr(value) for value in alike]
    assert len({series.tag for series in run.series}) == len(alike)
    for n, series in enumerate(run.series):
        assert run.values[run.index == n].tolist() == [float(n)] * 3, series


def test_the_order_of_attributes_makes_no_other_series(recorder: Recorder) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    for _ in range(2):
        gauge.set(1.0, {"training.step": 1, "a": "x", "b": "y"})
        gauge.set(1.0, {"b": "y", "training.step": 1, "a": "x"})
        gauge.set(1.0, {"b": "x", "training.step": 1, "a": "y"})
    assert [dict(s.attributes) for s in recorded(recorder).series] == [
        {"a": "x", "b": "y"},
        {"a": "y", "b": "x"},
    ]


class Shade(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (["a", "b"], ("a", "b")),
        ([1, 2.0, True], (1, 2.0, True)),
        ([], ()),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (torch.tensor(2), 2),
        (b"bytes", "b'bytes'"),
        (None, "None"),
        ({"a": 1}, "{'a': 1}"),
        (Shade.RED, "Shade.RED"),
        ([["deep"]], ("('deep',)",)),
    ],
)
def test_attribute_values_of_every_kind(recorder: Recorder, value: Any, stored: object) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    for step in range(3):
        gauge.set(1.0, {"training.step": step, "what": value})
    run = recorded(recorder)
    assert [dict(series.attributes) for series in run.series] == [{"what": stored}]
    assert run.steps.tolist() == [0, 1, 2]
    assert recorder.not_recorded() == {}


def test_an_attribute_changed_by_its_owner_is_another_series(recorder: Recorder) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    attributes: dict[str, Any] = {"training.step": 0, "part": "a"}
    for step, part in enumerate(["a", "b", "a"]):
        attributes.update({"training.step": step, "part": part})
        gauge.set(float(step), attributes)
    assert recorded(recorder).of("loss", {"part": "a"}).steps.tolist() == [0, 2]


@pytest.mark.parametrize("attributes", [None, {}, 5, "text", [("training.step", 3)]])
def test_attributes_that_are_no_mapping(recorder: Recorder, attributes: Any) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    for _ in range(2):
        gauge.set(1.0, attributes)
    assert rows(recorder) == [("loss", 0, 1.0), ("loss", 1, 1.0)]


def test_attributes_in_a_mapping_of_another_kind(recorder: Recorder) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    for make in (types.MappingProxyType, collections.OrderedDict):
        gauge.set(1.0, make({"training.step": 4, "part": "a"}))
    assert len(recorded(recorder).series) == 1
    assert recorded(recorder).steps.tolist() == [4, 4]


def test_attribute_keys_that_are_no_texts(recorder: Recorder) -> None:
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    for _ in range(2):
        gauge.set(1.0, {"training.step": 1, 1: "x"})  # type: ignore[dict-item]  # a mistake
        gauge.set(2.0, {"training.step": 1, True: "x"})  # type: ignore[dict-item]  # equal to the key 1
    run = recorded(recorder)
    assert [dict(series.attributes) for series in run.series] == [{"1": "x"}, {"True": "x"}]
    assert run.values.tolist() == [1.0, 2.0, 1.0, 2.0]
    assert recorder.not_recorded() == {}


def test_amounts_of_every_kind(recorder: Recorder) -> None:
    meter = TrackingMeterProvider(recorder).get_meter("train")
    gauge, counter, histogram = (
        meter.create_gauge("g"),
        meter.create_counter("c"),
        meter.create_histogram("h"),
    )
    for amount in (1, 2.5, True, np.float32(0.5), torch.tensor(7), 2**60, float("nan")):
        for _ in range(2):
            gauge.set(amount, {"training.step": 1})  # type: ignore[arg-type]  # more than the API promises
    histogram.record(-1.0, {"training.step": 1})
    counter.add(2, {"training.step": 1})
    counter.add(-1, {"training.step": 1})
    counter.add(np.float64(-0.5), {"training.step": 1})
    gauge.set("text", {"training.step": 1})  # type: ignore[arg-type]  # a mistake
    run = recorded(recorder)
    expected = [1, 1, 2.5, 2.5, 1, 1, 0.5, 0.5, 7, 7, 2**60, 2**60, np.nan, np.nan]
    assert np.array_equal(run.of("g").values, np.array(expected, dtype=float), equal_nan=True)
    assert run.of("h").values.tolist() == [-1.0]
    assert run.of("c").values.tolist() == [2.0]
    assert recorder.not_recorded() == {
        "a counter only rises; use an up-down counter": 2,
        "str is not a number": 1,
    }


# Whose exception it is


class Angry(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise LookupError("the user's own")

    def __iter__(self) -> Iterator[str]:
        raise LookupError("the user's own")

    def __len__(self) -> int:
        return 1


def test_an_exception_of_the_users_code_comes_out(recorder: Recorder) -> None:
    class Number:
        def __float__(self) -> float:
            raise KeyboardInterrupt

    with pytest.raises(LookupError, match="own"):
        recorder.log(Angry(), step=1)
    with pytest.raises(KeyboardInterrupt):
        recorder.log({"a": Number()}, step=1)
    recorder.log({"a": 1.0}, step=2)
    assert rows(recorder) == [("a", 2, 1.0)]


def test_an_error_of_ours_is_counted_and_logged_once(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.log({"a": 1.0}, step=1)
    monkeypatch.setattr("otel_tracking.rows.flatten", None)  # 'NoneType' object is not callable
    gauge = TrackingMeterProvider(recorder).get_meter("train").create_gauge("loss")
    with caplog.at_level(logging.ERROR):
        for step in range(3):
            recorder.log({"b": 1.0}, step=step)
    gauge.set(1.0, {"training.step": 1})
    assert recorder.not_recorded() == {"internal error: TypeError": 3}
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.records[0].message


def a_function(number: int, frame: object) -> None:
    raise ValueError("mine")


class AHandler:
    def method(self, number: int, frame: object) -> None:
        a_function(number, frame)

    def __call__(self, number: int, frame: object) -> None:
        a_function(number, frame)


def through_json(number: int, frame: object) -> None:
    json.loads("{")


@pytest.mark.parametrize(
    "handler",
    [
        a_function,
        AHandler().method,
        AHandler(),
        functools.partial(a_function),
        through_json,
        lambda n, f: a_function(n, f),
    ],
    ids=["function", "method", "object", "partial", "through json", "lambda"],
)
def test_a_handlers_exception_is_known_whatever_the_handler_is(
    recorder: Recorder, handler: Callable[..., None]
) -> None:
    """It interrupts the reading of a value, where ValueErrors are the value's otherwise."""

    class Interrupted:
        def __float__(self) -> float:
            signal.raise_signal(signal.SIGUSR1)
            return 1.0

    class Unreadable:
        def __float__(self) -> float:
            raise ValueError("its own")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(ValueError, match=r"mine|Expecting"):
            recorder.log({"a": Interrupted()}, step=1)
        recorder.log({"a": Unreadable(), "b": 1.0}, step=2)
        with pytest.raises(ValueError, match=r"mine|Expecting") as caught:
            signal.raise_signal(signal.SIGUSR1)
        assert raised_by_handler(caught.value)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert rows(recorder) == [("b", 2, 1.0)]
    assert sum(recorder.not_recorded().values()) == 1
