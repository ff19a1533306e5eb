"""The memory that torch's CUDA allocator holds, where the training has torch loaded and uses CUDA.

Torch is found, never imported. The allocator's counts are kept on the host: asking for them starts
nothing on a device and waits for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Final

from otel_tracking.records import Kind
from otel_tracking.system.figures import Figure, Metric, Source

# The conventions have nothing for allocators; named like what they have.
USAGE: Final = Metric(
    "torch.cuda.memory.usage",
    Kind.OBSERVABLE_UP_DOWN_COUNTER,
    "By",
    "Memory that torch's CUDA allocator has handed out (allocated) and taken from the device (reserved).",
)
PEAK: Final = Metric(
    "torch.cuda.memory.peak",
    Kind.OBSERVABLE_GAUGE,
    "By",
    "The most memory that torch's CUDA allocator has handed out at a time.",
)
RETRIES: Final = Metric(
    "torch.cuda.memory.retries",
    Kind.OBSERVABLE_COUNTER,
    "{retry}",
    "Allocations that succeeded only after the allocator's cache was freed.",
)
_NEVER_USED: Final = "reserved_bytes.all.peak"


def open_allocator() -> list[Source]:
    """The one source."""
    return [TorchAllocator()]


class TorchAllocator(Source):
    """Figures of each device that torch has allocated memory of in this process."""

    name = "torch's CUDA allocator"

    def figures(self) -> Iterator[Figure]:
        """The figures now; none while CUDA is not initialised."""
        cuda = _initialized_cuda()
        if cuda is None:
            return
        for device in range(cuda.device_count()):
            stats = cuda.memory_stats(device)
            if not stats.get(_NEVER_USED):
                continue
            where = {"device": str(device)}
            for state in ("allocated", "reserved"):
                yield Figure(USAGE, stats[f"{state}_bytes.all.current"], {**where, "state": state})
            yield Figure(PEAK, stats["allocated_bytes.all.peak"], where)
            yield Figure(RETRIES, stats["num_alloc_retries"], where)


def _initialized_cuda() -> Any:
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None) if isinstance(torch, ModuleType) else None
    is_initialized = getattr(cuda, "is_initialized", None)  # not there while torch is being imported
    return cuda if is_initialized is not None and is_initialized() else None
