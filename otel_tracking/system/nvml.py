"""The few calls of NVIDIA's management library that are made, as the module `pynvml` has them."""

from __future__ import annotations

import importlib
import logging
from typing import Any, Final, Protocol, cast

_LOG: Final = logging.getLogger(__name__)

TEMPERATURE_GPU: Final = 0
"""NVML_TEMPERATURE_GPU: the sensor on the die."""


class Utilization(Protocol):
    """Of `nvmlDeviceGetUtilizationRates`."""

    @property
    def gpu(self) -> int:
        """Percent of the last moments in which a kernel ran."""


class Memory(Protocol):
    """Of `nvmlDeviceGetMemoryInfo`, in bytes."""

    @property
    def total(self) -> int:
        """All there is."""

    @property
    def used(self) -> int:
        """By all processes, with what the driver reserves."""


class Nvml(Protocol):
    """The calls, under NVML's names. A device is what `nvmlDeviceGetHandleByIndex` gives.

    Each may raise: an answer that a device does not have is NVML_ERROR_NOT_SUPPORTED.
    """

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's name, as all here
        """Begin; NVML counts these."""

    def nvmlShutdown(self) -> None:  # noqa: N802
        """End what one `nvmlInit` began."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """How many devices there are."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:  # noqa: N802
        """A device, from 0."""

    def nvmlDeviceGetName(self, device: Any) -> str | bytes:  # noqa: N802
        """The product's name; older versions of the module give bytes."""

    def nvmlDeviceGetUtilizationRates(self, device: Any) -> Utilization:  # noqa: N802
        """How busy it is."""

    def nvmlDeviceGetMemoryInfo(self, device: Any) -> Memory:  # noqa: N802
        """Its memory."""

    def nvmlDeviceGetTemperature(self, device: Any, sensor: int) -> int:  # noqa: N802
        """Degrees Celsius."""

    def nvmlDeviceGetPowerUsage(self, device: Any) -> int:  # noqa: N802
        """Milliwatts."""

    def nvmlDeviceGetTotalEnergyConsumption(self, device: Any) -> int:  # noqa: N802
        """Millijoules since the driver was loaded."""


def load() -> Nvml | None:
    """The real one, begun; None where the module or the driver is missing. `nvmlShutdown` it when done."""
    try:
        nvml = cast(Nvml, importlib.import_module("pynvml"))
        nvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 - of the module or the driver; most machines have no GPU
        _LOG.debug("no GPU is sampled: %s", error)
        return None
    return nvml
