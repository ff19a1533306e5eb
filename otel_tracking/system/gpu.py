"""NVIDIA GPUs, by the conventions for hardware."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from otel_tracking.records import Kind
from otel_tracking.system.figures import Figure, Metric, Source
from otel_tracking.system.nvml import TEMPERATURE_GPU, Nvml, load

UTILIZATION: Final = Metric(
    "hw.gpu.utilization", Kind.OBSERVABLE_GAUGE, "1", "Fraction of time spent in a specific task."
)
MEMORY_USAGE: Final = Metric("hw.gpu.memory.usage", Kind.OBSERVABLE_UP_DOWN_COUNTER, "By", "GPU memory used.")
MEMORY_LIMIT: Final = Metric(
    "hw.gpu.memory.limit", Kind.OBSERVABLE_UP_DOWN_COUNTER, "By", "Size of the GPU memory."
)
MEMORY_UTILIZATION: Final = Metric(
    "hw.gpu.memory.utilization", Kind.OBSERVABLE_GAUGE, "1", "Fraction of GPU memory used."
)
TEMPERATURE: Final = Metric("hw.temperature", Kind.OBSERVABLE_GAUGE, "Cel", "Temperature in degrees Celsius.")
POWER: Final = Metric(
    "hw.power", Kind.OBSERVABLE_GAUGE, "W", "Instantaneous power consumed by the component."
)
ENERGY: Final = Metric("hw.energy", Kind.OBSERVABLE_COUNTER, "J", "Energy consumed by the component.")

_OF_ANY_HARDWARE: Final = (TEMPERATURE, POWER, ENERGY)
"""Metrics that need the attribute `hw.type`."""

_Answers = Mapping[Metric, float]


def open_gpus(load: Callable[[], Nvml | None] = load) -> list[Source]:
    """The source of all GPUs, if NVML works here."""
    nvml = load()
    return [] if nvml is None else [Gpus(nvml)]


class Gpus(Source):
    """Every GPU of the machine. A call that fails leaves out its figures of that GPU, and nothing else."""

    name = "NVML"

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml

    def figures(self) -> Iterator[Figure]:
        """The figures now."""
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                device = self._nvml.nvmlDeviceGetHandleByIndex(index)
            except Exception:  # noqa: BLE001 - lost, or not for this user
                continue
            # The index is unique on the machine, as the conventions want, and is what nvidia-smi shows.
            attributes = {"hw.id": str(index), **self._name(device)}
            for call in (self._utilization, self._memory, self._temperature, self._power, self._energy):
                try:
                    answers = call(device)
                except Exception:  # noqa: BLE001 - not supported by this GPU, or whatever else NVML says
                    continue
                for metric, value in answers.items():
                    kind = {"hw.type": "gpu"} if metric in _OF_ANY_HARDWARE else {}
                    yield Figure(metric, value, {**attributes, **kind})

    def close(self) -> None:
        """NVML is needed no more."""
        self._nvml.nvmlShutdown()

    def _name(self, device: Any) -> dict[str, str]:
        try:
            name = self._nvml.nvmlDeviceGetName(device)
        except Exception:  # noqa: BLE001 - its figures are as good without
            return {}
        return {"hw.name": name.decode(errors="replace") if isinstance(name, bytes) else name}

    def _utilization(self, device: Any) -> _Answers:
        return {UTILIZATION: self._nvml.nvmlDeviceGetUtilizationRates(device).gpu / 100}

    def _memory(self, device: Any) -> _Answers:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
        answers: dict[Metric, float] = {MEMORY_USAGE: memory.used, MEMORY_LIMIT: memory.total}
        if memory.total:
            answers[MEMORY_UTILIZATION] = memory.used / memory.total
        return answers

    def _temperature(self, device: Any) -> _Answers:
        return {TEMPERATURE: self._nvml.nvmlDeviceGetTemperature(device, TEMPERATURE_GPU)}

    def _power(self, device: Any) -> _Answers:
        return {POWER: self._nvml.nvmlDeviceGetPowerUsage(device) / 1000}

    def _energy(self, device: Any) -> _Answers:
        return {ENERGY: self._nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1000}
