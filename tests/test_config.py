"""Hyperparameters: whatever shape they come in, JSON can hold what comes out, and nothing vanishes."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import decimal
import enum
import functools
import json
import math
from collections import deque, namedtuple
from collections.abc import Iterator, MutableMapping, MutableSequence
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pydantic
import pytest
import torch

from otel_tracking.config import flatten_config, to_jsonable


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Optimizer:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    late: int = dataclasses.field(init=False)


@dataclasses.dataclass
class Hyperparameters:
    name: str = "bert"
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)


Range = namedtuple("Range", "low high")


def train() -> None: ...


def one(value: Any) -> Any:
    """What a single value becomes; JSON has to hold it."""
    converted = to_jsonable({"v": value})
    json.dumps(converted)
    return converted["v"]


def test_what_json_holds_stays() -> None:
    config: dict[str, Any] = {
        "a": 1,
        "b": 0.1,
        "c": True,
        "d": None,
        "e": "text",
        "f": [1, [2]],
        "g": {"h": {}},
        "i": "",
    }
    assert to_jsonable(config) == config
    assert type(one(True)) is bool
    assert one(math.inf) == math.inf
    assert math.isnan(one(math.nan))
    assert one("long " * 10_000) == "long " * 10_000
    assert to_jsonable(None) == {}


def test_dataclasses_and_namespaces_nest() -> None:
    expected = {"name": "bert", "optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}}
    assert to_jsonable(Hyperparameters()) == expected
    assert (
        to_jsonable(argparse.Namespace(name="bert", optimizer=SimpleNamespace(lr=0.1, betas=(0.9, 0.999))))
        == expected
    )
    assert one(Range(1, 2)) == {"low": 1, "high": 2}


class Database(pydantic.BaseModel):
    password: str
    port: int = 5


@attrs.define
class Sampler:
    seed: int
    name: str = "random"


def test_objects_of_libraries_are_their_fields() -> None:
    assert one(Database(password="x")) == {"password": "x", "port": 5}
    assert one([Sampler(3)]) == [{"seed": 3, "name": "random"}]
    assert one(functools.partial(max, 1, key=abs)) == {
        "function": "builtins.max",
        "arguments": [1],
        "keywords": {"key": "builtins.abs"},
    }


def test_any_object_with_public_attributes_is_a_config() -> None:
    class Arguments:
        def __init__(self) -> None:
            self.lr = 0.1
            self._cache = object()

    assert to_jsonable(Arguments()) == {"lr": 0.1}
    assert to_jsonable([1, 2]) == {"config": [1, 2]}
    assert to_jsonable(train) == {"config": f"{__name__}.train"}


def test_mappings_and_sequences_by_contract() -> None:
    class Node(MutableMapping[str, Any]):  # as OmegaConf's
        def __init__(self, content: dict[str, Any]) -> None:
            self._content = content

        def __getitem__(self, key: str) -> Any:
            return self._content[key]

        def __setitem__(self, key: str, value: Any) -> None: ...

        def __delitem__(self, key: str) -> None: ...

        def __iter__(self) -> Iterator[str]:
            return iter(self._content)

        def __len__(self) -> int:
            return len(self._content)

    class Items(MutableSequence[Any]):
        def __getitem__(self, index: Any) -> Any:
            return [1, 2][index]

        def __setitem__(self, index: Any, value: Any) -> None: ...

        def __delitem__(self, index: Any) -> None: ...

        def __len__(self) -> int:
            return 2

        def insert(self, index: int, value: Any) -> None: ...

    assert to_jsonable(Node({"a": Node({"b": Items()})})) == {"a": {"b": [1, 2]}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ({3, 1, 20}, [1, 3, 20]),
        pytest.param(frozenset({"b", 1}), ["b", 1], id="a set of two types"),
        (deque([1, 2]), [1, 2]),
        (PurePosixPath("/data/x"), "/data/x"),
        (datetime.datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (datetime.timedelta(seconds=90), "datetime.timedelta(seconds=90)"),
        (decimal.Decimal("0.10"), "0.10"),
        (1 + 2j, "(1+2j)"),
        (2**63, 2**63),
        (2**64, str(2**64)),
        (range(10**9), "range(0, 1000000000)"),
        (b"x", "b'x'"),
        pytest.param(train, f"{__name__}.train", id="train"),
        (Optimizer, f"{__name__}.Optimizer"),
        (len, "builtins.len"),
        pytest.param(torch.nn.functional.relu, "torch.nn.functional.relu", id="relu"),
        (torch.nn.ReLU(), "ReLU()"),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.longdouble(0.5), 0.5),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(["a", None], dtype=object), ["a", None]),
        (np.zeros((100, 3), np.float32), "<ndarray float32 of shape (100, 3)>"),
        (np.dtype("float32"), "float32"),
        (np.float32, "numpy.float32"),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (torch.tensor([1, 2], requires_grad=False), [1, 2]),
        (torch.zeros(8, 9), "<Tensor torch.float32 of shape (8, 9)>"),
        (torch.float16, "torch.float16"),
        (torch.device("cuda", 1), "cuda:1"),
        (torch.Size([2, 3]), [2, 3]),
    ],
    ids=repr,
)
def test_values(value: Any, expected: Any) -> None:
    converted = one(value)
    assert converted == expected
    assert type(converted) is type(expected)


def test_anything_else_is_its_repr_cut_and_without_addresses() -> None:
    class Long:
        def __repr__(self) -> str:
            return "x" * 5_000

    assert one(Long()) == "x" * 999 + "…"
    plain = one(object())
    assert plain == "<object object>"


def test_keys_become_text_and_none_is_lost() -> None:
    assert to_jsonable({1: "a", "1": "b", None: "c", (1, 2): "d", "": "e"}) == {
        "1": "a",
        "1~2": "b",
        "None": "c",
        "(1, 2)": "d",
        "": "e",
    }


def test_cycles_and_depth_end() -> None:
    cyclic: dict[str, Any] = {"x": [1]}
    cyclic["self"] = cyclic
    cyclic["x"].append(cyclic["x"])
    assert to_jsonable(cyclic) == {"x": [1, "<cycle>"], "self": "<cycle>"}
    shared = {"a": 1}
    assert to_jsonable({"one": shared, "two": shared}) == {"one": {"a": 1}, "two": {"a": 1}}
    deep: Any = 1
    for _ in range(20_000):
        deep = [deep]
    assert "<too deep>" in json.dumps(one(deep))


def test_a_few_objects_that_mean_billions_of_values_are_cut() -> None:
    laughs: Any = ["lol"]
    for _ in range(20):
        laughs = [laughs] * 10
    converted = json.dumps(to_jsonable({"a": laughs, "b": 1}))
    assert "<cut>" in converted
    assert len(converted) < 2_000_000


def test_what_raises_is_named_and_the_rest_kept() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise KeyError

    class BrokenMapping(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError

    assert to_jsonable(
        {"a": Broken(), "b": BrokenMapping(), "c": torch.empty((), device="meta"), "d": 1}
    ) == {
        "a": "<Broken: KeyError>",
        "b": "<BrokenMapping: RuntimeError>",
        "c": "<Tensor: NotImplementedError>",
        "d": 1,
    }
    assert one(10**5_000) == "<int: ValueError>"


def test_flatten_config() -> None:
    values = {"a": {"b": {"c": 1}, "l": [1, {"x": 2}]}, "n": None, "e": {}, "a/b": {"c": 2}}
    assert flatten_config(values) == {
        "a/b/c": 1,
        "a/l": [1, {"x": 2}],
        "n": None,
        "e": "{}",
        "a/b/c~2": 2,
    }
    assert list(flatten_config({"a": {"b": 1}}, sep=".")) == ["a.b"]
