"""Values: which things are numbers, texts or nothing, and how mappings flatten."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from otel_tracking.values import Leaf, Number, Refused, classify, flatten, to_number


class Level(IntEnum):
    HIGH = 3


class Phase(str, Enum):  # noqa: UP042 - unlike a StrEnum it prints itself as `Phase.TRAIN`
    TRAIN = "train"


class Meter:
    def __float__(self) -> float:
        return 2.5

    def __repr__(self) -> str:
        return "Meter()"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, Number(0.1)),
        (-0.0, Number(-0.0)),
        (math.inf, Number(math.inf)),
        (3, Number(3.0, integer=True)),
        (True, Number(1.0, integer=True)),
        (Level.HIGH, Number(3.0, integer=True)),
        (2**53, Number(2.0**53, integer=True)),
        (Decimal("0.5"), Number(0.5)),
        (Fraction(1, 4), Number(0.25)),
        (Meter(), Number(2.5)),
        (np.float32(0.1), Number(float(np.float32(0.1)))),
        (np.float64(0.1), Number(0.1)),
        (np.float16(0.5), Number(0.5)),
        (np.int64(7), Number(7.0, integer=True)),
        (np.uint64(2**63), Number(2.0**63, integer=True)),
        (np.bool_(True), Number(1.0, integer=True)),
        (np.longdouble(0.5), Number(0.5)),
        (np.array(0.25), Number(0.25)),
        (np.array([[0.25]]), Number(0.25)),
        (np.array([3]), Number(3.0, integer=True)),
        (torch.tensor(0.1), Number(float(np.float32(0.1)))),
        (torch.tensor([0.5], requires_grad=True), Number(0.5)),
        (torch.tensor([[7]]), Number(7.0, integer=True)),
        (torch.tensor(True), Number(1.0, integer=True)),
        (torch.tensor(1.5, dtype=torch.bfloat16), Number(1.5)),
        (torch.tensor(1.5, dtype=torch.float16), Number(1.5)),
        (torch.nn.Parameter(torch.tensor(2.0)), Number(2.0)),
    ],
    ids=repr,
)
def test_numbers(value: Any, expected: Number) -> None:
    number = to_number(value)
    assert isinstance(number, Number)
    assert number == expected
    assert math.copysign(1, number.value) == math.copysign(1, expected.value)
    assert classify(value) == number


@pytest.mark.parametrize("value", [math.nan, np.float32("nan"), torch.tensor(math.nan), Decimal("nan")])
def test_nan_is_a_number(value: Any) -> None:
    number = to_number(value)
    assert isinstance(number, Number)
    assert math.isnan(number.value)
    assert number.altered == ""


@pytest.mark.parametrize(
    "value",
    [2**53 + 1, np.int64(2**53 + 1), torch.tensor(2**53 + 1), Decimal("0.1"), Fraction(1, 3)],
    ids=repr,
)
def test_what_no_double_holds_is_rounded_and_said(value: Any) -> None:
    number = to_number(value)
    assert isinstance(number, Number)
    assert number.value == float(value)
    assert number.altered.endswith("rounded to a double")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "NoneType is not a number"),
        (1j, "complex is not a number"),
        (np.complex64(1j), "complex is not a number"),
        (torch.tensor(1j), "complex is not a number"),
        (10**400, "int too large for a double"),
        (-(10**400), "int too large for a double"),
        (Decimal("1e999999999"), "decimal.Decimal too large for a double"),
        (Fraction(10**400, 3), "fractions.Fraction too large for a double"),
        (Decimal("sNaN"), "decimal.Decimal can't be read as one number (ValueError)"),
        (b"1", "bytes is not a number"),
        ([1.0], "list is not a number"),
        (np.array([1.0, 2.0]), "numpy.ndarray can't be read as one number (ValueError)"),
        (np.array([]), "numpy.ndarray can't be read as one number (ValueError)"),
        (torch.ones(2), "torch.Tensor can't be read as one number (RuntimeError)"),
        (torch.empty((), device="meta"), "torch.Tensor can't be read as one number (RuntimeError)"),
        (np.datetime64("2020-01-01", "ns"), "numpy.datetime64 of dates or durations"),
        (np.timedelta64(5, "ns"), "numpy.timedelta64 of dates or durations"),
        (np.ma.masked, "a masked value"),
        (np.array({"a": 1}, dtype=object), "dict is not a number"),
        (float, "type is not a number"),
        pytest.param(object(), "object is not a number", id="object"),
    ],
    ids=repr,
)
def test_refused(value: Any, reason: str) -> None:
    assert to_number(value) == Refused(reason)
    assert classify(value) == Refused(reason)


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (np.str_("b"), "b"), (Phase.TRAIN, "train"), ("", "")]
)
def test_texts(value: str, text: str) -> None:
    assert classify(value) == text
    assert type(classify(value)) is str


def test_a_tensor_elsewhere_is_read_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Device:
        type = "cuda"

    class Tensor:
        device = Device()

        def item(self) -> float:
            return 0.5

    monkeypatch.setattr("otel_tracking.values._warned_of_devices", set())
    assert [to_number(Tensor()), to_number(Tensor())] == [Number(0.5)] * 2
    assert len(caplog.records) == 1
    assert "a cuda tensor was logged: reading it waits for the device" in caplog.text


def test_what_a_signal_handler_raises_in_mid_read_is_not_kept() -> None:
    class Interrupted:
        def item(self) -> float:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        to_number(Interrupted())


def leaves(values: Mapping[Any, Any]) -> dict[str, Any]:
    """By name; numbers as their value."""
    flat = list(flatten(values))
    assert len({leaf.name for leaf in flat}) == len(flat)
    return {leaf.name: leaf.value.value if isinstance(leaf.value, Number) else leaf.value for leaf in flat}


def test_flatten_joins_keys_and_groups() -> None:
    values = {
        "loss": 1.0,
        "class_accuracy": {"class_0": 0.9, "deep": OrderedDict(x=MappingProxyType({"y": 2}))},
    }
    assert list(flatten(values)) == [
        Leaf("loss", "", Number(1.0)),
        Leaf("class_accuracy/class_0", "class_accuracy", Number(0.9)),
        Leaf("class_accuracy/deep/x/y", "class_accuracy/deep/x", Number(2.0, integer=True)),
    ]
    assert [leaf.name for leaf in flatten({"a": {"b": 1}}, sep=".")] == ["a.b"]


def test_flatten_keeps_every_value_under_a_name_of_its_own() -> None:
    assert leaves({"a/b": 1.0, "a": {"b": 2.0}, "a/b~2": 3.0}) == {"a/b": 1.0, "a/b~2": 2.0, "a/b~2~2": 3.0}
    assert leaves({1: 9.0, "1": 2.0, None: 4.0, (1, 2): 5.0}) == {
        "1": 9.0,
        "1~2": 2.0,
        "None": 4.0,
        "(1, 2)": 5.0,
    }
    assert leaves({"": {"": 1.0}, "/": 2.0}) == {"/": 1.0, "/~2": 2.0}
    assert leaves({"a": {}, "b": "text"}) == {"b": "text"}


def test_flatten_refuses_cycles_and_depth() -> None:
    cyclic: dict[str, Any] = {"x": 1.0}
    cyclic["self"] = cyclic
    cyclic["in"] = {"back": cyclic}
    assert leaves(cyclic) == {
        "x": 1.0,
        "self": Refused("a mapping that contains itself"),
        "in/back": Refused("a mapping that contains itself"),
    }
    deep: dict[str, Any] = {"bottom": 1.0}
    for _ in range(20_000):
        deep = {"k": deep}
    ((name, value),) = leaves(deep).items()
    assert value == Refused("mappings nested deeper than 32")
    assert name == "/".join("k" * 33)
    twice = {"x": 1.0}
    assert leaves({"one": twice, "two": twice}) == {"one/x": 1.0, "two/x": 1.0}


def test_flatten_survives_hostile_objects() -> None:
    class Key:
        def __str__(self) -> str:
            raise ValueError

    class Broken(Mapping[str, float]):
        def __getitem__(self, key: str) -> float:
            raise RuntimeError

        def __iter__(self) -> Iterator[str]:
            return iter("a")

        def __len__(self) -> int:
            return 1

    key, broken, last = flatten({Key(): 1.0, "b": Broken(), "c": 2.0})
    assert key.name.endswith("Key>")
    assert key.value == Number(1.0)
    assert broken.name == "b"
    assert isinstance(broken.value, Refused)
    assert broken.value.reason.endswith("can't be read as a mapping (RuntimeError)")
    assert last == Leaf("c", "", Number(2.0))


def test_no_tensor_or_tracker_package_is_imported_for_it() -> None:
    code = (
        "import sys, otel_tracking.values as v;"
        "assert v.to_number(3).value == 3;"
        "print(sorted({'torch', 'tensorboard', 'wandb', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
