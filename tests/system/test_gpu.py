"""GPUs: what NVML answers becomes the conventions' figures, and what it does not answer is left out.

The answers are recorded (nvml.json), in the shape in which `pynvml` gives them, so no GPU is needed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml  # type: ignore[import-untyped]
import pytest

from otel_tracking.system import nvml
from otel_tracking.system.gpu import Gpus, open_gpus

ANSWERS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "nvml.json").read_text())


class Recorded:
    """NVML of a machine with the recorded devices; errors are those that `pynvml` raises."""

    def __init__(self) -> None:
        self.shut_down = 0

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.shut_down += 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(ANSWERS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        self._answer(ANSWERS[index].get("nvmlDeviceGetHandleByIndex"))
        return ANSWERS[index]

    def __getattr__(self, call: str) -> Callable[..., Any]:
        return lambda device, *_: self._answer(device[call])

    def _answer(self, answer: Any) -> Any:
        if not isinstance(answer, dict):
            return answer
        if "error" in answer:
            raise pynvml.NVMLError(answer["error"])
        return SimpleNamespace(**answer)


def figures(recorded: Any) -> dict[tuple[str, str], tuple[float, dict[str, Any]]]:
    return {
        (figure.metric.name, str(figure.attributes["hw.id"])): (figure.value, dict(figure.attributes))
        for figure in Gpus(recorded).figures()
    }


def test_every_figure_of_a_gpu() -> None:
    gpu = {"hw.id": "0", "hw.name": "NVIDIA H200"}
    typed = {**gpu, "hw.type": "gpu"}
    assert {name: what for (name, id_), what in figures(Recorded()).items() if id_ == "0"} == {
        "hw.gpu.utilization": (0.87, gpu),
        "hw.gpu.memory.usage": (104575533056, gpu),
        "hw.gpu.memory.limit": (150754820096, gpu),
        "hw.gpu.memory.utilization": (104575533056 / 150754820096, gpu),
        "hw.temperature": (54, typed),
        "hw.power": (512.345, typed),
        "hw.energy": (9876543.21, typed),
    }


def test_a_call_that_fails_leaves_out_its_figure() -> None:
    found = figures(Recorded())
    assert {name for name, id_ in found if id_ == "1"} == {
        "hw.gpu.utilization",
        "hw.gpu.memory.usage",
        "hw.gpu.memory.limit",
        "hw.gpu.memory.utilization",
        "hw.temperature",
    }
    assert {name for name, id_ in found if id_ == "2"} == {
        "hw.gpu.memory.usage",
        "hw.gpu.memory.limit",
        "hw.power",
    }
    assert found["hw.power", "2"] == (75.0, {"hw.id": "2", "hw.type": "gpu"})
    assert not [name for name, id_ in found if id_ == "3"]


def test_older_modules_give_names_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ANSWERS[0], "nvmlDeviceGetName", b"Tesla V100")
    assert figures(Recorded())["hw.power", "0"][1]["hw.name"] == "Tesla V100"


def test_it_is_given_back() -> None:
    recorded: Any = Recorded()
    (source,) = open_gpus(lambda: recorded)
    source.close()
    assert recorded.shut_down == 1


def test_no_module_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.load() is None
    assert open_gpus() == []


def test_no_driver_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert open_gpus() == []


def test_the_calls_are_those_of_the_module() -> None:
    for call in vars(nvml.Nvml):
        if call.startswith("nvml"):
            assert callable(getattr(pynvml, call)), call
    assert nvml.TEMPERATURE_GPU == pynvml.NVML_TEMPERATURE_GPU
    memory = {name for name, *_ in pynvml.c_nvmlMemory_t._fields_}
    assert {"total", "used"} <= memory
    assert "gpu" in {name for name, *_ in pynvml.c_nvmlUtilization_t._fields_}
